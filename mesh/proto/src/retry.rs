//! The retry rule: what to do with a request when a node did not answer it.
//!
//! Pure. [`Attempts`] is the memory of one request; the caller tells it of each failure and does what it says. The rule
//! is that no request runs twice that must not, and no client sees two beginnings of an answer:
//!
//! | what happened | idempotent | otherwise |
//! |---|---|---|
//! | never sent, or REFUSEd: nothing ran | elsewhere | elsewhere |
//! | a kept connection was stale | same node, fresh connection, once | fail, unknown |
//! | no ACCEPT in time, tunnel suspected, broken | elsewhere, on the budget | fail, unknown |
//! | any of the above with the answer begun, or the body not replayable | fail | fail |

use std::time::Duration;

use crate::frame::Refusal;
use crate::id::NodeId;
use crate::mutation::{self, Mutation};

/// Whether a request may run more than once (RFC 9110 §9.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Repeat {
    /// GET, HEAD, OPTIONS, TRACE, PUT, DELETE: twice is as good as once.
    Idempotent,
    /// Everything else, and every method that we do not know.
    Once,
}

impl Repeat {
    /// The rule for a method, by its name (case-sensitive, as HTTP's are).
    pub fn of_method(method: &str) -> Self {
        match method {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE" => Self::Idempotent,
            _ => Self::Once,
        }
    }
}

/// Why a node did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No stream to the node could be had, or nothing was written to it.
    NotSent,
    /// The node refused: the service has not seen a byte.
    Refused(Refusal),
    /// A kept connection to the service had closed before it answered a byte.
    StaleConnection,
    /// Neither ACCEPT nor REFUSE in time.
    Unaccepted,
    /// The node stopped answering anything.
    Suspected,
    /// The stream or the service's connection broke, or what came was no answer.
    Broken,
    /// The service took too long to answer.
    TimedOut,
}

impl Failure {
    /// Whether it is certain that the service has not seen the request.
    pub fn nothing_ran(self) -> bool {
        matches!(self, Self::NotSent | Self::Refused(_))
    }

    /// Whether it counts against the node in the balancing ([`crate::route::PeakEwma::failed`]). Silence does not: the tunnel is
    /// suspect, which keeps requests away for as long as the node is silent, and a penalty would keep them away for a minute
    /// after it has woken. A refusal does only if the service is down.
    pub fn is_penalised(self) -> bool {
        match self {
            Self::NotSent | Self::Broken | Self::TimedOut => true,
            Self::Refused(refusal) => refusal == Refusal::ServiceDown,
            Self::StaleConnection | Self::Unaccepted | Self::Suspected => false,
        }
    }

    /// A stable word for error bodies, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::Refused(refusal) => refusal.as_str(),
            Self::StaleConnection => "stale-connection",
            Self::Unaccepted => "unaccepted",
            Self::Suspected => "suspected",
            Self::Broken => "broken",
            Self::TimedOut => "timed-out",
        }
    }
}

/// Whether the request's body can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Every byte that was read of it is still here.
    Replayable,
    /// Some of it has been read and is not here any more.
    Gone,
}

/// Whether the client has seen any of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not a byte.
    Nothing,
    /// The head at least.
    PassedOn,
}

/// What is known of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// No service saw it: the client may send it again.
    NotRun,
    /// It may have run.
    Unknown,
}

impl Outcome {
    /// The word in error bodies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRun => "not-run",
            Self::Unknown => "unknown",
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Send it to a node that [`Attempts::excludes`] does not exclude.
    Elsewhere,
    /// Send it to the same node once more, on a fresh connection to the service.
    SameNodeFresh,
    /// Tell the client.
    Fail(Outcome),
}

/// Bounds of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryLimits {
    /// How often a request may be sent where it may have run. With three, two nodes may die under one request.
    pub sends_max: u32,
    /// How often it may be refused (or find no stream) before it waits, which costs a round trip each: more nodes than that
    /// are full only when all are. How long it may wait, and so how often it may ask all of them again, is the caller's
    /// business.
    pub refusals_max: u32,
}

impl RetryLimits {
    /// What the binaries use.
    pub const PRODUCTION: Self = Self { sends_max: 3, refusals_max: 32 };
}

/// One failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Where.
    pub node: NodeId,
    /// Why it failed.
    pub failure: Failure,
}

/// The memory of one request: where it has been and whether it may have run. Allocates nothing while nothing fails.
#[derive(Debug, Clone)]
pub struct Attempts {
    repeat: Repeat,
    limits: RetryLimits,
    /// All but the refusals that are forgotten, so that it stays short however long a request waits.
    failed: Vec<Attempt>,
    forgotten: usize,
    refusals: u32,
    sends: u32,
    stale_resent: bool,
    outcome: Outcome,
}

impl Attempts {
    /// A request that has not been sent yet.
    pub fn new(repeat: Repeat, limits: RetryLimits) -> Self {
        Self {
            repeat,
            limits,
            failed: Vec::new(),
            forgotten: 0,
            refusals: 0,
            sends: 0,
            stale_resent: false,
            outcome: Outcome::NotRun,
        }
    }

    /// Whether a failure after it was sent may be answered by sending it elsewhere.
    pub fn repeat(&self) -> Repeat {
        self.repeat
    }

    /// How often it has failed so far.
    pub fn count(&self) -> usize {
        self.forgotten + self.failed.len()
    }

    /// Where and why it failed so far, in order, without the refusals that are forgotten.
    pub fn failures(&self) -> &[Attempt] {
        &self.failed
    }

    /// What is known if this is the end.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether another attempt may be made that may run it: a last one is given more time.
    pub fn is_last_send(&self) -> bool {
        self.repeat == Repeat::Once || self.sends + 1 >= self.limits.sends_max
    }

    /// Whether the node has failed this request already.
    pub fn excludes(&self, node: &NodeId) -> bool {
        self.failed.iter().any(|attempt| attempt.node == *node)
    }

    /// Nodes that were full may be asked again: some time has passed.
    pub fn forget_full(&mut self) {
        let before = self.failed.len();
        self.failed.retain(|attempt| attempt.failure != Failure::Refused(Refusal::Full));
        let forgotten = before - self.failed.len();
        self.forgotten += forgotten;
        self.refusals = self.refusals.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
    }

    /// Whether some node was found full, and waiting may help.
    pub fn met_full(&self) -> bool {
        self.forgotten > 0 || self.failed.iter().any(|attempt| attempt.failure == Failure::Refused(Refusal::Full))
    }

    /// An attempt at `node` failed: what next? `now` is the time since any origin, the same as for the budget before.
    pub fn failed(
        &mut self,
        now: Duration,
        node: NodeId,
        failure: Failure,
        body: Body,
        answer: Answer,
        budget: &mut RetryBudget,
    ) -> Decision {
        self.failed.push(Attempt { node, failure });
        if failure.nothing_ran() {
            self.refusals += 1;
        } else {
            self.sends += 1;
            self.outcome = Outcome::Unknown;
        }
        let seen = answer == Answer::PassedOn && !mutation::is_active(Mutation::RetryAfterFirstByte);
        if seen || body == Body::Gone {
            return Decision::Fail(self.outcome);
        }
        if failure.nothing_ran() {
            let more = self.refusals < self.limits.refusals_max;
            return if more { Decision::Elsewhere } else { Decision::Fail(self.outcome) };
        }
        if self.repeat == Repeat::Once || failure == Failure::TimedOut {
            return Decision::Fail(self.outcome);
        }
        if failure == Failure::StaleConnection && !self.stale_resent {
            // Nothing is wrong with the node: its service closed a connection that it had kept open for us. Such a
            // resend is no retry in the sense of the budget, which guards against load that failures add.
            self.stale_resent = true;
            self.sends -= 1;
            return Decision::SameNodeFresh;
        }
        if self.sends < self.limits.sends_max && budget.withdraw(now) {
            Decision::Elsewhere
        } else {
            Decision::Fail(self.outcome)
        }
    }
}

/// Bounds the retries of all requests together, so that a failing federation is not asked three times as much as a
/// healthy one: a share of the requests, and a small rate beside for when there are few (Finagle's and linkerd's retry
/// budget; theirs, too, are 20%, 10 a second, over 10 seconds).
#[derive(Debug, Clone)]
pub struct RetryBudget {
    /// Earned by requests, fading over [`RetryBudget::WINDOW`].
    deposits: f64,
    /// The rate beside.
    reserve: f64,
    last: Duration,
}

impl RetryBudget {
    /// What a request earns.
    pub const PER_REQUEST: f64 = 0.2;
    /// What a second earns.
    pub const PER_SECOND: f64 = 10.0;
    /// How long what is earned can be spent.
    pub const WINDOW: Duration = Duration::from_secs(10);

    /// A budget that has its reserve.
    pub fn new(now: Duration) -> Self {
        Self { deposits: 0.0, reserve: Self::reserve_max(), last: now }
    }

    fn reserve_max() -> f64 {
        Self::PER_SECOND * Self::WINDOW.as_secs_f64()
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.last).as_secs_f64();
        // Not for every request its own exponential: in steps of a hundredth of a second nobody sees the difference.
        if passed >= 0.01 {
            self.last = now;
            self.deposits *= (-passed / Self::WINDOW.as_secs_f64()).exp();
            self.reserve = (self.reserve + passed * Self::PER_SECOND).min(Self::reserve_max());
        }
    }

    /// A request has come.
    pub fn deposit(&mut self, now: Duration) {
        self.advance(now);
        self.deposits += Self::PER_REQUEST;
    }

    /// Whether there is a retry to take.
    pub fn has(&mut self, now: Duration) -> bool {
        self.advance(now);
        self.deposits >= 1.0 || self.reserve >= 1.0
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&mut self, now: Duration) -> bool {
        self.advance(now);
        let purse = if self.deposits >= 1.0 { &mut self.deposits } else { &mut self.reserve };
        let enough = *purse >= 1.0;
        if enough {
            *purse -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn attempts(repeat: Repeat) -> (Attempts, RetryBudget) {
        (Attempts::new(repeat, RetryLimits::PRODUCTION), RetryBudget::new(NOW))
    }

    #[test]
    fn what_was_refused_goes_elsewhere_whatever_the_method() {
        for method in ["GET", "POST", "PATCH", "FROBNICATE"] {
            let (mut attempts, mut budget) = attempts(Repeat::of_method(method));
            let refused = Failure::Refused(Refusal::Full);
            let next = attempts.failed(NOW, node(1), refused, Body::Replayable, Answer::Nothing, &mut budget);
            assert_eq!((next, attempts.outcome()), (Decision::Elsewhere, Outcome::NotRun), "{method}");
            assert!(attempts.excludes(&node(1)) && !attempts.excludes(&node(2)));
        }
    }

    #[test]
    fn a_full_node_may_be_asked_again_later_and_a_broken_one_not() {
        let (mut attempts, mut budget) = attempts(Repeat::Idempotent);
        attempts.failed(NOW, node(1), Failure::Refused(Refusal::Full), Body::Replayable, Answer::Nothing, &mut budget);
        attempts.failed(NOW, node(2), Failure::Broken, Body::Replayable, Answer::Nothing, &mut budget);
        attempts.forget_full();
        assert!(!attempts.excludes(&node(1)) && attempts.excludes(&node(2)));
        attempts.failed(NOW, node(1), Failure::Refused(Refusal::Full), Body::Replayable, Answer::Nothing, &mut budget);
        assert!(attempts.excludes(&node(1)), "full once more");
        assert!(attempts.met_full());
        assert_eq!((attempts.count(), attempts.failures().len()), (3, 2));
    }

    #[test]
    fn what_waits_for_room_is_refused_as_often_as_its_time_allows() {
        let (mut attempts, mut budget) = attempts(Repeat::Once);
        let mut refused = |attempts: &mut Attempts, node| {
            let full = Failure::Refused(Refusal::Full);
            attempts.failed(NOW, node, full, Body::Replayable, Answer::Nothing, &mut budget)
        };
        for _ in 0..1000 {
            assert_eq!(refused(&mut attempts, node(1)), Decision::Elsewhere);
            attempts.forget_full();
        }
        assert_eq!((attempts.count(), attempts.failures().len()), (1000, 0), "and takes no more memory for it");
        let last = (0..).map(|n| refused(&mut attempts, node(n))).position(|next| next != Decision::Elsewhere);
        assert_eq!(last, Some(31), "one round is bounded");
    }

    #[test]
    fn a_stale_connection_is_tried_once_more_on_the_same_node_and_costs_no_budget() {
        let (mut attempts, _) = attempts(Repeat::Idempotent);
        let mut broke = RetryBudget { deposits: 0.0, reserve: 0.0, last: NOW };
        let mut stale =
            || attempts.failed(NOW, node(1), Failure::StaleConnection, Body::Replayable, Answer::Nothing, &mut broke);
        assert_eq!(stale(), Decision::SameNodeFresh);
        assert_eq!(stale(), Decision::Fail(Outcome::Unknown));
    }

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_ten_a_second() {
        let mut budget = RetryBudget::new(NOW);
        let spend = |budget: &mut RetryBudget, now| std::iter::from_fn(|| budget.withdraw(now).then_some(())).count();
        assert_eq!(spend(&mut budget, NOW), 100);
        assert_eq!(spend(&mut budget, NOW + Duration::from_secs(1)), 10);
        for _ in 0..1000 {
            budget.deposit(NOW + Duration::from_secs(1));
        }
        let spent = spend(&mut budget, NOW + Duration::from_secs(1));
        assert!((199..=200).contains(&spent), "{spent}");
        assert_eq!(spend(&mut budget, NOW + Duration::from_secs(3600)), 100, "no hoarding");
    }

    fn failure() -> impl Strategy<Value = Failure> {
        prop_oneof![
            Just(Failure::NotSent),
            Just(Failure::Refused(Refusal::Full)),
            Just(Failure::Refused(Refusal::ServiceDown)),
            Just(Failure::StaleConnection),
            Just(Failure::Unaccepted),
            Just(Failure::Suspected),
            Just(Failure::Broken),
            Just(Failure::TimedOut),
        ]
    }

    proptest! {
        /// One request against nodes that fail it in any way, until the rule ends it.
        #[test]
        fn no_request_runs_twice_that_must_not_and_no_answer_begins_twice(
            idempotent: bool,
            script in prop::collection::vec((failure(), any::<bool>(), any::<bool>()), 1..100),
        ) {
            let repeat = if idempotent { Repeat::Idempotent } else { Repeat::Once };
            let (mut attempts, mut budget) = attempts(repeat);
            let (mut sent_where_it_may_run, mut begun, mut gone) = (0, false, false);
            let (mut at, mut tried) = (0u8, vec![]);
            for (failure, passes_on, loses_body) in script {
                // The world before this attempt: would sending now break a promise?
                prop_assert!(!begun, "sent again after the answer had begun");
                prop_assert!(!gone, "sent again without its body");
                prop_assert!(idempotent || sent_where_it_may_run == 0, "ran twice");
                tried.push(at);
                if !failure.nothing_ran() {
                    sent_where_it_may_run += 1;
                    begun |= passes_on;
                    gone |= loses_body;
                }
                let body = if gone { Body::Gone } else { Body::Replayable };
                let answer = if begun { Answer::PassedOn } else { Answer::Nothing };
                match attempts.failed(NOW, node(at), failure, body, answer, &mut budget) {
                    Decision::Elsewhere => {
                        at = (0..=255).find(|n| !attempts.excludes(&node(*n))).expect("256 nodes");
                        prop_assert!(!tried.contains(&at), "a retry goes to a different node");
                    }
                    Decision::SameNodeFresh => prop_assert_eq!(failure, Failure::StaleConnection),
                    Decision::Fail(outcome) => {
                        prop_assert_eq!(outcome == Outcome::NotRun, sent_where_it_may_run == 0);
                        break;
                    }
                }
                prop_assert!(sent_where_it_may_run <= 4 && tried.len() < 40, "bounded");
            }
        }
    }
}
