//! A node's replica of the registry, as the parts of a process share it. What it does is [`hedgerow_proto::replica`]'s; here are
//! the lock, the clock, the disk, and the channels on which others learn of what follows.
//!
//! Whoever changes something takes a lock for as long as that takes and never across an `await`; whoever wants to know
//! of changes waits on a watch channel.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_process::patience::{Patience, Say};
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::peering;
use hedgerow_proto::record::{Body, Kind, NodeRecord, Record, Signed};
use hedgerow_proto::registry::{Outcome, Refused, Registry, Source};
use hedgerow_proto::replica::{Core, Event};
pub use hedgerow_proto::replica::{GuestNews, NotTaken, SUSPEND_MIN, SpeakError};
use hedgerow_proto::snapshot::{self, Snapshot};
use hedgerow_proto::sync::{Received, Session, SyncError, Traffic};
use hedgerow_tunnel::sync::{SyncBroken, SyncReplica, synchronise};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, watch};
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::data_dir::{DataDir, DataDirError};

/// The replica looks at its clock this often at least: a timer of the runtime stands still while the machine is suspended.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Records that may wait to be gossiped. Whatever finds no room is synchronised.
const HURRIED_MAX: usize = 1024;

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The data directory does not do what it must.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node cannot say what it has to say.
    #[error(transparent)]
    Speak(#[from] SpeakError),
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
    core: Core,
    /// The generation of the registry that is on disk.
    stored: u64,
    /// How it is told that the disk takes nothing.
    disk: Patience,
}

impl Replica {
    /// Opens the replica of a federation in a data directory: the epoch is raised, the last snapshot is read.
    pub fn open(config: ReplicaConfig) -> Result<Self, ReplicaError> {
        let ReplicaConfig { data_dir, federation, limits, incarnation, clock } = config;
        let now = clock.now();
        let bytes_max = limits.snapshot_bytes_max;
        let restored = data_dir.load_snapshot(federation, bytes_max, |bytes| {
            let mut registry = Registry::new(federation, limits.clone());
            let restored = snapshot::restore(bytes, &mut registry, now);
            restored.map(|restored| (registry, restored))
        })?;
        let registry = match restored {
            Some((registry, restored)) => {
                info!(records = restored.taken, refused = restored.refused, "the stored registry was read");
                registry
            }
            None => Registry::new(federation, limits.clone()),
        };
        // Where the epoch was lost and the snapshot was not, neighbours that hold the same would never tell what this node said before.
        let said = registry.records_of(&data_dir.id()).map(|signed| signed.version().epoch).max();
        let epoch = data_dir.raise_epoch_above(said.unwrap_or(0))?;
        let voice = Voice::new(data_dir.key().clone(), federation, incarnation, epoch, limits);
        let core = Core::new(now, voice, registry, clock.suspended());
        let stored = core.registry().generation();
        Ok(Self(Arc::new(Shared {
            data_dir,
            clock,
            state: Mutex::new(State { core, stored, disk: Patience::default() }),
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

    /// The bounds of its registry.
    pub fn limits(&self) -> Limits {
        self.read(|registry| registry.limits().clone())
    }

    /// The epoch in which it speaks now.
    pub fn epoch(&self) -> u64 {
        self.0.lock().core.epoch()
    }

    /// Says what the node is and offers, from now on.
    pub fn announce(&self, record: NodeRecord) -> Result<(), ReplicaError> {
        self.change(|core, now| core.announce(now, record)).map_err(Into::into)
    }

    /// Says something else of the node's own: an attachment, a guest.
    pub fn say(&self, body: Body) -> Result<(), ReplicaError> {
        self.change(|core, now| core.say(now, body)).map_err(Into::into)
    }

    /// Says that the node goes; nothing that it said before counts any more. Returns the record, for those with whom
    /// there is a connection.
    pub fn leave(&self) -> Result<Bytes, ReplicaError> {
        self.change(Core::leave).map_err(Into::into)
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
        look(self.0.lock().core.registry())
    }

    /// A connection that proves a node's key has come up.
    pub fn meet(&self, node: NodeId) {
        self.change(|core, now| core.meet(now, node));
    }

    /// One that [`Replica::meet`] told of has gone.
    pub fn part(&self, node: NodeId) {
        self.change(|core, now| core.part(now, node));
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
        let signed = Signed::open(bytes, federation, &limits).map_err(NotTaken::Bad)?;
        self.change(|core, now| core.insert_opened(now, &signed, source, judge))
    }

    /// Takes a message of a synchronisation, and of the records in it those that `accept` takes too.
    pub fn receive_if(
        &self,
        session: &mut Session,
        message: &[u8],
        accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<Received, SyncError> {
        let received = self.change(|core, now| core.receive_if(now, session, message, accept))?;
        if received.refused > 0 {
            debug!(refused = received.refused, "records of a peer were refused");
        }
        Ok(received)
    }

    /// All that this side has to say in its turn of a synchronisation.
    pub fn turn(&self, session: &mut Session) -> Vec<Vec<u8>> {
        self.change(|core, now| core.turn(now, session))
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
        self.0.lock().core.introduction()
    }

    /// What is known of an agent without a key of ours: what coordinators have said of it, with the ages in milliseconds.
    pub fn guest_records(&self, worker_id: &str) -> Vec<(u64, Vec<u8>)> {
        self.change(|core, now| core.guest_records(now, worker_id))
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
        let mut next_snapshot = self.0.clock.now() + snapshot::FIRST_AFTER;
        loop {
            let (now, wake) = self.look();
            if now >= next_snapshot {
                next_snapshot = now + snapshot::INTERVAL;
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
        let suspended = self.0.clock.suspended();
        self.change(|core, now| {
            core.handle_timeout(now, suspended);
            (now, core.poll_timeout().map(|(at, _)| at))
        })
    }

    /// Writes the registry to the disk, if it has changed, and the epoch, if it is not there. What cannot be written is said, and tried
    /// again later.
    pub async fn store(&self) {
        let (snapshot, generation) = {
            let state = self.0.lock();
            let registry = state.core.registry();
            let generation = registry.generation();
            let changed = generation != state.stored;
            if !changed && self.0.data_dir.epoch_is_kept() {
                return;
            }
            (changed.then(|| Snapshot::take(registry, self.0.clock.now())), generation)
        };
        let write = move |data_dir: &DataDir| {
            data_dir.keep_epoch()?;
            snapshot.map_or(Ok(()), |snapshot| data_dir.store_snapshot(snapshot.federation(), &snapshot.encode()))
        };
        let stored = self.0.data_dir.while_others_run(write).await;
        let now = self.0.clock.now().since_origin();
        let mut state = self.0.lock();
        let error = match stored {
            Ok(Ok(())) => {
                state.stored = generation;
                if let Say::WorksAgain(after) = state.disk.worked(now) {
                    info!(after_s = after.as_secs(), "what this node knows is on disk again");
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        match state.disk.failed(now) {
            Say::Fails => warn!(
                error,
                "what this node knows is not on disk, and it goes on all the same; after a restart it asks its neighbours. It is tried \
                 again every {} s",
                snapshot::INTERVAL.as_secs()
            ),
            Say::StillFails(after) => {
                warn!(error, for_s = after.as_secs(), "what this node knows is still not on disk")
            }
            Say::WorksAgain(_) | Say::Nothing => {}
        }
    }

    /// Changes the registry, and tells those who wait.
    fn change<T>(&self, change: impl FnOnce(&mut Core, Time) -> T) -> T {
        let (result, generation) = {
            let mut state = self.0.lock();
            let core = &mut state.core;
            let now = self.0.clock.now();
            if let Some(asleep) = core.handle_suspended(now, self.0.clock.suspended()) {
                info!(for_s = asleep.as_secs(), "the machine was suspended; leases are provisional");
            }
            let result = change(core, now);
            self.0.follow(core, now);
            (result, core.registry().generation())
        };
        self.0.generation.send_if_modified(|seen| std::mem::replace(seen, generation) != generation);
        result
    }
}

impl SyncReplica for Replica {
    fn transmit(&self, session: &mut Session) -> Option<Vec<u8>> {
        self.change(|core, now| session.poll_transmit(now, core.registry()))
    }

    fn receive(&self, session: &mut Session, message: &[u8]) -> Result<(), SyncError> {
        self.receive_if(session, message, |_, _| true).map(drop)
    }
}

/// Each call takes the lock for itself and asks the replica's own clock.
impl peering::Replica for Replica {
    fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        self.read(look)
    }

    fn meet(&mut self, _: Time, node: NodeId) {
        Self::meet(self, node);
    }

    fn part(&mut self, _: Time, node: NodeId) {
        Self::part(self, node);
    }

    fn insert_if<O>(
        &mut self,
        _: Time,
        bytes: Bytes,
        source: Source,
        judge: impl FnOnce(&Registry, &Record) -> Result<(), O>,
    ) -> Result<Outcome, NotTaken<O>> {
        Self::insert_if(self, bytes, source, judge)
    }

    fn receive_if(
        &mut self,
        _: Time,
        session: &mut Session,
        message: &[u8],
        accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<Received, SyncError> {
        Self::receive_if(self, session, message, accept)
    }

    fn turn(&mut self, _: Time, session: &mut Session) -> Vec<Vec<u8>> {
        Self::turn(self, session)
    }

    fn introduction(&self) -> Vec<Bytes> {
        self.introduction()
    }

    fn guest_records(&self, _: Time, worker_id: &str) -> Vec<(u64, Vec<u8>)> {
        Self::guest_records(self, worker_id)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The registry is whole after each call, also after one that panicked in a reader's closure.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what follows from a change.
    fn follow(&self, core: &mut Core, now: Time) {
        while let Some(event) = core.poll_event() {
            match event {
                // An error says that nobody gossips, or that nobody listens.
                Event::Hurry(record) => drop(self.hurry.send(record)),
                Event::GuestNews(news) => drop(self.guest_news.send(news)),
                Event::OwnRecord(record) => drop(self.record.send_replace(record)),
                // Rare, so that the disk may be waited for right here.
                Event::RaiseEpoch { above } => match self.data_dir.raise_epoch_above(above) {
                    Ok(epoch) => {
                        info!(epoch, "a newer record of this node's own was met; everything is said again above it");
                        core.epoch_raised(now, epoch);
                    }
                    Err(error) => self.fail(error.into()),
                },
                Event::Failed(error) => self.fail(error.into()),
            }
        }
    }

    fn fail(&self, error: ReplicaError) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| Arc::new(error));
            first
        });
    }
}

#[cfg(test)]
mod tests;
