//! A worker goes from one coordinator to another.

use std::collections::BTreeSet;

use super::super::handover::rank;
use super::world::{Fate, World};
use super::*;

/// A world of this many coordinators; worker `w` has registered with coordinator 0, and all know it.
fn with_worker(count: usize) -> World {
    let mut world = World::new(count);
    world.register(0, "w");
    world.run(10);
    world
}

/// Time passes while the worker heartbeats to these, one after the other.
fn live(world: &mut World, seconds: u64, to: &[usize]) {
    for beat in 0..seconds / 30 {
        let n = to[beat as usize % to.len()];
        assert_ne!(world.heartbeat(n, "w", 0), Fate::Unknown);
        world.run(30);
    }
}

/// The two possible ranks of coordinators 0 and 1: a worker for which the first is ranked higher, and one for which it is not.
fn both_ranks() -> [String; 2] {
    let (zero, one) = (id(1), id(2));
    [true, false].map(|first| {
        let names = (0..).map(|n| format!("w{n}"));
        let mut fitting = names.filter(|name| (rank(&worker_id(name), zero) > rank(&worker_id(name), one)) == first);
        fitting.next().unwrap()
    })
}

#[test]
fn a_heartbeat_to_any_coordinator_reaches_the_one_that_holds_the_worker() {
    let mut world = with_worker(3);
    live(&mut world, 900, &[1, 2]);
    assert_eq!(world.holders("w"), [0]);
}

#[test]
fn a_registration_at_another_coordinator_replaces_the_record_where_it_is() {
    let mut world = with_worker(3);
    world.register(2, "w");
    assert_eq!(world.holders("w"), [0]);
}

#[test]
fn the_worker_of_a_coordinator_that_died_is_adopted_at_once_by_exactly_one() {
    let mut world = with_worker(4);
    world.crash(0);
    world.run(120);
    let [adopter] = world.holders("w")[..] else { panic!("{:?}", world.holders("w")) };
    live(&mut world, 900, &[1, 2, 3]);
    assert_eq!(world.holders("w"), [adopter]);
}

#[test]
fn a_heartbeat_adopts_where_the_holder_does_not_answer() {
    let mut world = with_worker(2);
    world.crash(0);
    // Its lease still runs.
    assert_eq!(world.heartbeat(1, "w", 0), Fate::Noted);
    assert_eq!(world.holders("w"), [1]);
}

#[test]
fn a_worker_that_goes_while_two_hold_it_is_gone_at_both() {
    for last in [0, 1] {
        let mut world = with_worker(3);
        // For a moment its holder could not be reached: another took it over.
        world.apart = Some(0);
        assert_eq!(world.heartbeat(1, "w", 0), Fate::Noted);
        world.apart = None;
        world.run(30);
        assert_eq!(world.holders("w"), [0, 1]);
        world.unregister(last, "w");
        assert_eq!(world.holders("w").len(), 0, "said to {last}");
        world.run(60);
        assert_eq!(world.heartbeat(2, "w", 0), Fate::Unknown);
    }
}

#[test]
fn a_coordinator_that_comes_back_and_the_one_that_adopted_agree() {
    for down in [100, 300, 500] {
        let mut world = with_worker(2);
        world.crash(0);
        live(&mut world, down, &[1]);
        world.restart(0);
        live(&mut world, 300, &[1]);
        assert_eq!(world.holders("w").len(), 1, "after {down} s");
        live(&mut world, 300, &[0]);
        assert_eq!(world.holders("w").len(), 1, "after {down} s");
    }
}

#[test]
fn after_a_partition_the_one_that_hears_of_the_worker_keeps_it_whatever_the_rank() {
    for worker in both_ranks() {
        for hears in [0, 1] {
            let mut world = World::new(2);
            world.register(0, &worker);
            world.run(10);
            world.apart = Some(0);
            for _ in 0..10 {
                assert_eq!(world.heartbeat(hears, &worker, 0), Fate::Noted);
                world.run(30);
            }
            // Apart, both may hold it.
            assert!(world.holders(&worker).contains(&hears));
            world.apart = None;
            for _ in 0..10 {
                assert_eq!(world.heartbeat(hears, &worker, 0), Fate::Noted);
                world.run(30);
                assert!(world.holders(&worker).contains(&hears));
            }
            assert_eq!(world.holders(&worker), [hears], "{worker}");
        }
    }
}

#[test]
fn after_a_partition_a_worker_that_nobody_hears_of_is_still_held_once() {
    for worker in both_ranks() {
        let mut world = World::new(2);
        world.register(0, &worker);
        world.run(10);
        world.apart = Some(0);
        world.run(120);
        assert_eq!(world.holders(&worker), [0, 1]);
        world.apart = None;
        for _ in 0..40 {
            world.run(5);
            assert!(!world.holders(&worker).is_empty(), "{worker}");
        }
        assert_eq!(world.holders(&worker).len(), 1, "{worker}");
        assert_ne!(world.heartbeat(0, &worker, 0), Fate::Unknown);
        assert_ne!(world.heartbeat(1, &worker, 0), Fate::Unknown);
    }
}

#[test]
fn a_worker_that_talks_to_two_coordinators_that_cannot_pass_it_on_ends_at_one() {
    for worker in both_ranks() {
        let mut world = World::new(2);
        world.register(0, &worker);
        world.run(10);
        world.apart = Some(0);
        for beat in 0..12 {
            world.heartbeat(beat % 2, &worker, 0);
            world.run(15);
        }
        assert_eq!(world.holders(&worker), [0, 1]);
        world.apart = None;
        for beat in 0..24 {
            assert_eq!(world.heartbeat(beat % 2, &worker, 0), Fate::Noted);
            world.run(15);
        }
        assert_eq!(world.holders(&worker).len(), 1);
    }
}

/// A registry in which coordinators 1 to 3 are there, and 4, which spoke for `worker`, is not.
fn with_orphan(worker: &str) -> Said {
    let mut said = Said::new();
    said.coordinator(at(0), 4);
    let registration = Registration::parse(agent(worker).to_string().as_bytes()).unwrap();
    let details = guest::details(&worker_id(worker), &registration, vec![], &Limits::PRODUCTION).unwrap();
    said.say(at(0), 4, &Body::Guest(Guest { worker_id: worker.into(), details }));
    said.registry.handle_timeout(at(61));
    (1..4).for_each(|n| said.coordinator(at(61), n));
    said
}

#[test]
fn each_orphan_falls_to_exactly_one_of_those_that_are_there() {
    let mut adopters = BTreeSet::new();
    for n in 0..24 {
        let said = with_orphan(&format!("w{n}"));
        let adopts = |n: &u8| {
            let mut desk = Desk::new(at(61), id(*n), DeskConfig::default());
            desk.adopt_orphans(at(61), &said.registry).len() == 1
                && desk.adopt_orphans(at(61), &said.registry).is_empty()
        };
        let adopting: Vec<u8> = (1..4).filter(adopts).collect();
        assert_eq!(adopting.len(), 1, "w{n}");
        adopters.extend(adopting);
    }
    // And the work is shared.
    assert_eq!(adopters.len(), 3);
}

#[test]
fn two_silent_coordinators_that_learn_of_each_other_at_the_same_moment_do_not_both_let_go() {
    for worker in both_ranks() {
        let mut said = with_orphan(&worker);
        // Each has taken it over without knowing of the other.
        let mut desks = [1, 2].map(|n| Desk::new(at(61), id(n), DeskConfig::default()));
        let view = said.registry.claims_of(&worker).next().unwrap();
        let claim = Body::Guest(view.guest.clone());
        for n in [1, 2] {
            said.say(at(62), n, &claim);
        }
        for desk in &mut desks {
            assert_eq!(desk.resume(at(62), &said.registry), 1);
        }
        let said_by_one = desks[0].met_guest(at(63), &said.registry, id(2), &worker);
        let said_by_two = desks[1].met_guest(at(63), &said.registry, id(1), &worker);
        let statuses = statuses(&[said_by_one.unwrap(), said_by_two.unwrap()]);
        let gone = statuses.iter().filter(|(_, status)| *status == GuestStatus::Gone).count();
        assert_eq!((gone, desks.iter().map(Desk::len).sum::<usize>()), (1, 1));
    }
}
