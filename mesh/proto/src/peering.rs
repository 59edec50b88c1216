//! A coordinator among the others: whom it is connected to, what it asks them, and what it takes from them. Sans I/O.
//!
//! ```text
//!   handle_timeout ─▶ Dial(node) … connected ─▶ Request(introduction) … answered ─▶ Request(turn of a synchronisation) … answered ─▶ …
//!                     every second, with a random neighbour ───────────────────────▶ Request(turn) …
//!   hurry(record) ──▶ Publish             gossiped(record) ─▶ accept, ignore, reject     requested(…) ─▶ reply
//!   whoever goes on with what is not worth having ─▶ Block … Unblock
//! ```
//!
//! Peers are nodes, and connections prove whose they are. What carries all this, and takes the [`Event`]s after each input so
//! that they never pile up, is the shell's: libp2p in the binaries, memory in the simulation. Calls of the existing contract and
//! Kademlia do not pass through here. Whom to believe what is [`judge`]'s matter; whom to be connected to, [`neighbours`]'.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Time;
use crate::id::NodeId;
use crate::peer::{Call, PeerRequest, PeerResponse};
use crate::record::{Record, RecordError};
use crate::registry::{Outcome, Refused, Registry, Source};
use crate::replica::{Core, NotTaken};
use crate::sync::{Received, Session, SyncError};

mod bucket;
mod gossip;
mod judge;
mod neighbours;
mod questions;
mod requests;

pub use gossip::Acceptance;
pub use judge::Objection;
pub use questions::{Conclusion, Question, QuestionId};

use judge::{Fault, Judge};
use neighbours::Neighbours;
use questions::Questions;
use requests::Requests;

/// How often a neighbour is asked what differs, within a quarter. Equal registries cost two short messages.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whom to dial and whom to pardon.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often one is tried that has lapsed, as serf does with those that failed: it may only have been out of reach, and there need be no
/// entry to tell that it is back.
const LOOK_BACK_INTERVAL: Duration = Duration::from_secs(30);

/// By which of the two ways records travel. Both, but in tests that show what each is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replication {
    /// Gossip hurries, synchronisation converges.
    #[default]
    Both,
    /// Nothing is published, and nothing that others publish is heard.
    WithoutGossip,
    /// What gossip loses is lost.
    WithoutSync,
}

impl Replication {
    /// Whether records are published, and what others publish is heard.
    pub fn gossips(self) -> bool {
        self != Self::WithoutGossip
    }

    /// Whether neighbours are asked what differs.
    pub fn synchronises(self) -> bool {
        self != Self::WithoutSync
    }
}

/// The replica of this node, as it is called from here: [`Core`] itself, or whatever keeps one behind a lock and has a
/// clock of its own.
pub trait Replica {
    /// Looks at the registry. Short work only.
    fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T;
    /// See [`Core::meet`].
    fn meet(&mut self, now: Time, node: NodeId);
    /// See [`Core::part`].
    fn part(&mut self, now: Time, node: NodeId);
    /// See [`Core::insert_if`].
    fn insert_if<O>(
        &mut self,
        now: Time,
        bytes: Bytes,
        source: Source,
        judge: impl FnOnce(&Registry, &Record) -> Result<(), O>,
    ) -> Result<Outcome, NotTaken<O>>;
    /// See [`Core::receive_if`].
    fn receive_if(
        &mut self,
        now: Time,
        session: &mut Session,
        message: &[u8],
        accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<Received, SyncError>;
    /// See [`Core::turn`].
    fn turn(&mut self, now: Time, session: &mut Session) -> Vec<Vec<u8>>;
    /// See [`Core::introduction`].
    fn introduction(&self) -> Vec<Bytes>;
    /// See [`Core::guest_records`].
    fn guest_records(&self, now: Time, worker_id: &str) -> Vec<(u64, Vec<u8>)>;
}

impl Replica for Core {
    fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(self.registry())
    }

    fn meet(&mut self, now: Time, node: NodeId) {
        self.meet(now, node);
    }

    fn part(&mut self, now: Time, node: NodeId) {
        self.part(now, node);
    }

    fn insert_if<O>(
        &mut self,
        now: Time,
        bytes: Bytes,
        source: Source,
        judge: impl FnOnce(&Registry, &Record) -> Result<(), O>,
    ) -> Result<Outcome, NotTaken<O>> {
        self.insert_if(now, bytes, source, judge)
    }

    fn receive_if(
        &mut self,
        now: Time,
        session: &mut Session,
        message: &[u8],
        accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<Received, SyncError> {
        self.receive_if(now, session, message, accept)
    }

    fn turn(&mut self, now: Time, session: &mut Session) -> Vec<Vec<u8>> {
        Core::turn(self, now, session)
    }

    fn introduction(&self) -> Vec<Bytes> {
        self.introduction()
    }

    fn guest_records(&self, now: Time, worker_id: &str) -> Vec<(u64, Vec<u8>)> {
        self.guest_records(now, worker_id)
    }
}

/// A request that this core has sent, until it is answered or has come to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What a peer of this federation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It holds a registry.
    Coordinator,
    /// It holds none.
    Worker,
}

/// How a peer's request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// By this, now.
    Now(PeerResponse),
    /// By whoever answers calls of the existing contract: the peer is a connected coordinator.
    Call(Call),
}

/// What a peer did that it should not have, or need not have. Of use to who reads the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Complaint {
    /// What it sent is no record.
    #[error("no record: {0}")]
    NoRecord(RecordError),
    /// It is not for this peer to say.
    #[error(transparent)]
    Objection(Objection),
    /// There is no room for it: that is no fault of the peer.
    #[error(transparent)]
    Refused(Refused),
    /// A synchronisation broke off.
    #[error(transparent)]
    Synchronisation(SyncError),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Connect to this coordinator, at one of these addresses. Then comes [`Peering::connected`], or [`Peering::dial_failed`].
    Dial {
        /// Whom.
        node: NodeId,
        /// Where, as it has signed it.
        addresses: Vec<String>,
    },
    /// Ask a connected peer. Then comes [`Peering::answered`] or [`Peering::unanswered`], or the end of the connection.
    Request {
        /// To be given back with the answer.
        id: RequestId,
        /// Whom.
        to: NodeId,
        /// What.
        request: PeerRequest,
    },
    /// Gossip this record.
    Publish(Bytes),
    /// Cut this peer off, and have nothing to do with it.
    Block(NodeId),
    /// Let it come again.
    Unblock(NodeId),
    /// A synchronisation with this neighbour that this node had begun is over, whatever became of it.
    SynchronisationEnded(NodeId),
    /// A question to the neighbours is over.
    Concluded(QuestionId, Conclusion),
    /// Something of this peer's was not taken. Nothing is to be done.
    Complaint(NodeId, Complaint),
}

/// Why a coordinator wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Somebody may have to be dialled or pardoned.
    Look,
    /// A neighbour is to be asked what differs.
    Synchronise,
    /// The time of a question is over.
    Conclude,
}

/// A coordinator among the others.
#[derive(Debug)]
pub struct Peering {
    replication: Replication,
    judge: Judge,
    neighbours: Neighbours,
    /// The generation of the registry's nodes that the neighbours were chosen from.
    seen: Option<u64>,
    /// Connected peers of the federation.
    peers: BTreeSet<NodeId>,
    /// Those of them that coordinate.
    coordinators: BTreeSet<NodeId>,
    requests: Requests,
    questions: Questions,
    look_at: Time,
    look_back_at: Time,
    synchronise_at: Time,
    random: fastrand::Rng,
    events: VecDeque<Event>,
}

impl Peering {
    /// A coordinator that has just started. `seed` is for its choices and jitter.
    pub fn new(now: Time, me: NodeId, replication: Replication, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            replication,
            judge: Judge::default(),
            neighbours: Neighbours::new(me),
            seen: None,
            peers: BTreeSet::new(),
            coordinators: BTreeSet::new(),
            requests: Requests::default(),
            questions: Questions::default(),
            look_at: now,
            look_back_at: now,
            synchronise_at: now + SYNC_INTERVAL.mul_f32(random.f32()),
            random,
            events: VecDeque::new(),
        }
    }

    /// The coordinators that are connected.
    pub fn coordinators(&self) -> &BTreeSet<NodeId> {
        &self.coordinators
    }

    /// What is to be done, one after the other.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Peering::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> (Time, Wake) {
        let mut next = (self.look_at, Wake::Look);
        let others = [(Some(self.synchronise_at), Wake::Synchronise), (self.questions.next_end(), Wake::Conclude)];
        for (at, wake) in others {
            if let Some(at) = at.filter(|at| *at < next.0) {
                next = (at, wake);
            }
        }
        next
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, replica: &mut impl Replica) {
        if self.look_at <= now {
            self.look_at = now + LOOK_INTERVAL;
            self.look(now, replica);
            if self.look_back_at <= now {
                self.look_back_at = now + LOOK_BACK_INTERVAL;
                self.look_back(replica);
            }
            self.ask_again(now);
        }
        if self.synchronise_at <= now {
            self.synchronise_at = now + SYNC_INTERVAL.mul_f32(0.75 + 0.5 * self.random.f32());
            self.synchronise_with_somebody(now, replica);
        }
        self.conclude_overdue(now);
    }

    /// A connected peer has said that it is of this federation, and what it is. It may say so again, and become a coordinator.
    pub fn connected(&mut self, now: Time, replica: &mut impl Replica, node: NodeId, part: Part) {
        self.peers.insert(node);
        if part == Part::Worker {
            return;
        }
        self.neighbours.reached(&node);
        if self.coordinators.insert(node) {
            replica.meet(now, node);
            self.introduce(replica, node);
        }
    }

    /// The last connection to a peer has gone, whether or not it had said what it is.
    pub fn disconnected(&mut self, now: Time, replica: &mut impl Replica, node: NodeId) {
        self.judge.gone(&node);
        self.break_off(&node);
        self.peers.remove(&node);
        if self.coordinators.remove(&node) {
            self.neighbours.lost();
            replica.part(now, node);
        } else {
            // It was reached, and was none, or did not say so.
            self.missed(now, node);
        }
    }

    /// An attempt to connect has come to nothing.
    pub fn dial_failed(&mut self, now: Time, node: NodeId) {
        self.missed(now, node);
    }

    /// A peer has sent something that is not even a message: no honest program does.
    pub fn garbled(&mut self, now: Time, from: NodeId) {
        self.fault(now, from, Fault::Wrong);
    }

    /// What kept others from being reached may be over: those that failed are due at the next look.
    pub fn try_again(&mut self) {
        self.neighbours.try_again();
    }

    /// This node stops: whoever was met is not met any more.
    pub fn stop(&mut self, now: Time, replica: &mut impl Replica) {
        for node in std::mem::take(&mut self.coordinators) {
            replica.part(now, node);
        }
    }

    /// What is to be done now and then.
    fn look(&mut self, now: Time, replica: &impl Replica) {
        let pardoned = self.judge.pardoned(now);
        self.events.extend(pardoned.into_iter().map(Event::Unblock));
        replica.read(|registry| {
            if self.seen.replace(registry.nodes_generation()) != Some(registry.nodes_generation()) {
                self.judge.forget_strangers(registry);
                let dialable = registry.coordinator_nodes().filter(|(_, node)| !node.multiaddrs.is_empty());
                self.neighbours.know(dialable.map(|(id, _)| id).collect());
            }
            for node in self.neighbours.due(now, &self.coordinators) {
                let addresses = registry.node(&node).and_then(Record::node).map(|node| node.multiaddrs.clone());
                self.events.push_back(Event::Dial { node, addresses: addresses.unwrap_or_default() });
            }
        });
    }

    /// One of those that have lapsed is tried, whichever. What comes of it is of no account unless it is there: then it says so itself.
    fn look_back(&mut self, replica: &impl Replica) {
        replica.read(|registry| {
            let lapsed: Vec<_> =
                registry.lapsed_coordinators().filter(|(node, _)| !self.peers.contains(node)).collect();
            if let Some((node, record)) = self.random.choice(&lapsed) {
                self.events.push_back(Event::Dial { node: *node, addresses: record.multiaddrs.clone() });
            }
        });
    }

    fn missed(&mut self, now: Time, node: NodeId) {
        let jitter = self.random.f32();
        self.neighbours.missed(now, node, jitter);
    }

    /// A peer has done something that it should not have. True: it is cut off.
    fn fault(&mut self, now: Time, peer: NodeId, fault: Fault) -> bool {
        let block = self.judge.fault(now, peer, fault);
        if block {
            self.events.push_back(Event::Block(peer));
        }
        block
    }

    fn complain(&mut self, of: NodeId, complaint: Complaint) {
        self.events.push_back(Event::Complaint(of, complaint));
    }
}

#[cfg(test)]
mod tests;
