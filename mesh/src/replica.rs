//! A node's replica of the registry: it holds what everybody said, says what the node itself has to say, and goes on
//! disk from time to time.
//!
//! Whoever changes something takes a lock for as long as that takes and never across an `await`; whoever wants to know
//! of changes waits on a watch channel.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::{KeyInUse, Meeting, Voice};
use hedgerow_proto::record::{
    AttachmentState, Body, GuestStatus, Kind, Lease, NodeRecord, Record, RecordError, Signed,
};
use hedgerow_proto::registry::{Outcome, Refused, Registry, Source};
use hedgerow_proto::snapshot;
use hedgerow_proto::sync::{Session, SyncError, Traffic};
use hedgerow_tunnel::sync::{SyncBroken, SyncReplica, synchronise};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, watch};
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::data_dir::{DataDir, DataDirError};

/// A suspend that is shorter than this loses no lease.
pub const SUSPEND_MIN: Duration = Duration::from_secs(10);
/// How often the replica goes on disk, if it has changed: what is lost in a crash is asked of a neighbour again.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);
/// The replica looks at its clock this often at least: a timer of the runtime stands still while the machine is suspended.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Records that may wait to be gossiped. Whatever finds no room is synchronised.
const HURRIED_MAX: usize = 1024;

/// Another coordinator has said something new of an agent without a key of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNews {
    /// Who.
    pub coordinator: NodeId,
    /// Of whom.
    pub worker_id: String,
}

/// Why a record from elsewhere is not in the registry now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken<O> {
    /// It is no record, or not a valid one.
    #[error(transparent)]
    Bad(RecordError),
    /// Whoever was asked does not want it.
    #[error("{0}")]
    Objection(O),
    /// The registry has no room for it.
    #[error(transparent)]
    Refused(Refused),
}

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The data directory does not do what it must.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// What the node has to say breaks a rule.
    #[error("this node's record cannot be signed: {0}")]
    Record(#[from] RecordError),
    /// What the node has to say finds no room.
    #[error("this node's own record was refused: {0}")]
    Refused(#[from] Refused),
    /// Another process speaks with this node's key.
    #[error(transparent)]
    KeyInUse(#[from] KeyInUse),
}

/// What a replica starts with.
pub struct ReplicaConfig {
    /// The node's data directory.
    pub data_dir: Arc<DataDir>,
    /// The federation.
    pub federation: FederationId,
    /// Its bounds.
    pub limits: Limits,
    /// Random for this run of the node.
    pub incarnation: u64,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The replica. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    data_dir: Arc<DataDir>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    generation: watch::Sender<u64>,
    record: watch::Sender<Bytes>,
    hurry: broadcast::Sender<Bytes>,
    guest_news: broadcast::Sender<GuestNews>,
    failure: watch::Sender<Option<Arc<ReplicaError>>>,
}

struct State {
    registry: Registry,
    voice: Voice,
    /// What the node says, by kind and subject: said again when it has to jump.
    says: BTreeMap<(Kind, Vec<u8>), Body>,
    /// When its lease is to be renewed, while it coordinates.
    renew_at: Option<Time>,
    /// How long the machine had been suspended when that was looked at last.
    suspended: Duration,
    /// What is on disk.
    stored: u64,
}

impl Replica {
    /// Opens the replica of a federation in a data directory: the epoch is raised, the last snapshot is read.
    pub fn open(config: ReplicaConfig) -> Result<Self, ReplicaError> {
        let ReplicaConfig { data_dir, federation, limits, incarnation, clock } = config;
        let epoch = data_dir.raise_epoch()?;
        let voice = Voice::new(data_dir.key().clone(), federation, incarnation, epoch, limits.clone());
        let now = clock.now();
        let bytes_max = limits.snapshot_bytes_max;
        let restored = data_dir.load_snapshot(federation, bytes_max, |bytes| {
            let mut registry = Registry::new(federation, limits.clone());
            let restored = snapshot::restore(bytes, &mut registry, now);
            restored.map(|restored| (registry, restored))
        })?;
        let mut registry = match restored {
            Some((registry, restored)) => {
                info!(records = restored.taken, refused = restored.refused, "the stored registry was read");
                registry
            }
            None => Registry::new(federation, limits),
        };
        registry.meet(now, voice.node());
        let stored = registry.generation();
        let suspended = clock.suspended();
        let state = State { registry, voice, says: BTreeMap::new(), renew_at: None, suspended, stored };
        Ok(Self(Arc::new(Shared {
            data_dir,
            clock,
            state: Mutex::new(state),
            generation: watch::Sender::new(stored),
            record: watch::Sender::new(Bytes::new()),
            hurry: broadcast::Sender::new(HURRIED_MAX),
            guest_news: broadcast::Sender::new(HURRIED_MAX),
            failure: watch::Sender::new(None),
        })))
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.0.data_dir.id()
    }

    /// The epoch in which it speaks now.
    pub fn epoch(&self) -> u64 {
        self.0.lock().voice.epoch()
    }

    /// Says what the node is and offers, from now on.
    pub fn announce(&self, record: NodeRecord) -> Result<(), ReplicaError> {
        self.change(|shared, state, now| {
            state.renew_at = record.roles.coordinates().then_some(now);
            shared.say(state, now, Body::Node(record))?;
            shared.renew(state, now)
        })
    }

    /// Says something else of the node's own: an attachment, a guest.
    pub fn say(&self, body: Body) -> Result<(), ReplicaError> {
        self.change(|shared, state, now| shared.say(state, now, body))
    }

    /// Says that the node goes; nothing that it said before counts any more. Returns the record, for those with whom
    /// there is a connection.
    pub fn leave(&self) -> Result<Bytes, ReplicaError> {
        self.change(|shared, state, now| {
            state.says.clear();
            state.renew_at = None;
            shared.say(state, now, Body::Leave)?;
            // It is not said again: after a jump there is nothing left that it would have to cover.
            state.says.clear();
            let left = state.registry.records_of(&shared.data_dir.id()).find(|signed| signed.kind() == Kind::LEAVE);
            Ok(left.map(|signed| signed.bytes().clone()).unwrap_or_default())
        })
    }

    /// The node's own record, as it is signed by now; empty until [`Replica::announce`].
    pub fn record(&self) -> watch::Receiver<Bytes> {
        self.0.record.subscribe()
    }

    /// Changes whenever the registry does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Looks at the registry. Short work only: everything else waits.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.0.lock().registry)
    }

    /// A connection that proves a node's key has come up.
    pub fn meet(&self, node: NodeId) {
        self.change(|_, state, now| state.registry.meet(now, node));
    }

    /// One that [`Replica::meet`] told of has gone.
    pub fn part(&self, node: NodeId) {
        self.change(|_, state, now| state.registry.part(now, node));
    }

    /// Takes a record from elsewhere. What comes from its writer itself is hurried along to the other coordinators.
    pub fn insert(&self, bytes: Bytes, source: Source) -> Result<Outcome, Refused> {
        match self.insert_if(bytes, source, |_, _| Ok::<(), Infallible>(())) {
            Ok(outcome) => Ok(outcome),
            Err(NotTaken::Bad(error)) => Err(error.into()),
            Err(NotTaken::Refused(refused)) => Err(refused),
            Err(NotTaken::Objection(never)) => match never {},
        }
    }

    /// Takes a record from elsewhere if `judge` has no objection, which sees the registry as it is before.
    pub fn insert_if<O>(
        &self,
        bytes: Bytes,
        source: Source,
        judge: impl FnOnce(&Registry, &Record) -> Result<(), O>,
    ) -> Result<Outcome, NotTaken<O>> {
        let (federation, limits) = self.read(|registry| (registry.federation(), registry.limits().clone()));
        // The signature is the dear part, and needs no lock.
        let (signed, record) = Signed::open(bytes, federation, &limits).map_err(NotTaken::Bad)?;
        let outcome = self.change(|shared, state, now| {
            judge(&state.registry, &record).map_err(NotTaken::Objection)?;
            let outcome = state.registry.insert(now, signed.clone(), source).map_err(NotTaken::Refused)?;
            // An entry that holds the other one takes nothing that is not above it, whichever of two equals stands here.
            let not_below = outcome.is_news() || outcome == Outcome::ConflictIgnored;
            shared.met_record(state, now, &record, not_below);
            Ok(outcome)
        })?;
        if outcome.is_news() {
            self.0.tell_guest_news(&signed);
            if matches!(source, Source::Direct(_)) {
                self.0.hurry(signed.bytes());
            }
        }
        Ok(outcome)
    }

    /// Takes a message of a synchronisation, and of the records in it those that `accept` takes too.
    pub fn receive_if(
        &self,
        session: &mut Session,
        message: &[u8],
        accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<(), SyncError> {
        self.change(|shared, state, now| {
            let received = session.handle_judged(now, &mut state.registry, message, accept)?;
            if received.refused > 0 {
                debug!(refused = received.refused, "records of a peer were refused");
            }
            for signed in &received.news {
                shared.tell_guest_news(signed);
                // Only the node's own records mean something to it, and those are few.
                if signed.writer() == shared.data_dir.id()
                    && let Ok(record) = signed.read(state.registry.federation(), state.registry.limits())
                {
                    shared.met_record(state, now, &record, true);
                }
            }
            Ok(())
        })
    }

    /// All that this side has to say in its turn of a synchronisation.
    pub fn turn(&self, session: &mut Session) -> Vec<Vec<u8>> {
        self.change(|_, state, now| std::iter::from_fn(|| session.poll_transmit(now, &state.registry)).collect())
    }

    /// What this node says from now on, and what the nodes say that hand it their records: for gossip.
    pub fn hurry(&self) -> broadcast::Receiver<Bytes> {
        self.0.hurry.subscribe()
    }

    /// What other coordinators say of agents from now on. Whatever finds no room is missed: whoever listens looks round now and
    /// then.
    pub fn guest_news(&self) -> broadcast::Receiver<GuestNews> {
        self.0.guest_news.subscribe()
    }

    /// What makes the node known to another coordinator: its own record, and its lease.
    pub fn introduction(&self) -> Vec<Bytes> {
        let state = self.0.lock();
        let me = self.node();
        let own = state.registry.records_of(&me);
        own.filter(|signed| matches!(signed.kind(), Kind::NODE | Kind::LEASE))
            .map(|signed| signed.bytes().clone())
            .collect()
    }

    /// What is known of an agent without a key of ours: what coordinators have said of it, with the ages in milliseconds.
    pub fn guest_records(&self, worker_id: &str) -> Vec<(u64, Vec<u8>)> {
        self.change(|_, state, now| {
            let records = state.registry.guest_records(now, worker_id);
            let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            records.map(|(signed, age)| (ms(age), signed.bytes().to_vec())).collect()
        })
    }

    /// What a coordinator has said of an agent, as it signed it.
    pub fn guest_record_of(&self, coordinator: &NodeId, worker_id: &str) -> Option<Bytes> {
        self.read(|registry| {
            let mut records = registry.records_of(coordinator);
            let of_it = |signed: &&Signed| signed.kind() == Kind::GUEST && signed.subject() == worker_id.as_bytes();
            records.find(of_it).map(|signed| signed.bytes().clone())
        })
    }

    /// For how long the machine has been suspended since it booted.
    pub fn suspended(&self) -> Duration {
        self.0.clock.suspended()
    }

    /// The replica's clock.
    pub fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// Synchronises with a peer over a stream; `session` says which side begins.
    pub async fn sync_over<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        session: Session,
    ) -> Result<Traffic, SyncBroken> {
        let traffic = synchronise(stream, session, self).await?;
        debug!(sent = traffic.records_sent, messages = traffic.messages_sent, "synchronised");
        Ok(traffic)
    }

    /// Resolves when the replica cannot go on, with the reason.
    pub async fn failed(&self) -> Arc<ReplicaError> {
        let mut failure = self.0.failure.subscribe();
        match failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
            Some(failure) => failure,
            // The sender is ours: it cannot have gone.
            None => std::future::pending().await,
        }
    }

    /// Renews the lease, lets others' run out, and goes on disk, until `stop`; then goes on disk once more.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut changes = self.changes();
        let mut next_snapshot = self.0.clock.now() + SNAPSHOT_INTERVAL;
        loop {
            let (now, wake) = self.look();
            if now >= next_snapshot {
                next_snapshot = now + SNAPSHOT_INTERVAL;
                self.store().await;
            }
            let pause =
                wake.map_or(LOOK_INTERVAL, |wake| wake.since(now)).clamp(Duration::from_millis(1), LOOK_INTERVAL);
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(pause) => {}
                // Something may be due earlier now. Changes of one moment count as one.
                _ = changes.changed() => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        self.store().await;
    }

    /// Does what is due, and returns when it is due again.
    fn look(&self) -> (Time, Option<Time>) {
        self.change(|shared, state, now| {
            state.registry.handle_timeout(now);
            if let Err(error) = shared.renew(state, now) {
                shared.fail(error);
            }
            let expiry = state.registry.poll_timeout().map(|(at, ..)| at);
            (now, [expiry, state.renew_at].into_iter().flatten().min())
        })
    }

    /// Writes the registry to the disk, if it has changed. What cannot be written is said, and tried again later.
    pub async fn store(&self) {
        let (bytes, generation, federation) = {
            let state = self.0.lock();
            let generation = state.registry.generation();
            if generation == state.stored {
                return;
            }
            (snapshot::encode(&state.registry, self.0.clock.now()), generation, state.registry.federation())
        };
        let data_dir = &self.0.data_dir;
        let stored = data_dir.while_others_run(move |data_dir| data_dir.store_snapshot(federation, &bytes)).await;
        match stored {
            Ok(Ok(())) => self.0.lock().stored = generation,
            Ok(Err(error)) => warn!(%error, "the registry is not on disk: after a restart it is asked of a neighbour"),
            Err(error) => warn!(%error, "the registry is not on disk"),
        }
    }

    /// Changes the state, and tells those who wait.
    fn change<T>(&self, change: impl FnOnce(&Shared, &mut State, Time) -> T) -> T {
        let (result, generation) = {
            let mut state = self.0.lock();
            let now = self.0.now(&mut state);
            let result = change(&self.0, &mut state, now);
            (result, state.registry.generation())
        };
        self.0.generation.send_if_modified(|seen| std::mem::replace(seen, generation) != generation);
        result
    }
}

impl SyncReplica for Replica {
    fn transmit(&self, session: &mut Session) -> Option<Vec<u8>> {
        self.change(|_, state, now| session.poll_transmit(now, &state.registry))
    }

    fn receive(&self, session: &mut Session, message: &[u8]) -> Result<(), SyncError> {
        self.receive_if(session, message, |_, _| true)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The registry is whole after each call, also after one that panicked in a reader's closure.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now; after a suspend, nobody is taken for dead because of it.
    fn now(&self, state: &mut State) -> Time {
        let now = self.clock.now();
        let suspended = self.clock.suspended();
        if suspended.saturating_sub(state.suspended) >= SUSPEND_MIN {
            info!(for_s = (suspended - state.suspended).as_secs(), "the machine was suspended; leases are provisional");
            state.registry.suspended(now);
            state.suspended = suspended;
        }
        now
    }

    fn tell_guest_news(&self, signed: &Signed) {
        let coordinator = signed.writer();
        if signed.kind() == Kind::GUEST && coordinator != self.data_dir.id() {
            let worker_id = String::from_utf8_lossy(signed.subject()).into_owned();
            // An error says that nobody listens.
            let _ = self.guest_news.send(GuestNews { coordinator, worker_id });
        }
    }

    fn hurry(&self, record: &Bytes) {
        // An error says that nobody gossips.
        let _ = self.hurry.send(record.clone());
    }

    /// Signs something and puts it into the registry.
    fn say(&self, state: &mut State, now: Time, body: Body) -> Result<(), ReplicaError> {
        let signed = state.voice.sign(&body)?;
        let is_node = body.kind() == Kind::NODE;
        let place = (body.kind(), body.subject().to_vec());
        // What is over need not be said again: a jump leaves nothing behind that it would have to cover.
        match is_over(&body) {
            true => drop(state.says.remove(&place)),
            false => drop(state.says.insert(place, body)),
        }
        state.registry.insert(now, signed.clone(), Source::Own)?;
        self.hurry(signed.bytes());
        if is_node {
            self.record.send_replace(signed.bytes().clone());
        }
        Ok(())
    }

    /// Renews the lease, if it is time: at a third of what it lasts, so that two renewals may be lost.
    fn renew(&self, state: &mut State, now: Time) -> Result<(), ReplicaError> {
        if state.renew_at.is_some_and(|at| at <= now) {
            let ttl = state.registry.limits().lease_ttl(state.registry.coordinators_known().max(1));
            state.renew_at = Some(now + ttl / 3);
            self.say(state, now, Body::Lease(Lease { ttl }))?;
        }
        Ok(())
    }

    /// Looks whether a record is this node's own and above what it says: then it speaks above it, or stops. One that is `not_below`
    /// what stood in its place in the registry is not below the word of this process, if it has one to say there.
    fn met_record(&self, state: &mut State, now: Time, record: &Record, not_below: bool) {
        let contends = not_below && state.says.contains_key(&(record.body.kind(), record.body.subject().to_vec()));
        match state.voice.meet(now, record, contends) {
            Ok(Meeting::Nothing) => {}
            Ok(Meeting::Above { epoch }) => {
                if let Err(error) = self.jump(state, now, epoch) {
                    self.fail(error);
                }
            }
            Err(in_use) => self.fail(in_use.into()),
        }
    }

    /// Rare, so that the disk may be waited for right here.
    fn jump(&self, state: &mut State, now: Time, above: u64) -> Result<(), ReplicaError> {
        let epoch = self.data_dir.raise_epoch_above(above)?;
        info!(epoch, "a newer record of this node's own was met; everything is said again above it");
        state.voice.jump(now, epoch);
        let says: Vec<Body> = state.says.values().cloned().collect();
        says.into_iter().try_for_each(|body| self.say(state, now, body))
    }

    fn fail(&self, error: ReplicaError) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| Arc::new(error));
            first
        });
    }
}

/// Whether a record only says that something is no more.
fn is_over(body: &Body) -> bool {
    match body {
        Body::Attachment(attachment) => attachment.state == AttachmentState::Detached,
        Body::Guest(guest) => guest.details.status == GuestStatus::Gone,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
