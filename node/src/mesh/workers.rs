//! The workers whose home this coordinator is: their control connections, and what it says of them.
//!
//! ```text
//!   control connection up ── Attached(home_seq) ──▶ … ── lost ── 5 s ── Detached(home_seq) ──▶
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_mesh::host::link::{Homes, PeerLink};
use hedgerow_mesh::replica::Replica;
use hedgerow_proto::frame::{Control, Hello, Join, Reject, RejectReason, close};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Attachment, AttachmentState, Body, Record, Signed};
use hedgerow_proto::registry::Source;
use hedgerow_tunnel::{Admission, Tunnel, TunnelError, TunnelEvent, TunnelEvents, welcome};
use tokio::time::sleep;
use tracing::{debug, info, warn};

/// How long a lost connection may take to come back before its worker counts as gone.
const DETACH_AFTER: Duration = Duration::from_secs(5);
/// Coordinators of which workers are told.
const COORDINATORS_TOLD_MAX: usize = 8;

/// One worker that is here.
#[derive(Clone)]
struct Held {
    home_seq: u64,
    tunnel: Tunnel,
}

/// What this coordinator holds and says of workers.
pub struct Workers {
    federation: FederationId,
    incarnation: u64,
    replica: Replica,
    held: Mutex<BTreeMap<NodeId, Held>>,
}

impl Workers {
    /// Nobody yet.
    pub fn new(federation: FederationId, incarnation: u64, replica: Replica) -> Self {
        Self { federation, incarnation, replica, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<NodeId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnel to a worker that is here.
    pub fn tunnel(&self, worker: &NodeId) -> Option<Tunnel> {
        self.held().get(worker).map(|held| held.tunnel.clone())
    }

    /// The tunnels to all that are here.
    pub fn all(&self) -> Vec<Tunnel> {
        self.held().values().map(|held| held.tunnel.clone()).collect()
    }

    /// How many are here.
    pub fn count(&self) -> usize {
        self.held().len()
    }

    /// Takes workers in for as long as the host runs.
    pub async fn take_in(self: &Arc<Self>, mut homes: Homes) {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                link = homes.next() => match link {
                    Some(link) => _ = connections.spawn(self.clone().hold(link)),
                    None => return,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// One worker, from its first words to the end of its connection.
    async fn hold(self: Arc<Self>, link: PeerLink) {
        let hello = Hello { federation: self.federation, incarnation: self.incarnation, shard: 0, shards: 1 };
        let gate = Gate(&self);
        match welcome(Arc::new(link), hello, &Limits::PRODUCTION, &gate).await {
            Ok((tunnel, events, signed, record)) => self.keep(tunnel, events, signed, record).await,
            Err(TunnelError::Rejected(reject)) => debug!(message = reject.message, "a worker was not taken in"),
            Err(error) => debug!(%error, "a worker's connection did not come up"),
        }
    }

    async fn keep(self: &Arc<Self>, tunnel: Tunnel, mut events: TunnelEvents, signed: Signed, record: Record) {
        let worker = tunnel.node();
        let Some(home_seq) = home_seq(&self.replica.node(), &record) else { return };
        if let Some(old) = self.held().insert(worker, Held { home_seq, tunnel: tunnel.clone() }) {
            old.tunnel.close(close::REPLACED, "a newer connection of this worker takes the place of this one");
        }
        self.replica.meet(worker);
        self.take(worker, &signed);
        self.say(worker, home_seq, AttachmentState::Attached);
        info!(worker = %worker.short(), workers = self.count(), "a worker is at home here");
        self.tell(&tunnel);
        let mut left = false;
        loop {
            match events.next().await {
                TunnelEvent::Record(signed, record) => {
                    self.take(worker, &signed);
                    match self::home_seq(&self.replica.node(), &record) {
                        Some(seq) => self.moved(worker, tunnel.id(), seq),
                        // It has another home now; its connection will end.
                        None => debug!(worker = %worker.short(), "a worker has moved"),
                    }
                }
                TunnelEvent::Leave(signed, _) => {
                    left = true;
                    self.take(worker, &signed);
                }
                TunnelEvent::Closed(closed) => {
                    debug!(worker = %worker.short(), reason = %closed, "a worker's connection has ended");
                    break;
                }
            }
        }
        self.replica.part(worker);
        let lost = {
            let mut held = self.held();
            let here = held.get(&worker).filter(|held| held.tunnel.id() == tunnel.id()).map(|held| held.home_seq);
            here.inspect(|_| drop(held.remove(&worker)))
        };
        if let Some(home_seq) = lost {
            let this = self.clone();
            let after = if left { Duration::ZERO } else { DETACH_AFTER };
            tokio::spawn(async move {
                sleep(after).await;
                this.detach(worker, home_seq);
            });
        }
    }

    /// A worker counts another move to the same home, as it does after it has come back.
    fn moved(&self, worker: NodeId, tunnel: u64, home_seq: u64) {
        let news = match self.held().get_mut(&worker).filter(|held| held.tunnel.id() == tunnel) {
            Some(held) => std::mem::replace(&mut held.home_seq, home_seq) != home_seq,
            None => false,
        };
        if news {
            self.say(worker, home_seq, AttachmentState::Attached);
        }
    }

    /// It has been gone for too long, unless it is here again.
    fn detach(&self, worker: NodeId, home_seq: u64) {
        if self.held().contains_key(&worker) {
            return;
        }
        info!(worker = %worker.short(), "a worker is no longer at home here");
        self.say(worker, home_seq, AttachmentState::Detached);
    }

    /// Lets all go: this node is a coordinator no longer.
    pub fn let_go(&self) {
        let held = std::mem::take(&mut *self.held());
        for (worker, Held { home_seq, tunnel }) in held {
            self.say(worker, home_seq, AttachmentState::Detached);
            tunnel.close(close::GOING, "this node is a coordinator no longer");
        }
    }

    /// Tells every worker here of other coordinators: where to go if this one dies.
    pub fn tell_all(&self) {
        let tunnels: Vec<Tunnel> = self.held().values().map(|held| held.tunnel.clone()).collect();
        for tunnel in tunnels {
            self.tell(&tunnel);
        }
    }

    fn tell(&self, tunnel: &Tunnel) {
        let me = self.replica.node();
        let records: Vec<Vec<u8>> = self.replica.read(|registry| {
            let others = registry.coordinators().filter(|view| view.record.writer != me);
            let dialable = others.filter(|view| !view.node.multiaddrs.is_empty());
            dialable.take(COORDINATORS_TOLD_MAX).map(|view| view.signed.bytes().to_vec()).collect()
        });
        if !records.is_empty() {
            tunnel.send(Control::Coordinators(records));
        }
    }

    fn take(&self, worker: NodeId, signed: &Signed) {
        if let Err(refused) = self.replica.insert(signed.bytes().clone(), Source::Direct(None)) {
            warn!(worker = %worker.short(), %refused, "a worker's record is not taken");
        }
    }

    fn say(&self, worker: NodeId, home_seq: u64, state: AttachmentState) {
        let attachment = Attachment { worker, home_seq, state };
        if let Err(error) = self.replica.say(Body::Attachment(attachment)) {
            warn!(worker = %worker.short(), %error, "where a worker is cannot be said");
        }
    }
}

/// The move that a worker counts, if it names this node as its home.
fn home_seq(me: &NodeId, record: &Record) -> Option<u64> {
    record.node()?.home.filter(|home| home.coordinator == *me).map(|home| home.home_seq)
}

/// Who is taken in: whoever names this node as its home, while there is room.
struct Gate<'a>(&'a Workers);

impl Admission for Gate<'_> {
    fn admit(&self, node: NodeId, _: &Join, record: &Record) -> Result<(), Reject> {
        let reject = |reason, message: &str| Err(Reject { reason, message: message.into(), record: None });
        if home_seq(&self.0.replica.node(), record).is_none() {
            return reject(RejectReason::Record, "the record does not name this coordinator as the worker's home");
        }
        let held = self.0.held();
        if held.len() >= Limits::PRODUCTION.attachments_per_sponsor_max && !held.contains_key(&node) {
            return reject(RejectReason::Overloaded, "this coordinator holds as many workers as it may");
        }
        Ok(())
    }
}
