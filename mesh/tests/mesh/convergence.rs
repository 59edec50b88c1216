//! Coordinators agree: after a join, after a loss, by either way of replication.

use std::time::Duration;

use futures_util::future::join_all;
use hedgerow_mesh::host::{CallAnswered, Replication};
use hedgerow_proto::peer::{Call, PeerRequest, PeerResponse};
use hedgerow_proto::record::Kind;
use hedgerow_proto::registry::{Presence, Reach, Registry};

use crate::common::{Coordinator, PATIENCE, until_equal};

/// A node's record and a lease each.
const RECORDS_EACH: usize = 2;

#[tokio::test]
async fn ten_coordinators_that_know_one_of_them_agree_and_are_all_connected() {
    let all = Coordinator::start_many(10, Replication::Both).await;
    until_equal(&all.iter().collect::<Vec<_>>(), 10 * RECORDS_EACH).await;
    for one in &all {
        one.until_connected(9).await;
        one.until("all are here", |registry| {
            registry.coordinators().filter(|view| view.presence == Presence::Here).count() == 10
        })
        .await;
    }
}

#[tokio::test]
async fn coordinators_agree_over_quic_too() {
    let one = Coordinator::start_with(&[], Replication::Both, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    let two = Coordinator::start_with(&[&one], Replication::Both, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    until_equal(&[&one, &two], 2 * RECORDS_EACH).await;
}

#[tokio::test]
async fn one_that_was_away_catches_up_from_its_neighbours() {
    let all = Coordinator::start_many(3, Replication::Both).await;
    until_equal(&all.iter().collect::<Vec<_>>(), 3 * RECORDS_EACH).await;
    for n in 0..200 {
        all[1].say_guest(&format!("guest-{n}"));
    }
    // It knows nothing of what was said before it came.
    let late = Coordinator::start(&[&all[0]]).await;
    until_equal(&[&all[0], &all[1], &all[2], &late], 4 * RECORDS_EACH + 200).await;
}

#[tokio::test]
async fn without_gossip_every_change_arrives_by_synchronisation_alone() {
    let all = Coordinator::start_many(5, Replication::WithoutGossip).await;
    let views: Vec<_> = all.iter().collect();
    until_equal(&views, 5 * RECORDS_EACH).await;
    for (n, one) in all.iter().enumerate() {
        one.say_guest(&format!("guest-{n}"));
        until_equal(&views, 5 * RECORDS_EACH + n + 1).await;
    }
}

/// Has one of them speak for agents until the others have all heard of the same: who is connected and has not said yet that it
/// listens hears nothing. All that was said.
async fn until_heard(says: &Coordinator, hear: &[&Coordinator], what: &str) -> Vec<String> {
    let mut said = Vec::new();
    let heard = async {
        loop {
            let guest = format!("{what}-{}", said.len());
            says.say_guest(&guest);
            said.push(guest.clone());
            let heard = |one: &Coordinator, registry: &Registry| {
                registry.guest_records(one.replica.now(), &guest).next().is_some()
            };
            let all = hear.iter().map(|one| one.until(what, |registry| heard(one, registry)));
            if tokio::time::timeout(Duration::from_secs(2), join_all(all)).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("nobody hears it");
    said
}

#[tokio::test]
async fn without_synchronisation_gossip_carries_changes_and_heals_nothing() {
    let all = Coordinator::start_many(3, Replication::WithoutSync).await;
    for one in &all {
        one.until_connected(1).await;
    }
    all[0].until_connected(2).await;
    let early = until_heard(&all[0], &[&all[1], &all[2]], "said-while-all-were-here").await;
    // Whoever comes later hears of what is new, and never of what was said before.
    let late = Coordinator::start_with(&[&all[0]], Replication::WithoutSync, "/ip4/127.0.0.1/tcp/0").await;
    late.until_connected(1).await;
    all[0].until_connected(3).await;
    until_heard(&all[0], &[&late], "said-afterwards").await;
    assert!(early.iter().all(|guest| !late.knows_guest(guest)));
    assert_ne!(late.digest(), all[0].digest());
}

#[tokio::test]
async fn one_that_has_left_does_not_come_back_by_way_of_others() {
    let all = Coordinator::start_many(3, Replication::Both).await;
    let views: Vec<_> = all.iter().collect();
    until_equal(&views, 3 * RECORDS_EACH).await;
    let gone = all[2].node();
    let before: Vec<_> = all[2].replica.introduction();
    all[2].replica.leave().unwrap();
    for one in &all[..2] {
        one.until("it has left", |registry| registry.node(&gone).is_none()).await;
    }
    // What it said before is offered again, by somebody new who still has it.
    let late = Coordinator::start(&[&all[0]]).await;
    for record in before {
        late.replica.insert(record, hedgerow_proto::registry::Source::Passed(Default::default())).unwrap();
    }
    until_equal(&[&all[0], &all[1], &late], 2 * RECORDS_EACH + 2).await;
    for one in [&all[0], &all[1], &late] {
        assert!(one.replica.read(|registry| registry.node(&gone).is_none()));
        let kinds =
            one.replica.read(|registry| registry.records_of(&gone).map(|signed| signed.kind()).collect::<Vec<_>>());
        assert_eq!(kinds, [Kind::LEAVE]);
    }
}

#[tokio::test]
async fn a_record_that_must_not_be_lost_is_with_others_before_it_is_acknowledged() {
    let all = Coordinator::start_many(3, Replication::WithoutGossip).await;
    for one in &all {
        one.until_connected(2).await;
    }
    all[0].say_guest("precious");
    let records = all[0].replica.guest_records("precious").into_iter().map(|(_, bytes)| bytes.into()).collect();
    assert_eq!(all[0].host.replicate(records, 2, PATIENCE).await, 2);
    assert!(all[1].knows_guest("precious") && all[2].knows_guest("precious"));
}

#[tokio::test]
async fn neighbours_are_asked_for_what_is_not_known_here() {
    let all = Coordinator::start_many(2, Replication::WithoutSync).await;
    all[0].until_connected(1).await;
    all[1].until_connected(1).await;
    // Said while nobody listened, as it were: gossip is not repeated.
    let late = Coordinator::start_with(&[&all[1]], Replication::WithoutSync, "/ip4/127.0.0.1/tcp/0").await;
    late.until_connected(1).await;
    all[1].say_guest("hidden");
    let found = late.host.find_guest("hidden", PATIENCE).await;
    assert_eq!(found.len(), 1);
    assert!(late.host.find_guest("nobody", PATIENCE).await.is_empty());
}

#[tokio::test]
async fn a_call_is_passed_on_to_the_coordinator_that_is_named() {
    let mut all = Coordinator::start_many(2, Replication::Both).await;
    all[0].until_connected(1).await;
    all[1].until_connected(1).await;
    let mut second = all.pop().unwrap();
    let call = Call {
        method: "POST".into(),
        path: "/api/worker/heartbeat".into(),
        body: b"{}".to_vec(),
        hops: 1,
        take_over: false,
    };
    let ask = all[0].host.ask(second.node(), PeerRequest::Call(call.clone()));
    let answer = async {
        let incoming = second.calls.recv().await.unwrap();
        assert_eq!((incoming.from, incoming.call), (all[0].node(), call.clone()));
        let answer = CallAnswered { status: 200, body: b"ok".to_vec(), records: vec![b"record".to_vec()] };
        incoming.answer.send(answer).unwrap();
    };
    let (asked, ()) = tokio::join!(ask, answer);
    assert_eq!(
        asked,
        Ok(PeerResponse::Called { status: 200, body: b"ok".to_vec(), records: vec![b"record".to_vec()] })
    );
}

#[tokio::test]
async fn kademlia_finds_who_knows_providers_of_a_service() {
    let all = Coordinator::start_many(3, Replication::Both).await;
    for one in &all {
        one.until_connected(2).await;
    }
    let service = hedgerow_proto::id::ServiceName::new("llm-inference").unwrap();
    all[2].host.provide(vec![service.clone()]).await;
    let found = async {
        loop {
            let providers = all[0].host.providers(service.clone(), PATIENCE).await;
            if !providers.is_empty() {
                break providers;
            }
            // The answer to the question is the event; there is none for a provider record that is on its way.
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, found).await.unwrap(), [all[2].node()]);
    let other = hedgerow_proto::id::ServiceName::new("other").unwrap();
    assert!(all[0].host.providers(other, PATIENCE).await.is_empty());
    assert!(all[0].replica.read(Registry::len) > 0);
}

/// Workers at each of ten coordinators. Their control connections are the `node` crate's matter; here are their records, as
/// their homes take them in.
const WORKERS_EACH: usize = 200;

#[tokio::test]
async fn two_thousand_workers_at_ten_coordinators_are_known_to_all_and_then_nothing_more_is_said() {
    let all = Coordinator::start_many(10, Replication::Both).await;
    let views: Vec<_> = all.iter().collect();
    until_equal(&views, 10 * RECORDS_EACH).await;
    for (n, home) in all.iter().enumerate() {
        home.until_connected(9).await;
        for worker in 0..WORKERS_EACH {
            home.take_in_worker((n * WORKERS_EACH + worker) as u32);
        }
    }
    until_equal(&views, 10 * (RECORDS_EACH + 2 * WORKERS_EACH)).await;
    let routable =
        |registry: &Registry| registry.workers().filter(|worker| matches!(worker.reach, Reach::ViaHome(_))).count();
    for one in &all {
        assert_eq!(one.replica.read(Registry::len), 10 * (RECORDS_EACH + 2 * WORKERS_EACH));
        one.until("all workers can be reached", |registry| routable(registry) == 10 * WORKERS_EACH).await;
    }
    // Workers say nothing more while nothing changes: a whole round of synchronisation moves no record, whatever their number.
    let mut hurried: Vec<_> = all.iter().map(|one| one.replica.hurry()).collect();
    for one in &all[1..] {
        all[0].host.synchronise(one.node(), PATIENCE).await;
    }
    for one in &mut hurried {
        while let Ok(record) = one.try_recv() {
            // The second byte is the kind: leases are renewed by coordinators, for as long as they are here.
            assert_eq!(record[1], Kind::LEASE.0, "something was gossiped while nothing changed");
        }
    }
}
