//! The laws of the join, and a model of it in a few lines.

use super::*;
use crate::record::{Record, RecordHash, RecordKey};
use std::cmp::Reverse;

fn records() -> impl Strategy<Value = Vec<Signed>> {
    proptest::collection::vec(any_record(), 0..24)
}

fn join_all<'a>(records: impl IntoIterator<Item = &'a Signed>) -> Registry {
    let mut registry = registry();
    for signed in records {
        insert(&mut registry, at(Duration::ZERO), signed);
    }
    registry
}

fn join(into: &mut Registry, from: &Registry) {
    let records: Vec<Signed> = from.records(at(Duration::ZERO)).map(|(signed, _)| signed.clone()).collect();
    for signed in records {
        insert(into, at(Duration::ZERO), &signed);
    }
}

fn read(signed: &Signed) -> Record {
    signed.record().clone()
}

/// The reference: of all that was ever said, what no Leave covers, and of that the greatest for each key.
fn model(records: &[Signed]) -> BTreeSet<RecordHash> {
    let all: Vec<(Record, RecordHash)> = records.iter().map(|signed| (read(signed), signed.hash())).collect();
    let leaves = all.iter().filter(|(record, _)| record.body == Body::Leave);
    let left = |writer: &NodeId| leaves.clone().filter(|(r, _)| r.writer == *writer).map(|(r, _)| r.version).max();
    let mut greatest: BTreeMap<RecordKey, (Version, Reverse<RecordHash>)> = BTreeMap::new();
    for (record, hash) in &all {
        if record.body != Body::Leave && Some(record.version) <= left(&record.writer) {
            continue;
        }
        let order = (record.version, Reverse(*hash));
        let place = greatest.entry(record.key()).or_insert(order);
        *place = order.max(*place);
    }
    greatest.into_values().map(|(_, Reverse(hash))| hash).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_registry_holds_what_the_model_holds(records in records()) {
        prop_assert_eq!(held(&join_all(&records)), model(&records));
    }

    #[test]
    fn whoever_coordinates_is_found_among_all_nodes_and_without_looking_through_them(
        (records, minutes) in (records(), 0..1500_u64),
    ) {
        let mut registry = join_all(&records);
        registry.handle_timeout(at(Duration::from_secs(60 * minutes)));
        let all = registry.nodes().filter(|record| record.node().is_some_and(|node| node.roles.coordinates()));
        let all: Vec<NodeId> = all.map(|record| record.writer).collect();
        prop_assert_eq!(registry.coordinator_nodes().map(|(id, _)| id).collect::<Vec<_>>(), all);
    }

    #[test]
    fn while_the_generation_of_nodes_stands_still_so_does_what_is_shown_of_them(
        steps in proptest::collection::vec((any_record(), 0..400_u64, 0..4_u8), 0..40),
    ) {
        let shown = |registry: &Registry| {
            let coordinators = registry.coordinators().map(|view| (view.record.writer, view.presence));
            let nodes: Vec<Record> = registry.nodes().cloned().collect();
            let known: Vec<NodeId> = registry.coordinator_nodes().map(|(id, _)| id).collect();
            (registry.nodes_generation(), (nodes, coordinators.collect::<Vec<_>>(), known))
        };
        let (mut registry, mut now) = (registry(), at(Duration::ZERO));
        for (signed, wait, what) in steps {
            let (generation, before) = shown(&registry);
            now = now + Duration::from_secs(wait);
            match what {
                0 => registry.meet(now, signed.writer()),
                1 => registry.part(now, signed.writer()),
                _ => _ = insert(&mut registry, now, &signed),
            }
            let (generation_after, after) = shown(&registry);
            prop_assert!(generation != generation_after || before == after);
        }
    }

    #[test]
    fn joining_is_commutative(
        (records, shuffled) in records().prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle())),
    ) {
        let (a, b) = (join_all(&records), join_all(&shuffled));
        prop_assert_eq!(held(&a), held(&b));
        prop_assert_eq!(a.digest(), b.digest());
    }

    #[test]
    fn joining_is_associative(a in records(), b in records(), c in records()) {
        let (a, b, c) = (join_all(&a), join_all(&b), join_all(&c));
        let mut left = a.clone();
        join(&mut left, &b);
        join(&mut left, &c);
        let mut right = b;
        join(&mut right, &c);
        let mut all = a;
        join(&mut all, &right);
        prop_assert_eq!(left.digest(), all.digest());
        prop_assert_eq!(held(&left), held(&all));
    }

    #[test]
    fn joining_is_idempotent(records in records()) {
        let mut registry = join_all(&records);
        let (before, generation) = (registry.digest(), registry.generation());
        for signed in &records {
            let outcome = insert(&mut registry, at(Duration::ZERO), signed);
            prop_assert!(!outcome.is_news(), "{:?}", outcome);
        }
        prop_assert_eq!(registry.digest(), before);
        prop_assert_eq!(registry.generation(), generation);
    }

    #[test]
    fn joining_is_inflationary(records in records()) {
        let mut registry = registry();
        for signed in &records {
            let before: Vec<Signed> = registry.records(at(Duration::ZERO)).map(|(signed, _)| signed.clone()).collect();
            insert(&mut registry, at(Duration::ZERO), signed);
            // Whatever was here, nothing of it is news: something as great or greater stands in its place.
            for signed in before {
                prop_assert!(!insert(&mut registry.clone(), at(Duration::ZERO), &signed).is_news());
            }
        }
    }

    #[test]
    fn nothing_is_remembered_of_what_is_not_there(records in records()) {
        let mut registry = join_all(&records);
        registry.handle_timeout(at(HOUR * 48));
        prop_assert_eq!(registry.len(), 0);
        prop_assert!(registry.writers.is_empty() && registry.homes.is_empty() && registry.timers.is_empty());
        prop_assert_eq!(format!("{:?}", registry.quotas), format!("{:?}", Quotas::default()));
        prop_assert_eq!(registry.digest(), super::registry().digest());
    }
}

#[test]
fn equal_order_and_different_bytes_leave_the_smaller_hash_and_a_mark_that_decays() {
    let (one, other) = (say(2, 1, 1, &worker_of(0, 1)), say(2, 1, 1, &worker_of(0, 2)));
    let (small, large) = if one.hash() < other.hash() { (one, other) } else { (other, one) };
    let now = at(Duration::ZERO);
    for (first, second, outcome) in
        [(&small, &large, Outcome::ConflictIgnored), (&large, &small, Outcome::ConflictTaken)]
    {
        let mut registry = registry();
        assert_eq!(insert(&mut registry, now, first), Outcome::New);
        assert_eq!(insert(&mut registry, now, second), outcome);
        assert_eq!(held(&registry), BTreeSet::from([small.hash()]));
        assert_eq!(registry.contradictions(now, &id(2)), 1000);
        assert_eq!(registry.contradictions(now + MINUTE * 10, &id(2)), 500);
    }
}

#[test]
fn a_leave_is_the_tombstone_of_everything_that_its_writer_said() {
    let now = at(Duration::ZERO);
    let mut registry = registry();
    insert(&mut registry, now, &say(0, 1, 1, &coordinator()));
    insert(&mut registry, now, &say(0, 1, 2, &lease()));
    insert(&mut registry, now, &say(0, 1, 3, &guest("a", GuestStatus::Healthy)));
    assert_eq!(insert(&mut registry, now, &say(0, 1, 4, &Body::Leave)), Outcome::New);
    assert_eq!(registry.len(), 1);
    assert!(registry.node(&id(0)).is_none() && registry.coordinators().next().is_none());
    assert_eq!(insert(&mut registry, now, &say(0, 1, 1, &coordinator())), Outcome::Left);
    // It comes back with a higher epoch, and is there.
    assert_eq!(insert(&mut registry, now, &say(0, 2, 0, &coordinator())), Outcome::New);
    assert!(registry.node(&id(0)).is_some());
}

#[test]
fn records_of_unknown_kinds_are_ordered_and_kept() {
    let unknown = |seq, content: &'static [u8]| {
        say(2, 1, seq, &Body::Unknown(Unknown { kind: Kind(99), subject: Bytes::new(), content: content.into() }))
    };
    let mut registry = registry();
    let now = at(Duration::ZERO);
    assert_eq!(insert(&mut registry, now, &unknown(2, b"\x07new")), Outcome::New);
    assert_eq!(insert(&mut registry, now, &unknown(1, b"\x07old")), Outcome::Older);
    assert_eq!(held(&registry), BTreeSet::from([unknown(2, b"\x07new").hash()]));
}
