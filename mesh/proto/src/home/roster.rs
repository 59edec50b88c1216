//! A coordinator's side: the workers whose home it is, and what it says of them.
//!
//! ```text
//!   connection up ── Attached(home_seq) ──▶ … ── lost ── 5 s ── Detached(home_seq) ──▶
//!                          ▲                       │
//!                          └────── here again ◀────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::Time;
use crate::frame::{Reject, RejectReason, close};
use crate::id::NodeId;
use crate::limits::Limits;
use crate::record::{Attachment, AttachmentState, Record, Signed};
use crate::registry::Registry;

/// How long a lost connection may take to come back before its worker counts as gone.
pub const DETACH_AFTER: Duration = Duration::from_secs(5);
/// How long changes are gathered before workers are told of them.
pub const TELL_AFTER: Duration = Duration::from_secs(1);
/// Coordinators of which others are told at once: enough to find the rest from, and well below a control message.
pub const COORDINATORS_TOLD_MAX: usize = 8;

/// What is to be done, about connections of type `C`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<C> {
    /// The worker is here: [`Registry::meet`].
    Meet(NodeId),
    /// It is here no longer: [`Registry::part`].
    Part(NodeId),
    /// The worker's own word, for the registry.
    Take(Signed),
    /// What this coordinator says from now on.
    Say(Attachment),
    /// Tell the worker of other coordinators ([`told_of`]).
    Tell(C),
    /// Close the connection.
    Close {
        /// Which.
        connection: C,
        /// Of [`close`].
        code: u32,
        /// For the log at the other end.
        reason: &'static str,
    },
}

/// Why a roster wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A worker has been away for so long that it counts as gone.
    Detaches,
    /// Changes have been gathered for long enough: workers are told of them.
    Tells,
}

/// One worker that is here.
#[derive(Debug, Clone)]
struct Held<C> {
    home_seq: u64,
    /// A number of the connection's own.
    id: u64,
    connection: C,
    /// It has said that it leaves: its connection's end is the end.
    left: bool,
}

/// The workers that one coordinator holds, over connections of type `C`: tunnels, or a simulation's numbers.
#[derive(Debug, Clone)]
pub struct Roster<C> {
    me: NodeId,
    held_max: usize,
    held: BTreeMap<NodeId, Held<C>>,
    /// Those whose connection was lost: when they count as gone, and the move at which they were here.
    lost: BTreeMap<NodeId, (Time, u64)>,
    /// The same, by when.
    detaches: BTreeSet<(Time, NodeId)>,
    /// When changes of the registry have been gathered for long enough.
    tell_at: Option<Time>,
    /// The coordinators, with their addresses, as workers know them.
    told: Vec<(NodeId, Vec<String>)>,
    outputs: VecDeque<Output<C>>,
}

impl<C: Clone> Roster<C> {
    /// Nobody yet. No more than [`Limits::attachments_per_sponsor_max`] are taken in: others would not believe more.
    pub fn new(me: NodeId, limits: &Limits) -> Self {
        Self {
            me,
            held_max: limits.attachments_per_sponsor_max,
            held: BTreeMap::new(),
            lost: BTreeMap::new(),
            detaches: BTreeSet::new(),
            tell_at: None,
            told: Vec::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The connection to a worker that is here.
    pub fn connection(&self, worker: &NodeId) -> Option<&C> {
        self.held.get(worker).map(|held| &held.connection)
    }

    /// The connections to all that are here, in order of worker.
    pub fn connections(&self) -> impl Iterator<Item = &C> {
        self.held.values().map(|held| &held.connection)
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What is to be done next, in order. To be asked after every call, until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output<C>> {
        self.outputs.pop_front()
    }

    /// When to call [`Roster::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Time, Wake)> {
        let detach = self.detaches.first().map(|(at, _)| (*at, Wake::Detaches));
        detach.into_iter().chain(self.tell_at.map(|at| (at, Wake::Tells))).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, registry: &Registry) {
        while let Some(&(at, worker)) = self.detaches.first()
            && at <= now
            && let Some(home_seq) = self.found(&worker)
        {
            self.say(worker, home_seq, AttachmentState::Detached);
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            self.tell(registry);
        }
    }

    /// The registry may show other coordinators now.
    pub fn registry_changed(&mut self, now: Time) {
        self.tell_at.get_or_insert(now + TELL_AFTER);
    }

    /// Whether this worker would be taken in with this record: if it names this coordinator as its home, while there is room.
    /// Asked before the worker is welcomed.
    pub fn admit(&self, worker: &NodeId, record: &Record) -> Result<(), Reject> {
        let reject = |reason, message: &str| Err(Reject { reason, message: message.into(), record: None });
        if home_seq(&self.me, record).is_none() {
            return reject(RejectReason::Record, "the record does not name this coordinator as the worker's home");
        }
        if self.held.len() >= self.held_max && !self.held.contains_key(worker) {
            return reject(RejectReason::Overloaded, "this coordinator holds as many workers as it may");
        }
        Ok(())
    }

    /// A worker that was admitted has been welcomed, on a connection of this number, which no other has had. Returns whether it
    /// is here now; if not, the connection is of no use.
    pub fn arrived(&mut self, id: u64, connection: C, signed: Signed, record: &Record) -> bool {
        let (worker, Some(home_seq)) = (record.writer, home_seq(&self.me, record)) else { return false };
        let held = Held { home_seq, id, connection: connection.clone(), left: false };
        match self.held.insert(worker, held) {
            Some(old) => self.outputs.push_back(Output::Close {
                connection: old.connection,
                code: close::REPLACED,
                reason: "a newer connection of this worker takes the place of this one",
            }),
            None => self.outputs.push_back(Output::Meet(worker)),
        }
        self.found(&worker);
        self.outputs.push_back(Output::Take(signed));
        self.say(worker, home_seq, AttachmentState::Attached);
        self.outputs.push_back(Output::Tell(connection));
        true
    }

    /// A worker says something new of itself, over the connection of this number. It may count another move to the same home, as
    /// it does after it has come back. One that has moved elsewhere is held until its connection ends, which it will.
    pub fn said(&mut self, id: u64, signed: Signed, record: &Record) {
        self.outputs.push_back(Output::Take(signed));
        let worker = record.writer;
        let Some(home_seq) = home_seq(&self.me, record) else { return };
        let Some(held) = self.held.get_mut(&worker).filter(|held| held.id == id) else { return };
        if std::mem::replace(&mut held.home_seq, home_seq) != home_seq {
            self.say(worker, home_seq, AttachmentState::Attached);
        }
    }

    /// A worker says Leave, over the connection of this number.
    pub fn left(&mut self, id: u64, signed: Signed) {
        if let Some(held) = self.held.get_mut(&signed.writer()).filter(|held| held.id == id) {
            held.left = true;
        }
        self.outputs.push_back(Output::Take(signed));
    }

    /// The connection of this number is no more.
    pub fn ended(&mut self, now: Time, worker: NodeId, id: u64) {
        let Some(held) = self.held.get(&worker).filter(|held| held.id == id) else { return };
        let (home_seq, left) = (held.home_seq, held.left);
        self.held.remove(&worker);
        self.outputs.push_back(Output::Part(worker));
        // No more are waited for than may be here.
        if left || self.lost.len() >= self.held_max {
            self.say(worker, home_seq, AttachmentState::Detached);
        } else {
            let at = now + DETACH_AFTER;
            self.lost.insert(worker, (at, home_seq));
            self.detaches.insert((at, worker));
        }
    }

    /// Lets all go: this node is a coordinator no longer.
    pub fn let_go(&mut self) {
        for (worker, Held { home_seq, connection, .. }) in std::mem::take(&mut self.held) {
            self.outputs.push_back(Output::Part(worker));
            self.say(worker, home_seq, AttachmentState::Detached);
            let reason = "this node is a coordinator no longer";
            self.outputs.push_back(Output::Close { connection, code: close::GOING, reason });
        }
        for (worker, (_, home_seq)) in std::mem::take(&mut self.lost) {
            self.say(worker, home_seq, AttachmentState::Detached);
        }
        self.detaches.clear();
        (self.tell_at, self.told) = (None, Vec::new());
    }

    /// A worker is waited for no longer. Returns the move at which it was here.
    fn found(&mut self, worker: &NodeId) -> Option<u64> {
        let (at, home_seq) = self.lost.remove(worker)?;
        self.detaches.remove(&(at, *worker));
        Some(home_seq)
    }

    /// Tells every worker here of the coordinators, if they are others than before: where to go if this one dies.
    fn tell(&mut self, registry: &Registry) {
        let now = || registry.coordinators().map(|view| (view.record.writer, &view.node.multiaddrs));
        if now().eq(self.told.iter().map(|(node, addresses)| (*node, addresses))) {
            return;
        }
        self.told = now().map(|(node, addresses)| (node, addresses.clone())).collect();
        self.outputs.extend(self.held.values().map(|held| Output::Tell(held.connection.clone())));
    }

    fn say(&mut self, worker: NodeId, home_seq: u64, state: AttachmentState) {
        self.outputs.push_back(Output::Say(Attachment { worker, home_seq, state }));
    }
}

/// The move that a worker counts, if it names `me` as its home.
pub fn home_seq(me: &NodeId, record: &Record) -> Option<u64> {
    record.node()?.home.filter(|home| home.coordinator == *me).map(|home| home.home_seq)
}

/// What workers at home with `me` are told of other coordinators: the signed records of some that can be dialled. If there are
/// none, nothing is told.
pub fn told_of(me: &NodeId, registry: &Registry) -> Vec<Vec<u8>> {
    let others = registry.coordinators().filter(|view| view.record.writer != *me);
    let dialable = others.filter(|view| !view.node.multiaddrs.is_empty());
    dialable.take(COORDINATORS_TOLD_MAX).map(|view| view.signed.bytes().to_vec()).collect()
}
