//! The workers whose home this coordinator is: their control connections. What is said of them, and when, is
//! [`hedgerow_proto::home::roster`]'s to say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow_mesh::host::link::{Homes, PeerLink};
use hedgerow_mesh::replica::Replica;
use hedgerow_proto::frame::{Control, Hello, Join, Reject};
use hedgerow_proto::home::Roster;
use hedgerow_proto::home::roster::{Output, home_seq, told_of};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::record::{AttachmentState, Body, Record, Signed};
use hedgerow_proto::registry::Source;
use hedgerow_tunnel::{Admission, Tunnel, TunnelError, TunnelEvent, TunnelEvents, welcome};
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{Instrument, debug, info, warn};

/// What this coordinator holds and says of workers.
pub struct Workers {
    federation: FederationId,
    incarnation: u64,
    replica: Replica,
    /// Where both locks are held, the registry's comes first: others ask for a worker while they look at the registry.
    roster: Mutex<Roster<Tunnel>>,
    /// Something is due at another time than before.
    rescheduled: Notify,
}

impl Workers {
    /// Nobody yet.
    pub fn new(federation: FederationId, incarnation: u64, replica: Replica) -> Self {
        let roster = Mutex::new(Roster::new(replica.node(), &replica.limits()));
        Self { federation, incarnation, replica, roster, rescheduled: Notify::new() }
    }

    fn roster(&self) -> MutexGuard<'_, Roster<Tunnel>> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnel to a worker that is here.
    pub fn tunnel(&self, worker: &NodeId) -> Option<Tunnel> {
        self.roster().connection(worker).cloned()
    }

    /// The tunnels to all that are here.
    pub fn all(&self) -> Vec<Tunnel> {
        self.roster().connections().cloned().collect()
    }

    /// How many are here.
    pub fn count(&self) -> usize {
        self.roster().len()
    }

    /// Takes workers in for as long as the host runs.
    pub async fn take_in(self: &Arc<Self>, mut homes: Homes) {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                link = homes.next() => match link {
                    Some(link) => _ = connections.spawn(self.clone().hold(link).in_current_span()),
                    None => return,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Does what is due, and tells workers of what has changed, for as long as it is polled.
    pub async fn keep_time(&self) {
        let mut changes = self.replica.changes();
        changes.mark_changed();
        loop {
            let due = self.roster().poll_timeout().map(|(at, _)| at.since(self.replica.now()));
            let waits = async {
                match due {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = waits => {
                    let now = self.replica.now();
                    self.replica.read(|registry| self.roster().handle_timeout(now, registry));
                    self.perform();
                }
                Ok(()) = changes.changed() => self.roster().registry_changed(self.replica.now()),
                () = self.rescheduled.notified() => {}
            }
        }
    }

    /// One worker, from its first words to the end of its connection.
    async fn hold(self: Arc<Self>, link: PeerLink) {
        let hello = Hello { federation: self.federation, incarnation: self.incarnation, shard: 0, shards: 1 };
        let gate = Gate(&self);
        match welcome(Arc::new(link), hello, &self.replica.limits(), &gate).await {
            Ok((tunnel, events, signed, record)) => self.keep(tunnel, events, signed, record).await,
            Err(TunnelError::Rejected(reject)) => debug!(message = reject.message, "a worker was not taken in"),
            Err(error) => debug!(%error, "a worker's connection did not come up"),
        }
    }

    async fn keep(&self, tunnel: Tunnel, mut events: TunnelEvents, signed: Signed, record: Record) {
        let (worker, id) = (tunnel.node(), tunnel.id());
        if !self.roster().arrived(id, tunnel, signed, &record) {
            return;
        }
        self.perform();
        info!(worker = %worker.short(), workers = self.count(), "a worker is at home here");
        loop {
            match events.next().await {
                TunnelEvent::Record(signed, record) => {
                    if home_seq(&self.replica.node(), &record).is_none() {
                        // It has another home now; its connection will end.
                        debug!(worker = %worker.short(), "a worker has moved");
                    }
                    self.roster().said(id, signed, &record);
                }
                TunnelEvent::Leave(signed, _) => self.roster().left(id, signed),
                TunnelEvent::Closed(closed) => {
                    debug!(worker = %worker.short(), reason = %closed, "a worker's connection has ended");
                    break;
                }
            }
            self.perform();
        }
        self.roster().ended(self.replica.now(), worker, id);
        self.perform();
        self.rescheduled.notify_one();
    }

    /// Lets all go: this node is a coordinator no longer.
    pub fn let_go(&self) {
        self.roster().let_go();
        self.perform();
    }

    /// Does what the roster has decided, without its lock.
    fn perform(&self) {
        let outputs: Vec<Output<Tunnel>> = {
            let mut roster = self.roster();
            std::iter::from_fn(|| roster.poll_output()).collect()
        };
        let mut told = None;
        for output in outputs {
            match output {
                Output::Meet(worker) => self.replica.meet(worker),
                Output::Part(worker) => self.replica.part(worker),
                Output::Take(signed) => {
                    if let Err(refused) = self.replica.insert(signed.bytes().clone(), Source::Direct(None)) {
                        warn!(worker = %signed.writer().short(), %refused, "a worker's record is not taken");
                    }
                }
                Output::Say(attachment) => {
                    let worker = attachment.worker;
                    if attachment.state == AttachmentState::Detached {
                        info!(worker = %worker.short(), "a worker is no longer at home here");
                    }
                    if let Err(error) = self.replica.say(Body::Attachment(attachment)) {
                        warn!(worker = %worker.short(), %error, "where a worker is cannot be said");
                    }
                }
                Output::Tell(tunnel) => {
                    let me = self.replica.node();
                    let records = told.get_or_insert_with(|| self.replica.read(|registry| told_of(&me, registry)));
                    if !records.is_empty() {
                        tunnel.send(Control::Coordinators(records.clone()));
                    }
                }
                Output::Close { connection, code, reason } => connection.close(code, reason),
            }
        }
    }
}

/// Who is taken in.
struct Gate<'a>(&'a Workers);

impl Admission for Gate<'_> {
    fn admit(&self, node: NodeId, _: &Join, record: &Record) -> Result<(), Reject> {
        self.0.roster().admit(&node, record)
    }
}
