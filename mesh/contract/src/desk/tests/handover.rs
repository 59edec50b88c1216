//! A worker goes from one coordinator to another.

use super::world::{Fate, World};

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
    use super::super::handover::rank;
    let (zero, one) = (super::id(1), super::id(2));
    [true, false].map(|first| {
        let names = (0..).map(|n| format!("w{n}"));
        let mut fitting =
            names.filter(|name| (rank(&super::worker_id(name), zero) > rank(&super::worker_id(name), one)) == first);
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
        world.run(200);
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
