use crate::id::FederationId;
use crate::key::SecretKey;
use crate::limits::Limits;
use crate::record::{Home, Lease, NodeRecord, Roles, Signed, Version};
use crate::registry::Source;

use super::*;

const FEDERATION: FederationId = FederationId([0xfe; 32]);
const NOW: Time = Time::from_origin(Duration::from_secs(1000));

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed([n; 32])
}

fn id(n: u8) -> NodeId {
    key(n).id()
}

fn node(roles: Roles, home: Option<u8>) -> Body {
    Body::Node(NodeRecord {
        roles,
        location: String::new(),
        version: "1".into(),
        services: vec![],
        multiaddrs: vec![],
        home: home.map(|home| Home { coordinator: id(home), home_seq: 1 }),
        candidacy: Default::default(),
        hardware: Default::default(),
    })
}

fn record(n: u8, seq: u64, body: &Body) -> (Signed, Record) {
    let signed = Signed::sign(&key(n), FEDERATION, 1, Version { epoch: 1, seq }, body).unwrap();
    let record = signed.record().clone();
    (signed, record)
}

/// A registry that knows node 1 as a coordinator with a lease, and worker 5 as its.
fn registry() -> Registry {
    let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
    let lease = Body::Lease(Lease { ttl: Duration::from_secs(60) });
    for (n, seq, body) in [(1, 1, node(Roles::Coordinator, None)), (1, 2, lease), (5, 1, node(Roles::Worker, Some(1)))]
    {
        registry.insert(NOW, record(n, seq, &body).0, Source::Passed(Duration::ZERO)).unwrap();
    }
    registry
}

#[test]
fn a_publisher_speaks_for_itself_and_for_the_workers_whose_home_it_is() {
    let (registry, mut judge) = (registry(), Judge::default());
    let mut judged =
        |publisher: u8, (_, record): (Signed, Record)| judge.published(NOW, &registry, &id(publisher), &record);
    assert_eq!(judged(1, record(1, 3, &node(Roles::Both, None))), Ok(()));
    assert_eq!(judged(1, record(5, 2, &node(Roles::Worker, Some(1)))), Ok(()));
    assert_eq!(judged(1, record(5, 2, &Body::Leave)), Ok(()));
    assert_eq!(judged(1, record(6, 1, &node(Roles::Worker, None))), Err(Objection::NotItsOwn));
    assert_eq!(judged(1, record(6, 1, &node(Roles::Worker, Some(2)))), Err(Objection::NotItsOwn));
    assert_eq!(judged(1, record(2, 1, &node(Roles::Coordinator, None))), Err(Objection::NotItsOwn));
    assert_eq!(judged(1, record(6, 1, &Body::Leave)), Err(Objection::NotItsOwn));
}

#[test]
fn whoever_is_unknown_can_say_no_more_than_that_it_is_a_coordinator_and_here() {
    let (registry, mut judge) = (registry(), Judge::default());
    let lease = Body::Lease(Lease { ttl: Duration::from_secs(60) });
    let mut judged = |n: u8, body: &Body| judge.published(NOW, &registry, &id(n), &record(n, 1, body).1);
    assert_eq!(judged(2, &node(Roles::Coordinator, None)), Ok(()));
    assert_eq!(judged(2, &lease), Ok(()));
    assert_eq!(judged(2, &node(Roles::Worker, None)), Err(Objection::NoStanding));
    assert_eq!(judged(2, &Body::Leave), Err(Objection::NoStanding));
    let sponsored = record(6, 1, &node(Roles::Worker, Some(2))).1;
    assert_eq!(judge.published(NOW, &registry, &id(2), &sponsored), Err(Objection::NoStanding));
}

#[test]
fn only_a_coordinator_that_is_here_may_pass_on_what_others_said() {
    let mut registry = registry();
    let other = record(7, 1, &node(Roles::Worker, None)).1;
    assert!(may_synchronise(&registry, &id(1), &other));
    assert!(!may_synchronise(&registry, &id(2), &other));
    assert!(!may_synchronise(&registry, &id(5), &other), "a worker is none");
    assert!(may_synchronise(&registry, &id(2), &record(2, 1, &node(Roles::Coordinator, None)).1));
    registry.handle_timeout(NOW + Duration::from_secs(61));
    assert!(!may_synchronise(&registry, &id(1), &other), "its lease has run out");
}

#[test]
fn a_flood_of_one_publisher_ends_and_others_are_not_touched() {
    let (registry, mut judge) = (registry(), Judge::default());
    let own = record(1, 9, &node(Roles::Coordinator, None)).1;
    let taken = (0..10_000).filter(|_| judge.published(NOW, &registry, &id(1), &own).is_ok()).count();
    assert_eq!(taken, PUBLISHED.burst as usize);
    let introductions = (10..250_u8).filter(|n| {
        let own = record(*n, 1, &node(Roles::Coordinator, None)).1;
        judge.published(NOW, &registry, &id(*n), &own).is_ok()
    });
    assert_eq!(introductions.count(), INTRODUCED.burst as usize);
}

#[test]
fn a_peer_that_goes_on_is_blocked_once_and_for_a_while() {
    let mut judge = Judge::default();
    let (peer, other) = (id(1), id(2));
    let blocked_after = (1..).find(|_| judge.fault(NOW, peer, Fault::Wrong)).unwrap();
    assert_eq!(blocked_after, WRONG.burst as usize + 1);
    assert!(!judge.fault(NOW, peer, Fault::Wrong), "it is blocked already");
    assert!(!judge.fault(NOW, other, Fault::Useless));
    assert!(judge.pardoned(NOW + BLOCKED_FOR - Duration::from_secs(1)).is_empty());
    assert_eq!(judge.pardoned(NOW + BLOCKED_FOR), [peer]);
}

#[test]
fn made_up_publishers_are_not_remembered_for_longer_than_what_they_did_counts() {
    let mut judge = Judge::default();
    let made_up = |n: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        NodeId(id)
    };
    for n in 0..2 * FAULTS_MAX as u32 {
        assert!(!judge.fault(NOW, made_up(n), Fault::Useless));
    }
    assert_eq!(judge.faults.len(), FAULTS_MAX);
    for _ in 0..3 {
        judge.fault(NOW, made_up(7), Fault::Wrong);
    }
    judge.pardoned(NOW + Duration::from_secs(59));
    assert_eq!(
        judge.faults.keys().copied().collect::<Vec<_>>(),
        [made_up(7)],
        "three wrongs are forgotten after a minute"
    );
    judge.pardoned(NOW + Duration::from_secs(60));
    assert!(judge.faults.is_empty());
}

#[test]
fn patience_with_what_is_of_no_use_comes_back_in_its_time_also_for_who_went_and_came_again() {
    let (mut judge, later) = (Judge::default(), |seconds| NOW + Duration::from_secs(seconds));
    let all = judge.patience(NOW, &id(1));
    assert!(all > 1000);
    judge.try_patience(NOW, id(1), all - 1);
    judge.gone(&id(1));
    judge.pardoned(NOW);
    assert_eq!((judge.patience(NOW, &id(1)), judge.patience(NOW, &id(2))), (1, all));
    assert_eq!(judge.patience(later(1), &id(1)), 257);
    judge.pardoned(later(60));
    assert_eq!((judge.patience(later(60), &id(1)), judge.unwanted.len()), (all, 0));
}
