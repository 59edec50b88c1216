//! A node's replica of the registry: it holds what everybody said, and says what the node itself has to say. Sans I/O.
//!
//! ```text
//!   what the node says ──▶ sign ──▶ registry ──▶ hurry: gossip
//!   records from elsewhere ────────▶ registry ──▶ guest news; from the writer itself: hurry
//!            └─ this node's own, and not below what it says ──▶ raise the epoch ──▶ everything is said again above it
//!   time ──▶ the lease is renewed, those of others run out
//! ```
//!
//! The shell keeps the disk, the clock and the lock. It takes the [`Event`]s after each input, so that they never pile up, and
//! answers [`Event::RaiseEpoch`] before the next one if it can.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Time;
use crate::id::NodeId;
use crate::own::{KeyInUse, Meeting, Voice};
use crate::record::{AttachmentState, Body, GuestStatus, Kind, Lease, NodeRecord, Record, RecordError, Signed};
use crate::registry::{self, Outcome, Refused, Registry, Source};
use crate::sync::{Received, Session, SyncError};

/// A suspend that is shorter than this loses no lease.
pub const SUSPEND_MIN: Duration = Duration::from_secs(10);

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

/// Why a node cannot say what it has to say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpeakError {
    /// It breaks a rule.
    #[error("this node's record cannot be signed: {0}")]
    Record(#[from] RecordError),
    /// It finds no room.
    #[error("this node's own record was refused: {0}")]
    Refused(#[from] Refused),
    /// Another process speaks with this node's key.
    #[error(transparent)]
    KeyInUse(#[from] KeyInUse),
}

/// What follows from an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A record that the other coordinators should know soon: gossip it.
    Hurry(Bytes),
    /// What another coordinator says of an agent has changed.
    GuestNews(GuestNews),
    /// The node's own record, as it is signed from now on.
    OwnRecord(Bytes),
    /// A newer record of this node's own was met. Raise the epoch above this one on the disk, then call
    /// [`Core::epoch_raised`].
    RaiseEpoch {
        /// The epoch to be above.
        above: u64,
    },
    /// The node cannot go on speaking: it should stop.
    Failed(SpeakError),
}

/// Why the replica wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The node's own lease is to be renewed.
    RenewLease,
    /// Something is due about a writer.
    Registry(NodeId, registry::Wake),
}

/// The replica.
#[derive(Debug, Clone)]
pub struct Core {
    registry: Registry,
    voice: Voice,
    /// What the node says, by kind and subject: said again when it has to jump.
    says: BTreeMap<(Kind, Vec<u8>), Signed>,
    /// When its lease is to be renewed, while it coordinates.
    renew_at: Option<Time>,
    /// How long the machine had been suspended when that was looked at last.
    suspended: Duration,
    /// The epoch above which the disk is asked to go.
    raising_above: Option<u64>,
    events: VecDeque<Event>,
}

impl Core {
    /// The replica of a process that has just started: with what was read from its disk, or an empty registry.
    /// `suspended`: for how long the machine has been suspended since it booted.
    pub fn new(now: Time, voice: Voice, mut registry: Registry, suspended: Duration) -> Self {
        registry.meet(now, voice.node());
        Self {
            registry,
            voice,
            says: BTreeMap::new(),
            renew_at: None,
            suspended,
            raising_above: None,
            events: VecDeque::new(),
        }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.voice.node()
    }

    /// The epoch in which it speaks now.
    pub fn epoch(&self) -> u64 {
        self.voice.epoch()
    }

    /// What everybody said.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What follows from the inputs so far, one after the other.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Core::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Time, Wake)> {
        let registry = self.registry.poll_timeout().map(|(at, id, wake)| (at, Wake::Registry(id, wake)));
        let renewal = self.renew_at.map(|at| (at, Wake::RenewLease));
        [renewal, registry].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Does what is due. `suspended`: as for [`Core::handle_suspended`].
    pub fn handle_timeout(&mut self, now: Time, suspended: Duration) {
        self.handle_suspended(now, suspended);
        self.registry.handle_timeout(now);
        if let Err(error) = self.renew(now) {
            self.events.push_back(Event::Failed(error));
        }
    }

    /// After a suspend, nobody is taken for dead because of it. `suspended` is for how long the machine has been suspended
    /// since it booted; it is to be said before any other input of that moment. Returns how long the one was that has just
    /// ended.
    pub fn handle_suspended(&mut self, now: Time, suspended: Duration) -> Option<Duration> {
        let since = suspended.saturating_sub(self.suspended);
        if since < SUSPEND_MIN {
            return None;
        }
        self.registry.suspended(now);
        self.suspended = suspended;
        Some(since)
    }

    /// Says what the node is and offers, from now on.
    pub fn announce(&mut self, now: Time, record: NodeRecord) -> Result<(), SpeakError> {
        self.renew_at = record.roles.coordinates().then_some(now);
        self.say(now, Body::Node(record))?;
        self.renew(now)
    }

    /// Says something: of the node itself, an attachment, a guest.
    pub fn say(&mut self, now: Time, body: Body) -> Result<(), SpeakError> {
        let signed = self.voice.sign(&body)?;
        let is_node = body.kind() == Kind::NODE;
        let place = (body.kind(), body.subject().to_vec());
        // What is over need not be said again: a jump leaves nothing behind that it would have to cover.
        match is_over(&body) {
            true => drop(self.says.remove(&place)),
            false => drop(self.says.insert(place, signed.clone())),
        }
        self.registry.insert(now, signed.clone(), Source::Own)?;
        self.events.push_back(Event::Hurry(signed.bytes().clone()));
        if is_node {
            self.events.push_back(Event::OwnRecord(signed.bytes().clone()));
        }
        Ok(())
    }

    /// Says that the node goes; nothing that it said before counts any more. Returns the record, for those with whom
    /// there is a connection.
    pub fn leave(&mut self, now: Time) -> Result<Bytes, SpeakError> {
        self.says.clear();
        self.renew_at = None;
        self.say(now, Body::Leave)?;
        // It is not said again: after a jump there is nothing left that it would have to cover.
        self.says.clear();
        let left = self.registry.records_of(&self.node()).find(|signed| signed.kind() == Kind::LEAVE);
        Ok(left.map(|signed| signed.bytes().clone()).unwrap_or_default())
    }

    /// A connection that proves a node's key has come up.
    pub fn meet(&mut self, now: Time, node: NodeId) {
        self.registry.meet(now, node);
    }

    /// One that [`Core::meet`] told of has gone.
    pub fn part(&mut self, now: Time, node: NodeId) {
        self.registry.part(now, node);
    }

    /// Takes a record from elsewhere if `judge` has no objection, which sees the registry as it is before. What comes from
    /// its writer itself is hurried along to the other coordinators.
    pub fn insert_if<O>(
        &mut self,
        now: Time,
        bytes: Bytes,
        source: Source,
        judge: impl FnOnce(&Registry, &Record) -> Result<(), O>,
    ) -> Result<Outcome, NotTaken<O>> {
        let signed = self.registry.open(bytes).map_err(NotTaken::Bad)?;
        self.insert_opened(now, &signed, source, judge)
    }

    /// [`Core::insert_if`] of a record whose signature has been verified: the dear part, for which a shell needs no lock.
    pub fn insert_opened<O>(
        &mut self,
        now: Time,
        signed: &Signed,
        source: Source,
        judge: impl FnOnce(&Registry, &Record) -> Result<(), O>,
    ) -> Result<Outcome, NotTaken<O>> {
        let record = signed.record();
        judge(&self.registry, record).map_err(NotTaken::Objection)?;
        let outcome = self.registry.insert(now, signed.clone(), source).map_err(NotTaken::Refused)?;
        // An entry that holds the other one takes nothing that is not above it, whichever of two equals stands here.
        self.met_record(now, record, outcome.is_news() || outcome == Outcome::ConflictIgnored);
        if outcome.is_news() {
            self.tell_guest_news(signed);
            if matches!(source, Source::Direct(_)) {
                self.events.push_back(Event::Hurry(signed.bytes().clone()));
            }
        }
        Ok(outcome)
    }

    /// Takes a message of a synchronisation, and of the records in it those that `accept` takes too.
    pub fn receive_if(
        &mut self,
        now: Time,
        session: &mut Session,
        message: &[u8],
        accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<Received, SyncError> {
        let received = session.handle_judged(now, &mut self.registry, message, accept)?;
        for signed in &received.news {
            self.tell_guest_news(signed);
            // Only the node's own records mean something to it, and those are few.
            if signed.writer() == self.node() {
                self.met_record(now, signed.record(), true);
            }
        }
        Ok(received)
    }

    /// All that this side has to say in its turn of a synchronisation.
    pub fn turn(&self, now: Time, session: &mut Session) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| session.poll_transmit(now, &self.registry)).collect()
    }

    /// What makes the node known to another coordinator: its own record, and its lease.
    pub fn introduction(&self) -> Vec<Bytes> {
        let me = self.node();
        let own = self.registry.records_of(&me);
        own.filter(|signed| matches!(signed.kind(), Kind::NODE | Kind::LEASE))
            .map(|signed| signed.bytes().clone())
            .collect()
    }

    /// What is known of an agent without a key of ours: what coordinators have said of it, with the ages in milliseconds.
    pub fn guest_records(&self, now: Time, worker_id: &str) -> Vec<(u64, Vec<u8>)> {
        let records = self.registry.guest_records(now, worker_id);
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        records.map(|(signed, age)| (ms(age), signed.bytes().to_vec())).collect()
    }

    /// The disk holds an epoch above the one that [`Event::RaiseEpoch`] named: everything is said again in it.
    pub fn epoch_raised(&mut self, now: Time, epoch: u64) {
        if self.raising_above.is_none_or(|above| epoch <= above) {
            // Nobody has asked, or a higher one has been met in the meantime and is being raised.
            return;
        }
        self.raising_above = None;
        self.voice.jump(now, epoch);
        let says: Vec<Body> = self.says.values().map(|signed| signed.record().body.clone()).collect();
        if let Err(error) = says.into_iter().try_for_each(|body| self.say(now, body)) {
            self.events.push_back(Event::Failed(error));
        }
    }

    /// Renews the lease, if it is time: at a third of what it lasts, so that two renewals may be lost.
    fn renew(&mut self, now: Time) -> Result<(), SpeakError> {
        if self.renew_at.is_some_and(|at| at <= now) {
            let ttl = self.registry.limits().lease_ttl(self.registry.coordinators_known().max(1));
            self.renew_at = Some(now + ttl / 3);
            self.say(now, Body::Lease(Lease { ttl }))?;
        }
        Ok(())
    }

    /// Looks whether a record is this node's own and above what it says: then it speaks above it, or stops. One that is `not_below`
    /// what stood in its place in the registry is not below the word of this process, if it has one to say there.
    fn met_record(&mut self, now: Time, record: &Record, not_below: bool) {
        // What it is about to jump over is one jump, however many records of it come in.
        if self.raising_above.is_some_and(|above| record.version.epoch <= above) {
            return;
        }
        let contends = not_below && self.says.contains_key(&(record.body.kind(), record.body.subject().to_vec()));
        match self.voice.meet(now, record, contends) {
            Ok(Meeting::Nothing) => {}
            Ok(Meeting::Above { epoch }) => {
                self.raising_above = Some(epoch);
                self.events.push_back(Event::RaiseEpoch { above: epoch });
            }
            Err(in_use) => self.events.push_back(Event::Failed(in_use.into())),
        }
    }

    fn tell_guest_news(&mut self, signed: &Signed) {
        let coordinator = signed.writer();
        if signed.kind() == Kind::GUEST && coordinator != self.node() {
            let worker_id = String::from_utf8_lossy(signed.subject()).into_owned();
            self.events.push_back(Event::GuestNews(GuestNews { coordinator, worker_id }));
        }
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
