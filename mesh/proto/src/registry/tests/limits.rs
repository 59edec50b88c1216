//! Bounds: what is over one is refused by name, and marks make room by age.

use std::net::IpAddr;

use super::*;

fn tiny() -> Registry {
    Registry::new(FEDERATION, Limits::TINY)
}

fn put(registry: &mut Registry, n: u8, seq: u64, body: &Body) -> Result<Outcome, Refused> {
    registry.insert(at(Duration::ZERO), say(n, 1, seq, body), Source::Passed(Duration::ZERO))
}

#[test]
fn coordinators_are_bounded_and_those_that_are_here_go_on() {
    let mut registry = tiny();
    for n in 0..4 {
        put(&mut registry, n, 1, &lease()).unwrap();
    }
    assert_eq!(put(&mut registry, 9, 1, &lease()), Err(Refused::Coordinators { max: 4 }));
    assert_eq!(put(&mut registry, 9, 1, &coordinator()), Err(Refused::Coordinators { max: 4 }));
    assert_eq!(put(&mut registry, 3, 2, &lease()), Ok(Outcome::Advanced));
    put(&mut registry, 3, 3, &Body::Leave).unwrap();
    assert_eq!(put(&mut registry, 9, 1, &lease()), Ok(Outcome::New));
}

#[test]
fn workers_are_bounded_by_sponsor_and_in_all() {
    let mut registry = tiny();
    put(&mut registry, 0, 1, &lease()).unwrap();
    for n in 10..14 {
        put(&mut registry, n, 1, &node(Roles::Worker, None)).unwrap();
    }
    // A home that nobody knows is no sponsor.
    assert_eq!(put(&mut registry, 14, 1, &worker_of(1, 1)), Err(Refused::WorkersWithoutSponsor { max: 4 }));
    for n in 20..24 {
        put(&mut registry, n, 1, &worker_of(0, 1)).unwrap();
    }
    assert_eq!(put(&mut registry, 24, 1, &worker_of(0, 1)), Err(Refused::Workers { max: 8 }));
    for n in 10..13 {
        put(&mut registry, n, 2, &Body::Leave).unwrap();
    }
    put(&mut registry, 24, 1, &worker_of(0, 1)).unwrap();
    assert_eq!(put(&mut registry, 25, 1, &worker_of(0, 1)), Err(Refused::WorkersOfSponsor { sponsor: id(0), max: 5 }));
}

#[test]
fn a_sponsor_that_comes_later_takes_its_workers_over() {
    let mut registry = tiny();
    for n in 20..24 {
        put(&mut registry, n, 1, &worker_of(0, 1)).unwrap();
    }
    put(&mut registry, 0, 1, &lease()).unwrap();
    assert_eq!(put(&mut registry, 30, 1, &node(Roles::Worker, None)), Ok(Outcome::New));
}

#[test]
fn nodes_from_one_place_are_bounded() {
    let mut registry = tiny();
    let from = |address: &str| Source::Direct(Some(address.parse::<IpAddr>().unwrap()));
    let now = at(Duration::ZERO);
    for n in 0..4 {
        registry.insert(now, say(n, 1, 1, &lease()), from("192.0.2.1")).unwrap();
    }
    for n in 10..12 {
        registry.insert(now, say(n, 1, 1, &node(Roles::Worker, None)), from("::ffff:192.0.2.77")).unwrap();
    }
    let one_more = say(12, 1, 1, &node(Roles::Worker, None));
    let prefix = SourcePrefix::V4([192, 0, 2]);
    assert_eq!(registry.insert(now, one_more.clone(), from("192.0.2.9")), Err(Refused::Prefix { prefix, max: 6 }));
    assert_eq!(prefix.to_string(), "192.0.2.0/24");
    registry.insert(now, one_more, from("2001:db8:1:2::3")).unwrap();
    assert_eq!(SourcePrefix::of("2001:db8:1:2::3".parse().unwrap()).to_string(), "2001:0db8:0001::/48");
    registry.insert(now, say(10, 1, 2, &Body::Leave), Source::Direct(None)).unwrap();
    registry.handle_timeout(now + HOUR * 25);
    registry.insert(now + HOUR * 25, say(13, 1, 1, &node(Roles::Worker, None)), from("192.0.2.9")).unwrap();
}

#[test]
fn what_one_coordinator_says_of_others_is_bounded() {
    let mut registry = tiny();
    put(&mut registry, 0, 1, &lease()).unwrap();
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        put(&mut registry, 0, 2 + n as u64, &guest(name, GuestStatus::Healthy)).unwrap();
    }
    let refused = |what, max| Err(Refused::PerWriter { writer: id(0), what, max });
    assert_eq!(put(&mut registry, 0, 6, &guest("d", GuestStatus::Healthy)), refused("guests", 3));
    put(&mut registry, 0, 7, &guest("a", GuestStatus::Gone)).unwrap();
    put(&mut registry, 0, 8, &guest("d", GuestStatus::Healthy)).unwrap();
    for n in 0..5 {
        put(&mut registry, 0, 10 + u64::from(n), &attachment(20 + n, 1, AttachmentState::Attached)).unwrap();
    }
    assert_eq!(put(&mut registry, 0, 20, &attachment(30, 1, AttachmentState::Attached)), refused("attachments", 5));
    // Tombstones have their own bound, and the oldest go.
    for n in 0..10 {
        put(&mut registry, 0, 30 + u64::from(n), &attachment(40 + n, 1, AttachmentState::Detached)).unwrap();
    }
    let writer = &registry.writers[&id(0)];
    assert_eq!(writer.tombstones.len(), Limits::TINY.marks_per_sponsor_max);
    assert_eq!(writer.count(Kind::ATTACHMENT), 5);
}

#[test]
fn records_of_unknown_kinds_are_bounded_for_each_writer() {
    let mut registry = tiny();
    let unknown =
        |kind| Body::Unknown(Unknown { kind: Kind(kind), subject: Bytes::new(), content: Bytes::from_static(b"\x09") });
    put(&mut registry, 2, 1, &unknown(100)).unwrap();
    put(&mut registry, 2, 2, &unknown(101)).unwrap();
    let refused = Refused::PerWriter { writer: id(2), what: "records of unknown kinds", max: 2 };
    assert_eq!(put(&mut registry, 2, 3, &unknown(102)), Err(refused));
}

#[test]
fn marks_are_bounded_for_each_sponsor_and_in_all_and_the_oldest_go() {
    let mut registry = tiny();
    put(&mut registry, 0, 1, &lease()).unwrap();
    let leave = |registry: &mut Registry, n: u8, minute: u32| {
        let now = at(MINUTE * minute / 10);
        registry.insert(now, say(n, 1, 2, &Body::Leave), Source::Passed(Duration::ZERO)).unwrap();
    };
    for n in 20..25 {
        put(&mut registry, n, 1, &worker_of(0, 1)).unwrap();
        leave(&mut registry, n, u32::from(n - 20));
    }
    let marked: Vec<bool> = (20..25).map(|n| registry.writers.contains_key(&id(n))).collect();
    assert_eq!(marked, [false, true, true, true, true]);
    // Strangers who leave push each other out, not those that have a sponsor.
    for n in 30..50 {
        leave(&mut registry, n, u32::from(n - 20));
    }
    assert!((21..25).all(|n| registry.writers.contains_key(&id(n))));
    assert_eq!((30..50).filter(|n| registry.writers.contains_key(&id(*n))).collect::<Vec<_>>(), [46, 47, 48, 49]);
}

#[test]
fn what_has_been_dead_for_longer_than_marks_are_kept_is_not_taken() {
    let mut registry = registry();
    let now = at(Duration::ZERO);
    let dead = HOUR * 24 + MINUTE * 10;
    let insert =
        |registry: &mut Registry, age, body: &Body| registry.insert(now, say(2, 1, 1, body), Source::Passed(age));
    assert_eq!(insert(&mut registry, dead, &node(Roles::Worker, None)), Err(Refused::Expired));
    assert_eq!(insert(&mut registry, HOUR * 24, &Body::Leave), Err(Refused::Expired));
    assert_eq!(insert(&mut registry, Duration::MAX, &lease()), Err(Refused::Expired));
    assert_eq!(registry.len(), 0);
    // A moment less, and it is a mark that goes a moment later.
    let moment = Duration::from_secs(1);
    insert(&mut registry, dead - moment, &node(Roles::Worker, None)).unwrap();
    assert_eq!((registry.len(), registry.nodes().count()), (1, 0));
    registry.handle_timeout(now + moment);
    assert_eq!(registry.len(), 0);
}

#[test]
fn what_is_said_of_others_is_bounded_in_all_and_nobody_is_refused_his_share() {
    let limits = Limits { extra_records_max: 8, ..Limits::TINY };
    let mut registry = Registry::new(FEDERATION, limits);
    let said = |registry: &mut Registry, n: u8, seq: u64, worker: u8| {
        put(registry, n, seq, &attachment(worker, 1, AttachmentState::Attached))
    };
    // Two that say as much as they may, and tombstones, which have a bound of their own, on top.
    for n in 0..2 {
        put(&mut registry, n, 1, &lease()).unwrap();
        for worker in 0..5 {
            let taken = said(&mut registry, n, 2 + u64::from(worker), 100 + worker);
            assert_eq!(taken.is_ok(), n == 0 || worker < 3, "{n} {worker}: {taken:?}");
        }
    }
    assert_eq!(
        put(&mut registry, 0, 9, &guest("gone", GuestStatus::Gone)),
        Err(Refused::Share { writer: id(0), share: 2 })
    );
    // What is here may change.
    assert_eq!(said(&mut registry, 0, 10, 100), Ok(Outcome::Advanced));
    // Whoever comes later has its share.
    put(&mut registry, 2, 1, &lease()).unwrap();
    assert_eq!(said(&mut registry, 2, 2, 100), Ok(Outcome::New));
    assert_eq!(said(&mut registry, 2, 3, 101), Ok(Outcome::New));
    assert_eq!(said(&mut registry, 2, 4, 102), Err(Refused::Share { writer: id(2), share: 2 }));
    // What goes makes room.
    put(&mut registry, 0, 11, &Body::Leave).unwrap();
    assert_eq!(said(&mut registry, 2, 5, 102), Ok(Outcome::New));
}
