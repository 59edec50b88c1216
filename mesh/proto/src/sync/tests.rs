use proptest::prelude::*;

use super::*;
use crate::limits::Limits;
use crate::record::{Body, Roles};
use crate::registry::Presence;
use crate::registry::tests::{FEDERATION, HOUR, MINUTE, any_record, at, held, id, insert, lease, node, registry, say};

const START: Duration = Duration::ZERO;

/// Runs a session to its end and returns what either side has moved.
fn synchronise(now: Time, one: &mut Registry, two: &mut Registry) -> (Traffic, Traffic) {
    let (mut a, mut b) = (Session::initiate(), Session::respond());
    for _ in 0..MESSAGES_MAX {
        let mut moved = false;
        while let Some(message) = a.poll_transmit(now, one) {
            assert!(message.len() <= one.limits().sync_message_bytes_max, "{} bytes", message.len());
            b.handle(now, two, &message).unwrap();
            moved = true;
        }
        while let Some(message) = b.poll_transmit(now, two) {
            assert!(message.len() <= two.limits().sync_message_bytes_max, "{} bytes", message.len());
            a.handle(now, one, &message).unwrap();
            moved = true;
        }
        if !moved {
            assert!(a.is_finished() && b.is_finished());
            return (a.traffic(), b.traffic());
        }
    }
    panic!("the session does not end");
}

fn of(records: &[Signed]) -> Registry {
    let mut registry = registry();
    for signed in records {
        insert(&mut registry, at(START), signed);
    }
    registry
}

/// Many nodes' records, signed once.
fn crowd() -> &'static [Signed] {
    &thousands()[..1200]
}

fn thousands() -> &'static [Signed] {
    static CROWD: std::sync::OnceLock<Vec<Signed>> = std::sync::OnceLock::new();
    CROWD.get_or_init(|| {
        let key = |n: u16| {
            let mut seed = [0; 32];
            seed[..2].copy_from_slice(&n.to_be_bytes());
            crate::key::SecretKey::from_seed(seed)
        };
        let body = node(Roles::Worker, None);
        (1..=6000).map(|n| Signed::sign(&key(n), FEDERATION, 1, Version { epoch: 1, seq: 1 }, &body).unwrap()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn two_registries_converge(
        one in proptest::collection::vec(any_record(), 0..40),
        two in proptest::collection::vec(any_record(), 0..40),
    ) {
        let (mut a, mut b) = (of(&one), of(&two));
        let mut both = one;
        both.extend(two);
        let expected = of(&both);
        synchronise(at(START), &mut a, &mut b);
        prop_assert_eq!(held(&a), held(&expected));
        prop_assert_eq!(a.digest(), b.digest());
        // And then there is nothing more to say.
        let (sent, answered) = synchronise(at(START), &mut a, &mut b);
        prop_assert_eq!(sent.records_sent + answered.records_sent, 0);
        prop_assert!(sent.bytes_sent + answered.bytes_sent < 100);
    }

    #[test]
    fn no_mutation_of_a_message_breaks_a_session(
        records in proptest::collection::vec(any_record(), 0..20),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        victim in 0..4_usize,
    ) {
        let (mut one, mut two) = (of(&records), registry());
        let (mut a, mut b) = (Session::initiate(), Session::respond());
        let now = at(START);
        for turn in 0..64 {
            let Some(mut message) = a.poll_transmit(now, &one) else { break };
            if turn == victim {
                for (at, byte) in &changes {
                    let at = at.index(message.len());
                    message[at] = *byte;
                }
            }
            if b.handle(now, &mut two, &message).is_err() {
                break;
            }
            std::mem::swap(&mut a, &mut b);
            std::mem::swap(&mut one, &mut two);
        }
        // Whatever happened, nothing was believed that nobody signed.
        let signed = held(&of(&records));
        let all: BTreeSet<_> = records.iter().map(Signed::hash).collect();
        prop_assert!(held(&one).is_subset(&all) && held(&two).is_subset(&all));
        prop_assert!(held(&one) == signed || held(&two) == signed);
    }

    #[test]
    fn garbage_is_an_error_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let mut registry = registry();
        let mut session = Session::respond();
        let mut bytes = bytes;
        let _ = session.handle(at(START), &mut registry, &bytes);
        bytes.insert(0, wire::VERSION);
        let _ = Session::respond().handle(at(START), &mut registry, &bytes);
        prop_assert!(registry.is_empty());
    }

    #[test]
    fn the_traffic_is_about_what_differs(
        missing_here in proptest::collection::btree_set(0..1200_usize, 0..10),
        missing_there in proptest::collection::btree_set(0..1200_usize, 0..10),
    ) {
        let without = |missing: &BTreeSet<usize>| {
            let kept = crowd().iter().enumerate().filter(|(n, _)| !missing.contains(n)).map(|(_, signed)| signed.clone());
            of(&kept.collect::<Vec<_>>())
        };
        let (mut a, mut b) = (without(&missing_here), without(&missing_there));
        let differences = missing_here.symmetric_difference(&missing_there).count();
        let (sent, answered) = synchronise(at(START), &mut a, &mut b);
        prop_assert_eq!(a.digest(), b.digest());
        prop_assert_eq!(sent.records_sent + answered.records_sent, differences);
        // For each difference its record, and on the way to it sixteen fingerprints at each of three depths and a list.
        let per_difference = 3 * 16 * 34 + LIST_MAX * Listed::BYTES_MAX + 300;
        let bytes = sent.bytes_sent + answered.bytes_sent;
        prop_assert!(bytes <= 200 + differences * per_difference, "{bytes} bytes for {differences} differences");
    }
}

/// Two halves of a mesh that were parted, each of which has news: what they say to each other is at most twice what differed and
/// 32 KiB.
#[test]
fn after_a_partition_a_pair_moves_little_more_than_what_differs() {
    for (records, differ) in
        [(60, 40), (200, 100), (1200, 10), (1200, 60), (1200, 300), (6000, 60), (6000, 600), (6000, 3000)]
    {
        let all = &thousands()[..records];
        // Those that only the first half has, and those that only the second one has, all over the tree.
        let step = records / differ;
        let lacks = |here: usize| move |n: usize| n.is_multiple_of(step) && n / step < differ && n / step % 2 == here;
        let without = |lacks: &dyn Fn(usize) -> bool| {
            let kept = all.iter().enumerate().filter(|(n, _)| !lacks(*n)).map(|(_, signed)| signed.clone());
            of(&kept.collect::<Vec<_>>())
        };
        let (mut one, mut two) = (without(&lacks(0)), without(&lacks(1)));
        let (sent, answered) = synchronise(at(START), &mut one, &mut two);
        assert_eq!(one.digest(), two.digest());
        let moved = sent.bytes_sent + answered.bytes_sent;
        let differed: usize = (0..records).filter(|n| lacks(0)(*n) || lacks(1)(*n)).map(|n| all[n].bytes().len()).sum();
        let most = 2 * differed + 32 * 1024;
        assert!(moved <= most, "{differ} of {records} records differed, {differed} bytes, and {moved} moved");
    }
}

#[test]
fn an_empty_replica_catches_up_in_bulk_and_in_both_directions() {
    for initiator_is_empty in [true, false] {
        let (mut full, mut empty) = (of(crowd()), registry());
        let (one, two) = if initiator_is_empty { (&mut empty, &mut full) } else { (&mut full, &mut empty) };
        let (a, b) = synchronise(at(START), one, two);
        assert_eq!(a.records_sent + b.records_sent, crowd().len());
        let bytes: usize = crowd().iter().map(|signed| signed.bytes().len()).sum();
        assert!(a.bytes_sent + b.bytes_sent < bytes + bytes / 10);
        assert_eq!(full.digest(), empty.digest());
    }
}

#[test]
fn ages_travel_with_the_records() {
    let (mut one, mut two) = (registry(), registry());
    let now = at(MINUTE / 2);
    one.insert(at(START), say(0, 1, 1, &lease()), Source::Direct(None)).unwrap();
    insert(&mut one, at(START), &say(2, 1, 1, &node(Roles::Worker, None)));
    synchronise(now, &mut one, &mut two);
    assert_eq!((one.presence(&id(0)), two.presence(&id(0))), (Presence::Here, Presence::Provisional));
    two.handle_timeout(at(MINUTE));
    assert_eq!(two.presence(&id(0)), Presence::Absent);
    two.handle_timeout(at(MINUTE * 10));
    assert!(two.node(&id(2)).is_none());
}

#[test]
fn a_tombstone_never_resurrects_through_a_catch_up() {
    let (mut one, mut two) = (registry(), registry());
    let old = say(2, 1, 1, &node(Roles::Worker, None));
    insert(&mut one, at(START), &old);
    insert(&mut two, at(START), &old);
    insert(&mut two, at(START), &say(2, 1, 2, &Body::Leave));
    synchronise(at(HOUR / 10), &mut one, &mut two);
    assert_eq!(one.digest(), two.digest());
    assert!(one.node(&id(2)).is_none() && two.node(&id(2)).is_none());
    // The one that lapsed here is not brought back by a neighbour that has it still.
    let (mut one, mut two) = (registry(), registry());
    insert(&mut one, at(START), &old);
    insert(&mut two, at(MINUTE * 9), &old);
    let now = at(MINUTE * 11);
    one.handle_timeout(now);
    synchronise(now, &mut one, &mut two);
    assert!(one.node(&id(2)).is_none() && two.node(&id(2)).is_some());
}

#[test]
fn a_full_registry_takes_what_fits_and_the_session_ends() {
    let mut full = of(&crowd()[..40]);
    // How long a message may be is a matter of the protocol, not of who has how much room.
    let sync_message_bytes_max = Limits::PRODUCTION.sync_message_bytes_max;
    let mut small = Registry::new(FEDERATION, Limits { sync_message_bytes_max, ..Limits::TINY });
    synchronise(at(START), &mut full, &mut small);
    assert_eq!(small.len(), Limits::TINY.workers_without_sponsor_max);
}

#[test]
fn a_message_out_of_turn_ends_the_session() {
    let mut registry = registry();
    let mut session = Session::initiate();
    let mut other = Session::initiate();
    let message = other.poll_transmit(at(START), &registry).unwrap();
    assert_eq!(session.handle(at(START), &mut registry, &message), Err(SyncError::OutOfTurn));
}

#[test]
fn a_peer_that_plays_for_time_is_cut_off() {
    let mut registry = of(&crowd()[..40]);
    let mut session = Session::respond();
    let endless = wire::encode(&Message {
        ends_turn: true,
        compare: vec![(Subtree::of(Prefix::ROOT), Fingerprint([1; 16]))],
        ..Message::default()
    });
    let error = loop {
        if let Err(error) = session.handle(at(START), &mut registry, &endless) {
            break error;
        }
        while session.poll_transmit(at(START), &registry).is_some() {}
    };
    assert_eq!(error, SyncError::TooLong);
}

#[test]
fn equal_registries_cost_the_same_however_large_they_are() {
    let costs = |records: &[Signed]| {
        let (mut one, mut two) = (of(records), of(records));
        let (first, second) = synchronise(at(MINUTE), &mut one, &mut two);
        assert_eq!(first.records_sent + second.records_sent, 0);
        first.bytes_sent + second.bytes_sent
    };
    let crowd = crowd();
    assert_eq!(costs(crowd), costs(&crowd[..2]));
    assert!(costs(crowd) < 64, "{} bytes", costs(crowd));
}

/// Found by the simulation: of so many that all subtrees of two digits are divided, a message compares hundreds of parts, and
/// the other side did not take it, since it would have been too much memory for so few bytes.
#[test]
fn large_registries_that_differ_all_over_converge() {
    let all = thousands();
    let (mut one, mut two) = (of(all), registry());
    for (_, signed) in all.iter().enumerate().filter(|(n, _)| n % 20 != 0) {
        insert(&mut two, at(START), signed);
    }
    let (sent, _) = synchronise(at(START), &mut one, &mut two);
    assert_eq!(one.digest(), two.digest());
    assert_eq!(sent.records_sent, all.len() / 20);
}

#[test]
fn the_fullest_messages_are_taken() {
    let prefix = |n: u8, digits| Subtree::of(Prefix::new(digits, KeyHash([n; 16])).unwrap());
    for digits in [1, 2, 3, 5, 32] {
        let compare = |n: usize| (0..n).map(|n| (prefix(n as u8, digits), Fingerprint([7; 16]))).collect::<Vec<_>>();
        let listed = Listed { key: KeyHash([1; 16]), version: Version { epoch: 1, seq: 1 }, hash: [1; 16] };
        // As `fill` counts what it puts in.
        let room = Limits::PRODUCTION.sync_message_bytes_max - MESSAGE_OVERHEAD_BYTES;
        let many = room / (16 * (Subtree::BYTES_MAX + 16)) * 16;
        let lists = room / (Subtree::BYTES_MAX + 3 + LIST_MAX * Listed::BYTES_MAX);
        let messages = [
            Message { compare: compare(many), ..Message::default() },
            Message { lists: vec![(prefix(1, digits), vec![listed.clone(); LIST_MAX]); lists], ..Message::default() },
            Message { lists: vec![(prefix(1, digits), vec![listed]); lists], ..Message::default() },
            Message { want: vec![KeyHash([1; 16]); room / 16], ..Message::default() },
            Message { records: vec![(1, Blob(vec![1; 180].into())); room / 192], ..Message::default() },
        ];
        for message in messages {
            let bytes = wire::encode(&message);
            let max = Limits::PRODUCTION.sync_message_bytes_max;
            assert_eq!(wire::decode::<Message>(&bytes, max), Ok(message), "{} bytes, {digits} digits", bytes.len());
        }
    }
}

#[test]
fn of_what_is_of_no_use_only_so_much_is_looked_at_and_what_found_no_room_is_not_verified_again() {
    let limits = Limits { workers_without_sponsor_max: 4, ..Limits::PRODUCTION };
    let (mut full, crowd) = (Registry::new(FEDERATION, limits), of(crowd()));
    let mut message = Message { ends_turn: true, ..Message::default() };
    message.records.extend(crowd.records(at(START)).take(100).map(|(signed, _)| (0, Blob(signed.bytes().clone()))));
    let message = wire::encode(&message);
    let mut hear = |now: Duration, patience: usize| {
        let mut session = Session::respond();
        session.be_patient(patience);
        let received = session.handle(at(now), &mut full, &message).unwrap();
        (received.news.len(), received.refused, received.passed_over, session.patience())
    };
    assert_eq!(hear(START, 30), (4, 30, 66, 0));
    // Those that are known, and those that found no room, which cost nothing, and some more.
    assert_eq!(hear(START, 14), (0, 40, 56, 0));
    assert_eq!(hear(START, 1000), (0, 96, 0, 1000 - 4 - 56));
    assert_eq!(hear(START, 1000), (0, 96, 0, 1000 - 4));
    assert_eq!(hear(MINUTE, 1000), (0, 96, 0, 1000 - 100), "there may be room by now");
}
