//! A worker's side: which coordinator is tried next, and when; what is said of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::hints::Hints;
use crate::clock::Time;
use crate::id::NodeId;
use crate::record::Home;

/// How long one coordinator may take to be connected, before the next one is tried.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The pause before the same coordinators are tried again.
pub const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest of these pauses.
pub const RETRY_MAX: Duration = Duration::from_secs(10);
/// A coordinator that failed is tried after the others for this long.
pub const AVOID_FOR: Duration = Duration::from_secs(30);
/// A home that does not answer for this long is given up: another takes its place at the cost of three records.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(3);

/// A worker's moves are counted above those of its earlier runs: the epoch is the higher part of the count.
const MOVES_BITS: u32 = 20;

/// What a process that speaks in this epoch counts its moves from.
pub const fn moves_before(epoch: u64) -> u64 {
    epoch << MOVES_BITS
}

/// What happens to a worker. What is told of a coordinator that is not being tried any more means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The connection that [`Output::Connect`] asked for is up.
    Reached(NodeId),
    /// It is not to be had.
    NotReached(NodeId),
    /// The coordinator answered a ping; with the first answer it has taken the worker in. It answers pings once it holds the
    /// worker, not before.
    Pong(NodeId),
    /// The connection on which the worker has joined, or was to join, is no more; or the coordinator does not take it in.
    Ended(NodeId),
    /// There is something new among the hints.
    Heard,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Connect to this coordinator, and tell of it by [`Event::Reached`] or [`Event::NotReached`].
    Connect {
        /// Whom.
        home: NodeId,
        /// Where it listens, in its own words.
        addresses: Vec<String>,
    },
    /// Let go of the attempt to connect: it takes too long.
    GiveUp(NodeId),
    /// Say in the worker's record that this is its home, at this move, and then hand the record over there. First the one, then
    /// the other: a coordinator takes in who names it.
    Join(Home),
    /// The coordinator has taken the worker in.
    Settled(NodeId),
    /// The worker is there no longer, or it was never taken in: let go of what is left of the connection.
    Leave(NodeId),
}

/// Why a seeker wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// It has not begun yet.
    Begins,
    /// A coordinator takes too long to be connected.
    ConnectOverdue,
    /// All have been tried, and may be tried again.
    Retries,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Connecting {
        home: NodeId,
        until: Time,
    },
    /// Joining, or at home.
    Staying {
        home: NodeId,
        taken_in: bool,
    },
    Pausing {
        until: Time,
    },
}

/// Keeps one home for one worker.
#[derive(Debug, Clone)]
pub struct Seeker {
    me: NodeId,
    moves: u64,
    random: fastrand::Rng,
    state: State,
    /// Those that are still to be tried before a pause.
    round: VecDeque<(NodeId, Vec<String>)>,
    /// When it went wrong with whom.
    failed: BTreeMap<NodeId, Time>,
    pause: Duration,
    outputs: VecDeque<Output>,
}

impl Seeker {
    /// A worker without a home. Its moves are counted from `moves` on ([`moves_before`], or the last [`Home::home_seq`] of
    /// this run); `seed` is for jitter. It begins with the first [`Seeker::handle_timeout`].
    pub fn new(me: NodeId, moves: u64, seed: u64) -> Self {
        Self {
            me,
            moves,
            random: fastrand::Rng::with_seed(seed),
            state: State::New,
            round: VecDeque::new(),
            failed: BTreeMap::new(),
            pause: RETRY_MIN,
            outputs: VecDeque::new(),
        }
    }

    /// What is to be done next, in order. To be asked after every call, until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Seeker::handle_timeout`], and why. `None` while it has a home, or joins one.
    pub fn poll_timeout(&self) -> Option<(Time, Wake)> {
        match self.state {
            State::New => Some((Time::ORIGIN, Wake::Begins)),
            State::Connecting { until, .. } => Some((until, Wake::ConnectOverdue)),
            State::Staying { .. } => None,
            State::Pausing { until } => Some((until, Wake::Retries)),
        }
    }

    /// The coordinator that it joins, or has joined.
    pub fn staying(&self) -> Option<NodeId> {
        match self.state {
            State::Staying { home, .. } => Some(home),
            _ => None,
        }
    }

    /// The home that has taken it in.
    pub fn settled(&self) -> Option<NodeId> {
        match self.state {
            State::Staying { home, taken_in: true } => Some(home),
            _ => None,
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, hints: &Hints) {
        if self.poll_timeout().is_none_or(|(at, _)| now < at) {
            return;
        }
        match self.state {
            State::New | State::Pausing { .. } => self.begin(now, hints),
            State::Connecting { home, .. } => {
                self.outputs.push_back(Output::GiveUp(home));
                self.missed(now, home);
            }
            State::Staying { .. } => {}
        }
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now: Time, event: Event, hints: &Hints) {
        match (event, self.state) {
            (Event::Reached(from), State::Connecting { home, .. }) if from == home => {
                self.moves = self.moves.saturating_add(1);
                self.outputs.push_back(Output::Join(Home { coordinator: home, home_seq: self.moves }));
                self.state = State::Staying { home, taken_in: false };
            }
            (Event::NotReached(from), State::Connecting { home, .. }) if from == home => self.missed(now, home),
            (Event::Pong(from), State::Staying { home, taken_in: false }) if from == home => {
                self.outputs.push_back(Output::Settled(home));
                self.state = State::Staying { home, taken_in: true };
            }
            (Event::Ended(from), State::Staying { home, taken_in }) if from == home => {
                self.outputs.push_back(Output::Leave(home));
                if taken_in {
                    // It had a home until now: the next one is sought at once.
                    self.failed.insert(home, now);
                    self.pause = RETRY_MIN;
                    self.begin(now, hints);
                } else {
                    self.missed(now, home);
                }
            }
            (Event::Heard, State::Pausing { .. }) => self.begin(now, hints),
            _ => {}
        }
    }

    /// Begins a round: all that are known, the best first; after the others those that failed of late, and last those that are only
    /// said to be on the LAN.
    fn begin(&mut self, now: Time, hints: &Hints) {
        // What is not known any more will not be tried.
        self.failed.retain(|node, at| now.since(*at) < AVOID_FOR && hints.contains(node));
        // One that has been a coordinator has been told of itself, and is nobody's home any more.
        let others = hints.all().filter(|(node, _)| *node != self.me);
        let mut round: Vec<_> = others.collect();
        round.sort_by_cached_key(|(node, _)| {
            (!hints.is_signed(node), self.failed.contains_key(node), Reverse(self.weight(node)))
        });
        self.round = round.into();
        self.try_next(now);
    }

    fn missed(&mut self, now: Time, home: NodeId) {
        self.failed.insert(home, now);
        self.try_next(now);
    }

    fn try_next(&mut self, now: Time) {
        if let Some((home, addresses)) = self.round.pop_front() {
            self.state = State::Connecting { home, until: now + CONNECT_WITHIN };
            self.outputs.push_back(Output::Connect { home, addresses });
            return;
        }
        // Jitter: those who have lost the same home must not come back together.
        let jittered = self.pause.mul_f32(0.5 + 0.5 * self.random.f32());
        self.pause = (self.pause * 2).min(RETRY_MAX);
        self.state = State::Pausing { until: now + jittered };
    }

    /// How well a coordinator suits this worker: the rendezvous hash spreads workers evenly, and moves few when one goes.
    fn weight(&self, coordinator: &NodeId) -> [u8; 32] {
        Sha256::new().chain_update(self.me.0).chain_update(coordinator.0).finalize().into()
    }
}
