//! What a coordinator or an entry takes for each worker that it knows of. Counted, by an allocator that counts what this
//! thread holds.

use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{FederationId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{
    Attachment, AttachmentState, Body, Candidacy, Hardware, Home, Lease, NodeRecord, Roles, ServiceHealth,
    ServiceOffer, Signed, Version,
};
use hedgerow_proto::registry::{Registry, Source};

#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/counting.rs"]
mod counting;

const FEDERATION: FederationId = FederationId([0xfe; 32]);
const NOW: Time = Time::from_origin(Duration::from_secs(1000));
const COORDINATORS: u64 = 4;
const WORKERS: u64 = 1000;
/// `Limits::workers_max` reckons with as much for each, for its record and its home's attachment together.
const BYTES_PER_WORKER_MAX: usize = 2048;

fn key(n: u64) -> SecretKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_seed(seed)
}

fn node(roles: Roles, services: &[&str], multiaddrs: &[&str], home: Option<Home>) -> Body {
    let offer = |name: &&str| ServiceOffer {
        name: ServiceName::new(name).expect("it keeps the rules"),
        capacity: 16,
        health: ServiceHealth::Up,
    };
    Body::Node(NodeRecord {
        roles,
        location: "Amsterdam".into(),
        version: "0.1.0".into(),
        services: services.iter().map(offer).collect(),
        multiaddrs: multiaddrs.iter().map(|&text| text.to_owned()).collect(),
        home,
        candidacy: Candidacy::Fixed,
        hardware: Hardware::default(),
    })
}

fn hear(registry: &mut Registry, n: u64, seq: u64, body: &Body) {
    let signed = Signed::sign(&key(n), FEDERATION, 1, Version { epoch: 1, seq }, body).expect("it keeps the rules");
    // As it comes from others: read anew, from bytes of its own.
    let signed = registry.open(signed.bytes().to_vec().into()).expect("it keeps the rules");
    registry.insert(NOW, signed, Source::Passed(Duration::ZERO)).expect("it keeps the rules");
}

#[test]
fn a_worker_takes_two_kib_at_most_its_attachment_and_all_indexes_included() {
    let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
    for n in 0..COORDINATORS {
        hear(&mut registry, n, 1, &node(Roles::Coordinator, &[], &["/ip4/192.0.2.1/udp/4001/quic-v1"], None));
        hear(&mut registry, n, 2, &Body::Lease(Lease { ttl: Duration::from_secs(60) }));
    }
    let ((), taken) = counting::peak_of(|| {
        for n in 0..WORKERS {
            let (worker, coordinator) = (COORDINATORS + n, n % COORDINATORS);
            let home = Home { coordinator: key(coordinator).id(), home_seq: 1 };
            hear(&mut registry, worker, 1, &node(Roles::Worker, &["embed", "generate"], &[], Some(home)));
            let attachment = Attachment { worker: key(worker).id(), home_seq: 1, state: AttachmentState::Attached };
            hear(&mut registry, coordinator, 3 + n, &Body::Attachment(attachment));
        }
        registry.digest();
    });
    let each = taken / WORKERS as usize;
    println!("{each} bytes for each worker: its record, its home's attachment, and all indexes");
    assert!(each <= BYTES_PER_WORKER_MAX, "{each} bytes for each worker");
    assert_eq!(registry.workers().count() as u64, WORKERS);
}
