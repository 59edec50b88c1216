//! A flood of made-up identities, with good signatures, from several peers and by every way that records come in: what honest nodes have
//! said stays, and goes on to be heard; memory and time are bounded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::peer::{self, PeerRequest, PeerResponse};
use hedgerow_proto::record::{Body, Lease, Roles, Signed};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::sync::Session;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::common::{Coordinator, FEDERATION, PATIENCE, guest, record, until_equal};
use crate::hostile::{Adversary, honest, made_up, sign};

/// How many identities are made up, if another number is wanted.
const IDENTITIES: &str = "HEDGEROW_FLOOD_IDENTITIES";
/// As many as take a few seconds.
const IDENTITIES_USUALLY: u32 = 4_000;
/// Hostile peers, each with a key of its own.
const PEERS: u8 = 4;
/// Workers that are at home with an honest coordinator.
const WORKERS: u32 = 50;
/// By how much both honest coordinators, and what is on its way between all, may grow together: half of it each.
const GROWTH_MIB_MAX: u64 = 256;
/// An honest word takes no longer than this to the other coordinator while the flood goes on, on a machine that is busy with other things.
const HONEST_WITHIN: Duration = Duration::from_secs(10);
/// Records in one push.
const PUSHED: usize = 256;

/// In every shape that a stranger can give a record: a worker without a home, one that names an honest home, a coordinator, a lease, an agent.
fn shapes(n: u32, home: NodeId) -> Vec<Signed> {
    let key = made_up(n);
    let home = Some(hedgerow_proto::record::Home { coordinator: home, home_seq: 1 });
    let body = match n % 4 {
        0 => Body::Node(record(Roles::Worker, &[])),
        1 => Body::Node(hedgerow_proto::record::NodeRecord { home, ..record(Roles::Worker, &[]) }),
        2 => Body::Node(record(Roles::Coordinator, &["/ip4/127.0.0.1/tcp/9".parse().unwrap()])),
        _ => {
            return vec![
                sign(&key, 1, &Body::Lease(Lease { ttl: Duration::from_secs(60) })),
                sign(&key, 2, &guest("made-up")),
            ];
        }
    };
    vec![sign(&key, 1, &body)]
}

fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4 / 1024
}

/// What honest nodes have said, and what is reached by whom.
fn honest_part(registry: &Registry, honest: &BTreeSet<NodeId>) -> Vec<String> {
    let nodes =
        registry.nodes().filter(|record| honest.contains(&record.writer)).map(|record| format!("{:?}", record.body));
    let ways = registry
        .workers()
        .filter(|worker| honest.contains(&worker.record.writer))
        .map(|worker| format!("{:?}", worker.reach));
    nodes.chain(ways).collect()
}

/// A registry of a peer that keeps no limit: it synchronises all that it has made up.
fn hoard(records: &[Signed]) -> Registry {
    let limits = Limits {
        coordinators_max: usize::MAX,
        workers_max: usize::MAX,
        workers_per_sponsor_max: usize::MAX,
        workers_without_sponsor_max: usize::MAX,
        ..Limits::PRODUCTION
    };
    let mut registry = Registry::new(FEDERATION, limits);
    for signed in records {
        registry.insert(Time::ORIGIN, signed.clone(), Source::Passed(Duration::ZERO)).unwrap();
    }
    registry
}

/// Synchronises until it has said all that it has, or is refused, or cut off. How many turns that took, and whether it was heard to the end.
async fn synchronise(evil: &mut Adversary, hoard: &mut Registry, number: u64, turn: &Notify) -> (u32, bool) {
    let (mut session, mut turns) = (Session::initiate(), 0);
    loop {
        let messages: Vec<_> = std::iter::from_fn(|| session.poll_transmit(Time::ORIGIN, hoard)).collect();
        if messages.is_empty() {
            return (turns, true);
        }
        turns += 1;
        turn.notify_one();
        let answer = evil.request(peer::encode(&PeerRequest::Sync { session: number, messages })).await;
        let Some(PeerResponse::Sync(messages)) = answer.and_then(|answer| peer::decode(&answer).ok()) else {
            return (turns, false);
        };
        for message in messages {
            if session.handle(Time::ORIGIN, hoard, &message).is_err() {
                return (turns, false);
            }
        }
    }
}

/// One hostile peer does all that it can with what it has made up.
async fn attack(seed: u8, victim: &Coordinator, records: &[Signed], mut hoard: Registry, turn: &Notify) -> String {
    let mut evil = Adversary::connect_as(victim, seed).await;
    for signed in records {
        evil.gossip(signed.bytes().to_vec());
    }
    let own = [
        sign(&evil.secret, 1, &Body::Node(record(Roles::Coordinator, &[]))).bytes().to_vec(),
        sign(&evil.secret, 2, &Body::Lease(Lease { ttl: Duration::from_secs(60) })).bytes().to_vec(),
    ];
    let introduced = evil.push(own.to_vec()).await;
    // It has a standing now, unless its gossip has cost it that.
    let (mut turns, mut heard) = (0, true);
    for number in 0..3 {
        let (more, to_the_end) = synchronise(&mut evil, &mut hoard, number, turn).await;
        (turns, heard) = (turns + more, to_the_end);
        if !heard {
            break;
        }
    }
    let mut pushed = 0;
    for batch in records.chunks(PUSHED) {
        turn.notify_one();
        match evil.push(batch.iter().map(|signed| signed.bytes().to_vec()).collect()).await {
            Some(PeerResponse::Taken(_)) => pushed += batch.len(),
            _ => break,
        }
    }
    format!("{introduced:?}, {turns} turns, heard to the end: {heard}, {pushed} pushed")
}

#[allow(clippy::print_stdout, reason = "these are the figures for which it is run by hand")]
async fn flood(identities: u32) {
    let (one, two, held) = honest().await;
    let (one, two) = (Arc::new(one), Arc::new(two));
    for n in 0..WORKERS {
        one.take_in_worker(n);
        two.say_guest(&format!("agent-{n}"));
    }
    until_equal(&[&one, &two], held + 3 * WORKERS as usize).await;
    let honest: BTreeSet<NodeId> = one.replica.read(|registry| registry.nodes().map(|record| record.writer).collect());
    let before = one.replica.read(|registry| honest_part(registry, &honest));
    assert!(before.len() > WORKERS as usize);

    let records: Vec<Signed> = (0..identities).flat_map(|n| shapes(n, one.node())).collect();
    let share = records.len().div_ceil(usize::from(PEERS));
    // What hostile peers hold is not counted.
    let hoards: Vec<Registry> = records.chunks(share).map(hoard).collect();
    let (began, resident) = (Instant::now(), resident_mib());
    let over = Arc::new(AtomicBool::new(false));
    // One honest word with each turn of the hostile peers, as far as the word before has been heard.
    let turn = Arc::new(Notify::new());
    let bystander = tokio::spawn({
        let (one, two, over, turn) = (one.clone(), two.clone(), over.clone(), turn.clone());
        async move {
            let mut took = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let (agent, said) = (format!("honest-{}", took.len()), Instant::now());
                one.say_guest(&agent);
                let knows = |registry: &Registry| registry.claims_of(&agent).next().is_some();
                two.until("an honest word is heard", knows).await;
                took.push(said.elapsed());
                turn.notified().await;
            }
            took
        }
    });
    let attacks = records.chunks(share).zip(hoards).zip(100..);
    let attacks = attacks.map(|((records, hoard), seed)| attack(seed, &one, records, hoard, &turn));
    let came_of_it = futures_util::future::join_all(attacks).await;
    over.store(true, Ordering::Relaxed);
    turn.notify_one();
    let mut took = bystander.await.unwrap();
    took.sort();
    let (grown, lasted) = (resident_mib().saturating_sub(resident), began.elapsed());
    let known = [&one, &two].map(|one| one.replica.read(Registry::len));
    println!(
        "{identities} identities, {} records, by {PEERS} peers in {lasted:?}: {known:?} records held, {grown} MiB more, {} honest words, \
         the slowest after {:?}; {came_of_it:#?}",
        records.len(),
        took.len(),
        took.last()
    );
    assert!(grown <= GROWTH_MIB_MAX, "{grown} MiB");
    assert!(took.last().is_some_and(|slowest| *slowest < HONEST_WITHIN), "{took:?}");
    for coordinator in [&one, &two] {
        assert_eq!(coordinator.replica.read(|registry| honest_part(registry, &honest)), before);
    }
    // What comes to be known after the flood is known as well.
    one.say_guest("after");
    two.until("an honest word after the flood", |registry| registry.claims_of("after").next().is_some()).await;
    assert!(began.elapsed() < PATIENCE * 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_made_up_identities_leaves_honest_nodes_as_they_are() {
    let wanted = std::env::var(IDENTITIES).map(|wanted| wanted.parse().expect("a number of identities"));
    flood(wanted.unwrap_or(IDENTITIES_USUALLY)).await;
}
