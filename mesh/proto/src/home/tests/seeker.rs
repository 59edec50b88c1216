//! The worker's side, whatever happens to it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::home::seeker::{AVOID_FOR, CONNECT_WITHIN, Event, Output, RETRY_MAX, RETRY_MIN, Wake, moves_before};
use crate::record::Home;

const ME: u8 = 9;

fn hints(coordinators: impl IntoIterator<Item = u8>) -> Hints {
    let mut hints = Hints::default();
    hints.learn(coordinators.into_iter().filter_map(|n| Told::of(&open(&dialable(n, 1)))));
    hints
}

struct Worker {
    seeker: Seeker,
    hints: Hints,
    now: Time,
}

impl Worker {
    fn new(coordinators: impl IntoIterator<Item = u8>) -> Self {
        Self { seeker: Seeker::new(id(ME), moves_before(3), 1), hints: hints(coordinators), now: now() }
    }

    fn happens(&mut self, event: Event) -> Vec<Output> {
        self.seeker.handle(self.now, event, &self.hints);
        self.outputs()
    }

    /// Waits until it is due.
    fn wakes(&mut self) -> Vec<Output> {
        let (at, _) = self.seeker.poll_timeout().expect("something is due");
        self.now = self.now.max(at);
        self.seeker.handle_timeout(self.now, &self.hints);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.seeker.poll_output()).collect()
    }
}

/// Whom it connects to, if that is all that it does.
fn connects(outputs: &[Output]) -> NodeId {
    match outputs {
        [Output::Connect { home, addresses }] if addresses.len() == 1 => *home,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_settles_with_the_first_that_answers_and_counts_each_move() {
    let mut worker = Worker::new(0..4);
    let first = connects(&worker.wakes());
    let second = connects(&worker.happens(Event::NotReached(first)));
    assert_ne!(first, second);
    let home_seq = moves_before(3) + 1;
    let home = Home { coordinator: second, home_seq };
    assert_eq!(worker.happens(Event::Reached(second)), [Output::Join(home)]);
    assert_eq!(worker.seeker.settled(), None);
    assert_eq!(worker.happens(Event::Pong(second)), [Output::Settled(second)]);
    assert_eq!(worker.happens(Event::Pong(second)), [], "once is enough");
    assert_eq!((worker.seeker.settled(), worker.seeker.poll_timeout()), (Some(second), None));
    // It is lost: the next one is sought at once, and not the one that was lost, nor the one that did not answer.
    let outputs = worker.happens(Event::Ended(second));
    assert_eq!(outputs[0], Output::Leave(second));
    let third = connects(&outputs[1..]);
    assert!(third != first && third != second);
    let home = Home { coordinator: third, home_seq: home_seq + 1 };
    assert_eq!(worker.happens(Event::Reached(third)), [Output::Join(home)]);
}

#[test]
fn who_takes_too_long_is_given_up_and_what_comes_late_means_nothing() {
    let mut worker = Worker::new(0..2);
    let first = connects(&worker.wakes());
    let began = worker.now;
    let outputs = worker.wakes();
    assert_eq!(worker.now.since(began), CONNECT_WITHIN);
    assert_eq!(outputs[0], Output::GiveUp(first));
    let second = connects(&outputs[1..]);
    for late in [Event::Reached(first), Event::NotReached(first), Event::Ended(second)] {
        assert_eq!(worker.happens(late), []);
    }
    assert!(matches!(worker.happens(Event::Reached(second))[..], [Output::Join(_)]));
}

#[test]
fn who_failed_is_tried_last_for_a_while_and_the_best_one_is_the_same_each_time() {
    let mut worker = Worker::new(0..5);
    let best = connects(&worker.wakes());
    let mut next = best;
    let mut order = vec![best];
    for _ in 1..5 {
        next = connects(&worker.happens(Event::NotReached(next)));
        order.push(next);
    }
    assert_eq!(worker.happens(Event::NotReached(next)), [], "all have failed: a pause");
    assert_eq!(connects(&worker.wakes()), best, "among equals the order stays");
    // One that has not failed comes first, if it is the worst.
    let mut worker = Worker::new(0..5);
    connects(&worker.wakes());
    order.iter().take(4).for_each(|failed| drop(worker.happens(Event::NotReached(*failed))));
    let last = order[4];
    worker.happens(Event::Reached(last));
    worker.happens(Event::Pong(last));
    worker.now = worker.now + AVOID_FOR;
    let outputs = worker.happens(Event::Ended(last));
    assert_eq!(connects(&outputs[1..]), best, "after a while nobody is avoided");
}

#[test]
fn pauses_grow_to_a_bound_and_something_new_ends_one() {
    let mut worker = Worker::new([]);
    assert_eq!(worker.wakes(), []);
    let mut pauses = vec![];
    for _ in 0..12 {
        let before = worker.now;
        assert_eq!(worker.wakes(), []);
        pauses.push(worker.now.since(before));
    }
    let mut bound = RETRY_MIN;
    for pause in pauses {
        assert!(pause >= bound / 2 && pause <= bound, "{pause:?} of {bound:?}");
        bound = (bound * 2).min(RETRY_MAX);
    }
    worker.hints = hints([3]);
    assert_eq!(connects(&worker.happens(Event::Heard)), id(3));
    assert_eq!(worker.happens(Event::Heard), [], "not while one is tried");
}

/// Found by the simulation.
#[test]
fn a_coordinator_that_has_stepped_down_does_not_make_its_home_with_itself() {
    let mut worker = Worker::new([ME, 3]);
    let home = connects(&worker.wakes());
    assert_eq!(home, id(3));
    let outputs = worker.happens(Event::NotReached(home));
    assert_eq!(outputs, [], "nobody else is known");
}

#[test]
fn workers_are_spread_over_coordinators() {
    let hints = hints(0..4);
    let mut homes: BTreeMap<NodeId, usize> = BTreeMap::new();
    for worker in 0..=255_u8 {
        let mut seeker = Seeker::new(NodeId([worker; 32]), 0, 1);
        seeker.handle_timeout(now(), &hints);
        let Some(Output::Connect { home, .. }) = seeker.poll_output() else { panic!("it seeks") };
        *homes.entry(home).or_default() += 1;
    }
    assert!(homes.values().all(|workers| (40..90).contains(workers)), "{homes:?}");
}

proptest! {
    /// Whatever happens, in whatever order.
    #[test]
    fn it_is_always_doing_one_thing_and_never_goes_back_in_its_moves(
        happens in prop::collection::vec((0..6_u8, any::<bool>(), 0..6_u8, 0..5000_u64), 1..200),
    ) {
        let mut worker = Worker::new(0..3);
        let (mut connecting, mut staying, mut moves) = (None, None, moves_before(3));
        for (what, right, other, after) in happens {
            worker.now = worker.now + Duration::from_millis(after);
            let whom = match (connecting, staying) {
                (Some(home), _) | (_, Some(home)) if right => home,
                _ => id(other),
            };
            let outputs = match what {
                0 => worker.happens(Event::Reached(whom)),
                1 => worker.happens(Event::NotReached(whom)),
                2 => worker.happens(Event::Pong(whom)),
                3 => worker.happens(Event::Ended(whom)),
                4 => worker.happens(Event::Heard),
                _ => {
                    worker.seeker.handle_timeout(worker.now, &worker.hints);
                    worker.outputs()
                }
            };
            prop_assert!(outputs.len() <= 3);
            if what == 1 && connecting == Some(whom) {
                connecting = None;
            }
            for output in outputs {
                match output {
                    Output::Connect { home, .. } => {
                        prop_assert!(connecting.is_none() && staying.is_none());
                        connecting = Some(home);
                    }
                    Output::GiveUp(home) => prop_assert_eq!(connecting.take(), Some(home)),
                    Output::Join(home) => {
                        prop_assert_eq!(connecting.take(), Some(home.coordinator));
                        prop_assert!(home.home_seq > moves);
                        (moves, staying) = (home.home_seq, Some(home.coordinator));
                    }
                    Output::Settled(home) => prop_assert_eq!(staying, Some(home)),
                    Output::Leave(home) => prop_assert_eq!(staying.take(), Some(home)),
                }
            }
            let waits = worker.seeker.poll_timeout();
            prop_assert_eq!(waits.is_none(), staying.is_some(), "it wakes by itself unless a connection is to tell");
            if let Some((at, wake)) = waits && wake != Wake::Begins {
                prop_assert!(at <= worker.now + RETRY_MAX);
            }
        }
    }
}
