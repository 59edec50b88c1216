//! Whatever happens to coordinators and to the network: the registry's word is kept, and in the end each worker that lives
//! is held once.

use proptest::prelude::*;

use super::world::{Fate, World};

const COORDINATORS: usize = 3;
const WORKERS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Event {
    Register { coordinator: usize, worker: usize },
    Heartbeat { coordinator: usize, worker: usize, load: u8 },
    Crash(usize),
    Restart(usize),
    Cut(usize),
    Heal,
    Pass { seconds: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    let coordinator = 0..COORDINATORS;
    let pair = (coordinator.clone(), 0..WORKERS.len());
    prop_oneof![
        1 => pair.clone().prop_map(|(coordinator, worker)| Event::Register { coordinator, worker }),
        6 => (pair, 0..100_u8).prop_map(|((coordinator, worker), load)| Event::Heartbeat { coordinator, worker, load }),
        1 => coordinator.clone().prop_map(Event::Crash),
        1 => coordinator.clone().prop_map(Event::Restart),
        1 => coordinator.prop_map(Event::Cut),
        1 => Just(Event::Heal),
        3 => (0..80_u64).prop_map(|seconds| Event::Pass { seconds }),
    ]
}

fn apply(world: &mut World, event: &Event) {
    match *event {
        Event::Register { coordinator, worker } => world.register(coordinator, WORKERS[worker]),
        Event::Heartbeat { coordinator, worker, load } => _ = world.heartbeat(coordinator, WORKERS[worker], load),
        Event::Crash(n) if world.all[n].up => world.crash(n),
        Event::Restart(n) if !world.all[n].up => world.restart(n),
        Event::Cut(n) => world.apart = Some(n),
        Event::Heal => world.apart = None,
        Event::Crash(_) | Event::Restart(_) => {}
        Event::Pass { seconds } => world.run(seconds),
    }
}

/// Lets all of it happen, each time with the coordinator that the workers then ask first; then makes all well again, and
/// looks, while the workers talk to these in turn.
fn check(events: &[(Event, usize)], talks_to: &[usize]) {
    let mut world = World::new(COORDINATORS);
    for worker in WORKERS {
        world.register(0, worker);
    }
    world.run(30);
    for (event, prefer) in events {
        // `heartbeat` itself sees to it that nobody is unknown whom the registry knows.
        apply(&mut world, event);
        // Whatever happens, the workers go on: none is silent for so long that it would be taken for dead.
        for worker in WORKERS {
            let mut ask = (0..COORDINATORS).map(|n| (n + *prefer) % COORDINATORS);
            ask.find(|n| world.heartbeat(*n, worker, 0) == Fate::Noted);
        }
    }
    world.apart = None;
    for n in 0..COORDINATORS {
        apply(&mut world, &Event::Restart(n));
    }
    world.run(60);
    for beat in 0..12 {
        for worker in WORKERS {
            let n = talks_to[beat % talks_to.len()];
            assert_eq!(world.heartbeat(n, worker, 0), Fate::Noted);
        }
        world.run(30);
    }
    for worker in WORKERS {
        let holders = world.holders(worker);
        assert_eq!(holders.len(), 1, "{}", worker);
        for it in &world.all {
            let claims: Vec<_> = it.registry.claims_of(worker).map(|view| view.coordinator).collect();
            assert_eq!(&claims, &[world.all[holders[0]].id], "all say the same of {}", worker);
        }
    }
    // They stop, and are gone.
    world.run(660);
    for worker in WORKERS {
        assert_eq!(world.holders(worker).len(), 0);
        assert_eq!(world.heartbeat(0, worker, 0), Fate::Unknown);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn when_all_is_well_again_each_worker_that_lives_is_held_once_and_nobody_is_told_that_it_is_unknown(
        events in proptest::collection::vec((event(), 0..COORDINATORS), 0..30),
        talks_to in proptest::collection::vec(0..COORDINATORS, 1..4),
    ) {
        check(&events, &talks_to);
    }
}

/// Orders of events that once lost a worker, or left it with two.
#[test]
fn what_once_went_wrong_does_not_again() {
    use Event::{Crash, Cut, Heal, Pass, Restart};
    let pass = |seconds| Pass { seconds };
    let register = |coordinator, worker| Event::Register { coordinator, worker };
    let beat = |coordinator, load| Event::Heartbeat { coordinator, worker: 0, load };
    let first = |events: &[Event]| events.iter().map(|event| (event.clone(), 0)).collect::<Vec<_>>();
    // The first let go, and was made to take it up again by a heartbeat that was still on its way.
    check(&first(&[pass(76), Cut(0), pass(66), Cut(2), pass(11)]), &[0, 2, 0]);
    // Two decided in the same moment, since each had learned only of a third.
    check(&first(&[Crash(0), beat(2, 0)]), &[2]);
    // The second had begun to wait before the first could know of it.
    check(&first(&[Cut(0), pass(41), register(1, 2), pass(31), pass(6)]), &[1]);
    // The first kept it, and asked anew every half a minute.
    check(&first(&[Cut(0), pass(31), beat(0, 25), pass(6)]), &[1]);
    // One that let go left another, who had counted it in, to wait for too long.
    let events = [
        (Crash(0), 2),
        (register(0, 0), 0),
        (pass(31), 0),
        (Restart(0), 1),
        (pass(16), 1),
        (pass(51), 0),
        (Cut(2), 0),
        (pass(36), 0),
        (pass(36), 0),
        (Crash(0), 0),
        (pass(66), 0),
        (pass(41), 0),
        (pass(1), 0),
        (Restart(0), 0),
        (register(0, 0), 0),
        (pass(46), 2),
    ];
    check(&events, &[0]);
    // Too many records of the first in one moment.
    let events = [(Cut(0), 2), (Restart(0), 1), (Heal, 0), (pass(21), 0), (pass(21), 0), (Crash(0), 0)];
    check(&events, &[2]);
}
