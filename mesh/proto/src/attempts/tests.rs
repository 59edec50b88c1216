//! Requests in virtual time, driven as mesh/http drives them, against nodes that fail in every way.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::route::PowerOfTwoChoices;

const LIMITS: AttemptLimits = AttemptLimits::PRODUCTION;
const RTT: Duration = Duration::from_millis(40);

fn at(millis: u64) -> Time {
    Time::from_origin(Duration::from_secs(1000) + Duration::from_millis(millis))
}

fn id(index: usize) -> NodeId {
    NodeId([index as u8; 32])
}

/// What a node does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Answers,
    /// And takes until then, so that it may not have accepted in time.
    AcceptsAfter(Duration),
    Refuses(Refusal),
    /// For so long, and then it answers.
    FullUntil(Time),
    /// The service has run it by then.
    Breaks,
    BreaksAfterTheHead,
    CannotBeReached,
    IsSilent,
    NeverAnswers,
}

impl Manner {
    /// Whether a request that it gets may run.
    fn runs(self, now: Time) -> bool {
        match self {
            Self::Refuses(_) | Self::CannotBeReached => false,
            Self::FullUntil(until) => now >= until,
            _ => true,
        }
    }
}

struct Node {
    manner: Manner,
    standing: Standing,
}

struct Nodes(Vec<Node>);

impl Field for Nodes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn contender(&self, index: usize) -> Contender {
        Contender { standing: self.0[index].standing, in_flight: 0, capacity: 1, cost_us: 1000.0 }
    }
}

impl Candidates for Nodes {
    fn node(&self, index: usize) -> NodeId {
        id(index)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    AnsweredBy(usize),
    Ended(End),
}

/// One request, and what came of it.
struct World {
    nodes: Nodes,
    now: Time,
    budget: RetryBudget,
    random: fastrand::Rng,
    /// Where it may have run, in order.
    ran: Vec<usize>,
    asked: usize,
}

impl World {
    fn new(manners: impl IntoIterator<Item = Manner>, seed: u64) -> Self {
        let nodes = manners.into_iter().map(|manner| Node { manner, standing: Standing::Live });
        Self {
            nodes: Nodes(nodes.collect()),
            now: at(0),
            budget: RetryBudget::new(at(0).since_origin()),
            random: fastrand::Rng::with_seed(seed),
            ran: Vec::new(),
            asked: 0,
        }
    }

    fn request(&mut self, repeat: Repeat, body: Body) -> Outcome {
        self.budget.deposit(self.now.since_origin());
        let mut course = Course::new(self.now, repeat, &LIMITS);
        loop {
            match course.next(self.now, &self.nodes, &PowerOfTwoChoices, &mut self.random, || 0) {
                Next::Ask(index) => {
                    assert!(!course.attempts().excludes(&id(index)), "it has failed there");
                    loop {
                        let (failure, answer) = match self.ask(index, &course, body) {
                            Ok(()) => return Outcome::AnsweredBy(index),
                            Err(failed) => failed,
                        };
                        match course.failed(self.now, id(index), failure, body, answer, &mut self.budget) {
                            Then::Elsewhere => break,
                            Then::SameNode => assert_eq!(course.connection(), ServiceConnection::Fresh),
                            Then::End(end) => return Outcome::Ended(end),
                        }
                    }
                }
                Next::Wait(pause) => {
                    assert!(pause <= LIMITS.queue_backoff_max + Duration::from_millis(1));
                    self.now = self.now + pause;
                    course.waited(self.now);
                    assert_eq!(course.when_full(), WhenFull::Wait);
                }
                Next::End(end) => return Outcome::Ended(end),
            }
        }
    }

    /// One attempt, with its timer.
    fn ask(&mut self, index: usize, course: &Course<'_>, body: Body) -> Result<(), (Failure, Answer)> {
        self.asked += 1;
        assert!(self.asked < 10_000, "bounded");
        let manner = self.nodes.0[index].manner;
        if manner.runs(self.now) {
            self.ran.push(index);
        }
        let (accepted_at, answers) = match manner {
            Manner::Refuses(refusal) => return Err((Failure::Refused(refusal), Answer::Nothing)),
            Manner::FullUntil(until) if self.now < until => {
                return Err((Failure::Refused(Refusal::Full), Answer::Nothing));
            }
            Manner::CannotBeReached => return Err((Failure::NotSent, Answer::Nothing)),
            Manner::Breaks => return Err((Failure::Broken, Answer::Nothing)),
            Manner::BreaksAfterTheHead => return Err((Failure::Broken, Answer::PassedOn)),
            Manner::Answers | Manner::FullUntil(_) => (Some(self.now + RTT), true),
            Manner::AcceptsAfter(pause) => (Some(self.now + pause), true),
            Manner::NeverAnswers => (Some(self.now + RTT), false),
            Manner::IsSilent => (None, false),
        };
        let (mut waiting, mut after) = Waiting::begin(course, RTT);
        loop {
            let rings_at = self.now + after;
            if let Some(at) = accepted_at.filter(|at| answers && *at <= rings_at) {
                (self.now, self.nodes.0[index].standing) = (self.now.max(at), Standing::Live);
                return Ok(());
            }
            self.now = rings_at;
            let accepted = accepted_at.is_some_and(|at| at <= self.now);
            after = match waiting.rings(accepted, Upload::NONE) {
                Ring::Again(after) => after,
                Ring::Silent => {
                    self.nodes.0[index].standing = Standing::Suspect;
                    let may_leave = course.may_leave(self.now, &id(index), &self.nodes, body, &mut self.budget);
                    waiting.unaccepted(may_leave).map_err(|failure| (failure, Answer::Nothing))?
                }
                Ring::Failed(failure) => return Err((failure, Answer::Nothing)),
                Ring::Stalled => panic!("there is no body"),
            };
        }
    }
}

fn full() -> Manner {
    Manner::Refuses(Refusal::Full)
}

#[test]
fn a_silent_node_is_left_after_its_patience_if_another_is_free_and_waited_for_if_not() {
    for seed in 0..16 {
        let mut world = World::new([Manner::IsSilent, Manner::Answers], seed);
        let began = world.now;
        assert_eq!(world.request(Repeat::Idempotent, Body::Replayable), Outcome::AnsweredBy(1));
        let waited = if world.ran[0] == 0 { LIMITS.accept_patience + RTT } else { Duration::ZERO };
        assert_eq!(world.now.since(began), waited + RTT);
        // The only one, asleep for a moment.
        let wakes_after = Duration::from_secs(5);
        let mut world = World::new([Manner::AcceptsAfter(wakes_after)], seed);
        assert_eq!(world.request(Repeat::Idempotent, Body::Replayable), Outcome::AnsweredBy(0));
        assert_eq!(world.now.since(began), wakes_after);
        // One that must not run twice is not sent elsewhere.
        let mut world = World::new([Manner::IsSilent, Manner::Answers], seed);
        let outcome = world.request(Repeat::Once, Body::Replayable);
        let unknown = Outcome::Ended(End::Failed(crate::retry::Outcome::Unknown));
        assert_eq!(outcome, if world.ran == [0] { unknown } else { Outcome::AnsweredBy(1) });
    }
}

#[test]
fn when_all_are_full_it_waits_for_room_as_long_as_it_may() {
    for seed in 0..16 {
        let mut world = World::new([full(), full()], seed);
        let began = world.now;
        let Outcome::Ended(End::AllFull { waited }) = world.request(Repeat::Once, Body::Replayable) else {
            panic!("nobody has room")
        };
        assert!(waited >= LIMITS.queue_timeout && waited == world.now.since(began));
        assert!(waited <= LIMITS.queue_timeout + LIMITS.queue_backoff_max + Duration::from_millis(1), "{waited:?}");
        let mut world = World::new([full(), Manner::FullUntil(at(1500))], seed);
        assert_eq!(world.request(Repeat::Once, Body::Replayable), Outcome::AnsweredBy(1));
        assert!(world.now <= at(1500) + LIMITS.queue_backoff_max + RTT + Duration::from_millis(1));
    }
}

#[test]
fn in_a_crowd_nobody_waits() {
    let nodes = World::new([full()], 1).nodes;
    let (mut random, mut budget) = (fastrand::Rng::with_seed(1), RetryBudget::new(Duration::ZERO));
    let mut course = Course::new(at(0), Repeat::Once, &LIMITS);
    let mut next =
        |course: &mut Course<'_>| course.next(at(0), &nodes, &PowerOfTwoChoices, &mut random, || LIMITS.queued_max);
    assert_eq!(next(&mut course), Next::Ask(0));
    let refused = Failure::Refused(Refusal::Full);
    let then = course.failed(at(0), id(0), refused, Body::Replayable, Answer::Nothing, &mut budget);
    assert_eq!(then, Then::Elsewhere);
    assert_eq!(next(&mut course), Next::End(End::AllFull { waited: Duration::ZERO }));
}

#[test]
fn a_stale_connection_is_answered_by_a_fresh_one_to_the_same_node() {
    let nodes = World::new([Manner::Answers; 2], 1).nodes;
    let (mut random, mut budget) = (fastrand::Rng::with_seed(1), RetryBudget::new(Duration::ZERO));
    let mut course = Course::new(at(0), Repeat::Idempotent, &LIMITS);
    let Next::Ask(index) = course.next(at(0), &nodes, &PowerOfTwoChoices, &mut random, || 0) else {
        panic!("both are free")
    };
    assert_eq!(course.connection(), ServiceConnection::MayReuse);
    let stale = Failure::StaleConnection;
    let then = course.failed(at(0), id(index), stale, Body::Replayable, Answer::Nothing, &mut budget);
    assert_eq!((then, course.connection()), (Then::SameNode, ServiceConnection::Fresh));
    let then = course.failed(at(0), id(index), Failure::Broken, Body::Replayable, Answer::Nothing, &mut budget);
    assert_eq!(then, Then::Elsewhere);
    assert_eq!(course.next(at(0), &nodes, &PowerOfTwoChoices, &mut random, || 0), Next::Ask(1 - index));
    assert_eq!(course.connection(), ServiceConnection::MayReuse, "elsewhere a kept one will do");
}

#[test]
fn nobody_is_left_is_told_apart_from_nobody_was_there() {
    let end = |manners: &[Manner]| match World::new(manners.iter().copied(), 1).request(Repeat::Once, Body::Replayable)
    {
        Outcome::Ended(end) => end,
        other => panic!("{other:?}"),
    };
    assert_eq!(end(&[]), End::Nobody);
    assert_eq!(end(&[Manner::Refuses(Refusal::Draining)]), End::Nobody, "it does not offer it any more");
    assert_eq!(end(&[Manner::CannotBeReached]), End::Failed(crate::retry::Outcome::NotRun));
    assert_eq!(end(&[Manner::Refuses(Refusal::ServiceDown)]), End::Failed(crate::retry::Outcome::NotRun));
}

#[test]
fn a_client_that_stops_sending_is_told_from_one_that_is_slow_and_from_a_slow_service() {
    let course = Course::new(at(0), Repeat::Once, &LIMITS);
    let (mut waiting, _) = Waiting::begin(&course, RTT);
    let sent = |bytes| Upload { is_sent: false, waits_behind: Some(bytes) };
    let again = Ring::Again(LIMITS.body_idle_timeout);
    assert_eq!(waiting.rings(true, sent(10)), again);
    assert_eq!(waiting.rings(true, sent(20)), again, "it is slow");
    let taken_by_nobody = Upload { is_sent: false, waits_behind: None };
    assert_eq!(waiting.rings(true, taken_by_nobody), again, "the service is slow");
    assert_eq!(waiting.rings(true, taken_by_nobody), again);
    assert_eq!(waiting.rings(true, sent(20)), again, "it is the client's turn");
    assert_eq!(waiting.rings(true, sent(20)), Ring::Stalled);
    assert!(!waiting.is_watching(), "it must not run twice");
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        4 => Just(Manner::Answers),
        1 => (0..20_000_u64).prop_map(|millis| Manner::AcceptsAfter(Duration::from_millis(millis))),
        2 => prop_oneof![Just(Refusal::Full), Just(Refusal::Draining), Just(Refusal::ServiceDown)].prop_map(Manner::Refuses),
        1 => (0..4000_u64).prop_map(|millis| Manner::FullUntil(at(millis))),
        1 => Just(Manner::Breaks),
        1 => Just(Manner::BreaksAfterTheHead),
        1 => Just(Manner::CannotBeReached),
        1 => Just(Manner::IsSilent),
        1 => Just(Manner::NeverAnswers),
    ]
}

proptest! {
    #[test]
    fn every_request_ends_in_time_and_none_runs_twice_that_must_not(
        manners in prop::collection::vec(manner(), 0..12),
        idempotent: bool,
        replayable: bool,
        seed: u64,
    ) {
        let repeat = if idempotent { Repeat::Idempotent } else { Repeat::Once };
        let body = if replayable { Body::Replayable } else { Body::Gone };
        let mut world = World::new(manners.clone(), seed);
        let began = world.now;
        let outcome = world.request(repeat, body);
        let runs_max = if idempotent && replayable { LIMITS.retry.sends_max as usize } else { 1 };
        prop_assert!(world.ran.len() <= runs_max, "{:?}", world.ran);
        // Two nodes at most are silent or slow to their ends before the last, which is waited for.
        let longest = LIMITS.answer_timeout + LIMITS.queue_timeout + 4 * (LIMITS.accept_timeout + Duration::from_secs(1));
        prop_assert!(world.now.since(began) <= longest);
        match outcome {
            Outcome::AnsweredBy(index) => prop_assert_eq!(world.ran.last(), Some(&index)),
            Outcome::Ended(End::Failed(crate::retry::Outcome::Unknown) | End::TimedOut) => {
                prop_assert!(!world.ran.is_empty());
            }
            Outcome::Ended(_) => prop_assert!(world.ran.is_empty(), "it is said that nothing ran"),
        }
    }

    /// Whoever only refuses costs a round trip and nothing else.
    #[test]
    fn what_can_be_served_is_served_whoever_refuses(refusing in 0..31_usize, serving in 0..31_usize, seed: u64) {
        let place = serving.min(refusing);
        let manners = (0..=refusing).map(|index| if index == place { Manner::Answers } else { full() });
        let mut world = World::new(manners, seed);
        prop_assert_eq!(world.request(Repeat::Once, Body::Replayable), Outcome::AnsweredBy(place));
    }
}
