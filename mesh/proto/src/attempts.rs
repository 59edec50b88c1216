//! One request's attempts, one after another: who is asked next, when it waits for room, when a node is given up, and how it
//! ends. What a failure means is [`crate::retry`]'s to say, who is the best to ask [`crate::route`]'s; this is what calls them.
//!
//! Pure. The caller has the candidates, the streams and the timers, and drives it so:
//!
//! ```text
//!   budget.deposit                                once for the request
//!   Course::next ─┬─ Ask(index) ─ Waiting::begin ─ send ─┬─ answered ──────────────────▶ done
//!        ▲        │                                      ├─ the timer: Waiting::rings ─┐
//!        │        │                                      ├─ suspected: Waiting::suspected
//!        │        │                                      └─ refused, broken ───────────┤
//!        │        │                                                                    ▼
//!        ├────────│───────────────────────────────────────────── Elsewhere ◀─ Course::failed ─▶ SameNode: ask it once more
//!        │        ├─ Wait(pause): for room, or so long ─ Course::waited ─┐             │
//!        └────────│──────────────────────────────────────────────────────┘             │
//!                 └─ End ◀─────────────────────────────────────────────────────────────┘
//! ```

use std::time::Duration;

use crate::clock::Time;
use crate::frame::{Refusal, ServiceConnection, WhenFull};
use crate::id::NodeId;
use crate::retry::{Answer, Attempts, Body, Decision, Failure, Outcome, Repeat, RetryBudget, RetryLimits};
use crate::route::{BalancingPolicy, Contender, Field, Pick, Standing};

mod waiting;

pub use waiting::{Ring, Upload, Waiting};

#[cfg(test)]
mod tests;

/// The first pause of a request that has found all nodes full, doubled after each.
const BACKOFF_MIN: Duration = Duration::from_millis(4);

/// Times and bounds of one request's attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptLimits {
    /// Beyond one round trip, how long a node may take to ACCEPT before its tunnel is suspected and an idempotent
    /// request goes elsewhere. Connecting to a local service takes microseconds: 300 ms is a node that is not there.
    pub accept_patience: Duration,
    /// How long to wait for ACCEPT when there is nowhere else to go: a laptop that slept a moment answers within it.
    pub accept_timeout: Duration,
    /// How long a service may take until its answer begins. Models take minutes to load and to answer.
    pub answer_timeout: Duration,
    /// How long a client may send nothing of a body that it has announced, while a service waits for it: it holds one of
    /// the service's slots.
    pub body_idle_timeout: Duration,
    /// How long a request may wait while all nodes are full. A model that answers one at a time in under a second
    /// so serves a few callers at once without one seeing an error.
    pub queue_timeout: Duration,
    /// How many requests may wait so, together: each holds its client's connection.
    pub queued_max: usize,
    /// Waiting requests look again after up to this long (the first time much sooner), and when one ends at this process.
    pub queue_backoff_max: Duration,
    /// How often it is sent.
    pub retry: RetryLimits,
}

impl AttemptLimits {
    /// What the binaries use.
    pub const PRODUCTION: Self = Self {
        accept_patience: Duration::from_millis(300),
        accept_timeout: Duration::from_secs(10),
        answer_timeout: Duration::from_secs(600),
        body_idle_timeout: Duration::from_secs(60),
        queue_timeout: Duration::from_secs(2),
        queued_max: 1024,
        queue_backoff_max: Duration::from_millis(100),
        retry: RetryLimits::PRODUCTION,
    };
}

/// Those that can be asked, as they are at one moment.
pub trait Candidates: Field {
    /// Which node the one at `index` is, below [`Field::len`].
    fn node(&self, index: usize) -> NodeId;
}

/// What a request does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ask the candidate of this index, with [`Course::connection`] and [`Course::when_full`].
    Ask(usize),
    /// All are full. Wait until one of them may have room, but no longer than this; then [`Course::waited`].
    Wait(Duration),
    /// It is over.
    End(End),
}

/// What a request does after an attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// [`Course::next`] says to whom it goes now, if to anybody.
    Elsewhere,
    /// Ask the same node at once, with [`Course::connection`] as it is now.
    SameNode,
    /// It is over.
    End(End),
}

/// Why a request gets no answer. Where it has been is in [`Course::attempts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nobody offers the service.
    Nobody,
    /// Everybody who does was full, for so long.
    AllFull {
        /// How long it has waited for room.
        waited: Duration,
    },
    /// The service did not begin to answer within [`AttemptLimits::answer_timeout`].
    TimedOut,
    /// It was tried, and failed.
    Failed(Outcome),
}

/// One request, from its first attempt to its end. Allocates nothing while nothing fails.
#[derive(Debug, Clone)]
pub struct Course<'a> {
    limits: &'a AttemptLimits,
    attempts: Attempts,
    connection: ServiceConnection,
    when_full: WhenFull,
    /// Since when it waits for a node to have room.
    queued_since: Option<Time>,
    backoff: Duration,
    /// Since when it has asked those that it asks now.
    round: Time,
}

impl<'a> Course<'a> {
    /// A request that has not been sent yet.
    pub fn new(now: Time, repeat: Repeat, limits: &'a AttemptLimits) -> Self {
        Self {
            limits,
            attempts: Attempts::new(repeat, limits.retry),
            connection: first_connection(repeat),
            when_full: WhenFull::Refuse,
            queued_since: None,
            backoff: BACKOFF_MIN,
            round: now,
        }
    }

    /// Where it has been.
    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// Which connection to the service it needs, where it is sent now: one that must not run twice a fresh one.
    pub fn connection(&self) -> ServiceConnection {
        self.connection
    }

    /// What a node that is full does with it, where it is sent now: once everybody has been asked it stands in line.
    pub fn when_full(&self) -> WhenFull {
        self.when_full
    }

    /// To whom it goes now. `queued` is how many requests wait for room, asked only if this one would too.
    pub fn next(
        &mut self,
        now: Time,
        candidates: &impl Candidates,
        policy: &dyn BalancingPolicy,
        random: &mut fastrand::Rng,
        queued: impl FnOnce() -> usize,
    ) -> Next {
        self.connection = first_connection(self.attempts.repeat());
        match policy.pick(&Untried { candidates, attempts: &self.attempts }, random) {
            Pick::Take(index) => Next::Ask(index),
            Pick::Nobody if !self.attempts.met_full() => Next::End(self.nobody()),
            // A full node is excluded for one round: it may have room by now.
            Pick::Nobody | Pick::AllFull => self.wait(now, random, queued),
        }
    }

    /// The end of one that nobody is left to be asked for.
    pub fn nobody(&self) -> End {
        let gone = |failure| matches!(failure, Failure::Refused(Refusal::Draining | Refusal::UnknownService));
        if self.attempts.failures().iter().all(|attempt| gone(attempt.failure)) {
            return End::Nobody;
        }
        End::Failed(self.attempts.outcome())
    }

    fn wait(&mut self, now: Time, random: &mut fastrand::Rng, queued: impl FnOnce() -> usize) -> Next {
        self.queued_since.get_or_insert(now);
        if queued() >= self.limits.queued_max || self.queued(now) >= self.limits.queue_timeout {
            return Next::End(self.end(now, Failure::Refused(Refusal::Full)));
        }
        // Full jitter: those that wait for the same node must not come back together. What it has stood in line since the
        // round began has been pause enough.
        let pause = self.backoff.mul_f64(random.f64()).saturating_sub(now.since(self.round));
        Next::Wait(pause + Duration::from_millis(1))
    }

    /// It has waited, or there may be room: everybody may be asked again.
    pub fn waited(&mut self, now: Time) {
        self.backoff = (self.backoff * 2).min(self.limits.queue_backoff_max);
        self.attempts.forget_full();
        self.when_full = WhenFull::Wait;
        self.round = now;
    }

    /// The node that it was sent to did not answer.
    pub fn failed(
        &mut self,
        now: Time,
        node: NodeId,
        failure: Failure,
        body: Body,
        answer: Answer,
        budget: &mut RetryBudget,
    ) -> Then {
        match self.attempts.failed(now.since_origin(), node, failure, body, answer, budget) {
            Decision::Elsewhere => {
                // It has stood in line at one: the others may have room by now.
                self.when_full = WhenFull::Refuse;
                Then::Elsewhere
            }
            Decision::SameNodeFresh => {
                self.connection = ServiceConnection::Fresh;
                Then::SameNode
            }
            Decision::Fail(_) => Then::End(self.end(now, failure)),
        }
    }

    /// Whether somebody else would take it at once, so that leaving the node that it is at is no loss.
    pub fn may_leave(
        &self,
        now: Time,
        here: &NodeId,
        candidates: &impl Candidates,
        body: Body,
        budget: &mut RetryBudget,
    ) -> bool {
        if self.attempts.repeat() == Repeat::Once || self.attempts.is_last_send() || body == Body::Gone {
            return false;
        }
        let others = (0..candidates.len()).filter(|index| {
            let node = candidates.node(*index);
            node != *here && !self.attempts.excludes(&node)
        });
        let is_free = |contender: Contender| contender.standing == Standing::Live && !contender.is_full();
        others.into_iter().any(|index| is_free(candidates.contender(index))) && budget.has(now.since_origin())
    }

    fn end(&self, now: Time, last: Failure) -> End {
        match (last, self.attempts.outcome()) {
            (Failure::Refused(Refusal::Full), Outcome::NotRun) => End::AllFull { waited: self.queued(now) },
            (Failure::TimedOut, _) => End::TimedOut,
            (_, outcome) => End::Failed(outcome),
        }
    }

    /// How long it has waited for room.
    fn queued(&self, now: Time) -> Duration {
        self.queued_since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

fn first_connection(repeat: Repeat) -> ServiceConnection {
    match repeat {
        Repeat::Idempotent => ServiceConnection::MayReuse,
        Repeat::Once => ServiceConnection::Fresh,
    }
}

/// The candidates of a request, without those that have failed it.
struct Untried<'a, C> {
    candidates: &'a C,
    attempts: &'a Attempts,
}

impl<C: Candidates> Field for Untried<'_, C> {
    fn len(&self) -> usize {
        self.candidates.len()
    }

    fn contender(&self, index: usize) -> Contender {
        let mut contender = self.candidates.contender(index);
        if self.attempts.excludes(&self.candidates.node(index)) {
            contender.standing = Standing::Out;
        }
        contender
    }
}
