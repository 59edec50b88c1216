//! The wire format, byte by byte: what was written yesterday is read tomorrow. A change here is a change of the protocol.

#![allow(clippy::unwrap_used)] // A test that cannot prepare its input has failed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{
    Census, Control, FrameHeader, FrameType, Hello, Join, Preface, Refusal, Reject, RejectReason, Release,
    ServiceConnection, StreamKind, Welcome, WhenFull, message,
};
use hedgerow_proto::id::{FederationId, NodeId, RequestId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{
    Attachment, AttachmentState, Body, Candidacy, Gpu, Guest, GuestDetails, GuestStatus, Hardware, Home, Kind, Lease,
    NodeRecord, Roles, ServiceHealth, ServiceOffer, Signed, Unknown, Version,
};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::snapshot;
use hedgerow_proto::sync::Session;

const FEDERATION: FederationId = FederationId([0xfe; 32]);
const NOW: Time = Time::from_origin(Duration::from_secs(1000));

fn node() -> Body {
    let offer = |name: &str, health| ServiceOffer { name: ServiceName::new(name).unwrap(), capacity: 300, health };
    Body::Node(NodeRecord {
        roles: Roles::Worker,
        location: "Zürich".into(),
        version: "0.1.0".into(),
        services: vec![offer("embed", ServiceHealth::Up), offer("files", ServiceHealth::Down)],
        multiaddrs: vec!["/ip4/192.0.2.1/udp/4001/quic-v1".into()],
        home: Some(Home { coordinator: NodeId([2; 32]), home_seq: 70_000 }),
        candidacy: Candidacy::Elective,
        hardware: Hardware {
            cpu_cores: 300,
            gpu: Some(Gpu { name: "RTX".into(), memory_mib: 24576 }),
            ..Hardware::default()
        },
    })
}

fn bodies() -> Vec<(&'static str, Body)> {
    let worker = NodeId([3; 32]);
    let guest = GuestDetails {
        worker_type: "gpu".into(),
        tunnel_url: "https://a.trycloudflare.com".into(),
        location: "EU".into(),
        services: vec![ServiceName::new("llm-inference").unwrap()],
        capabilities: r#"{"ram":"62GB"}"#.into(),
        status: GuestStatus::Degraded,
        load_percent: 55,
    };
    let unknown = Unknown { kind: Kind(200), subject: Bytes::from_static(b"s"), content: Bytes::from_static(b"\x02?") };
    vec![
        ("record node", node()),
        ("record lease", Body::Lease(Lease { ttl: Duration::from_secs(60) })),
        ("record attachment", Body::Attachment(Attachment { worker, home_seq: 1, state: AttachmentState::Attached })),
        ("record guest", Body::Guest(Guest { worker_id: "gpu-box".into(), details: guest })),
        ("record leave", Body::Leave),
        ("record unknown", Body::Unknown(unknown)),
    ]
}

fn sign(seq: u64, body: &Body) -> Signed {
    let version = Version { epoch: 258, seq };
    Signed::sign(&SecretKey::from_seed([1; 32]), FEDERATION, 0x0102_0304, version, body).unwrap()
}

fn registry() -> Registry {
    let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
    let lease = Body::Lease(Lease { ttl: Duration::from_secs(60) });
    registry.insert(NOW, sign(1, &lease), Source::Own).unwrap();
    registry
}

/// Both sides of a session between a registry with one record and an empty one.
fn session() -> Vec<Vec<u8>> {
    let (mut full, mut empty) = (registry(), Registry::new(FEDERATION, Limits::PRODUCTION));
    let (mut one, mut other) = (Session::initiate(), Session::respond());
    let later = NOW + Duration::from_secs(3);
    let mut said = Vec::new();
    while !one.is_finished() || !other.is_finished() {
        while let Some(message) = one.poll_transmit(later, &full) {
            other.handle(later, &mut empty, &message).unwrap();
            said.push(message);
        }
        while let Some(message) = other.poll_transmit(later, &empty) {
            one.handle(later, &mut full, &message).unwrap();
            said.push(message);
        }
    }
    said
}

/// Everything that goes over a wire or onto a disk.
fn written() -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<(String, Vec<u8>)> = Vec::new();
    let mut put = |name: &str, bytes: Vec<u8>| out.push((name.to_owned(), bytes));
    for (seq, (name, body)) in bodies().into_iter().enumerate() {
        put(name, sign(seq as u64, &body).bytes().to_vec());
    }
    let header = FrameHeader { frame_type: FrameType::Data, payload_bytes: 65536 };
    put("frame data header", header.encode().to_vec());
    put("frame end", FrameHeader { frame_type: FrameType::End, payload_bytes: 0 }.encode().to_vec());
    let preface = Preface {
        kind: StreamKind::Http,
        node: Some(NodeId([6; 32])),
        service: Some(ServiceName::new("embed").unwrap()),
        request: RequestId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        hops: 1,
        connection: ServiceConnection::Fresh,
        when_full: WhenFull::Wait,
    };
    put("frame open", message(FrameType::Open, &preface));
    let kinds = [
        StreamKind::Http,
        StreamKind::Upgrade,
        StreamKind::Control,
        StreamKind::Sync,
        StreamKind::MeshPeer,
        StreamKind::Relay,
        StreamKind::Contract,
    ];
    put("stream kinds", message(FrameType::Open, &kinds));
    let refusals = [
        Refusal::Full,
        Refusal::Draining,
        Refusal::UnknownService,
        Refusal::ServiceDown,
        Refusal::Unsupported,
        Refusal::TooManyHops,
    ];
    put("refusals", message(FrameType::Refuse, &refusals));
    put("releases", message(FrameType::Release, &[Release::Keep, Release::Close]));
    for (n, said) in session().into_iter().enumerate() {
        put(&format!("sync {n}"), said);
    }
    put("snapshot", snapshot::encode(&registry(), NOW + Duration::from_secs(7)));
    for (name, control) in controls() {
        put(name, message(FrameType::Control, &control));
    }
    out
}

fn controls() -> Vec<(&'static str, Control)> {
    let reject = |reason| Control::Reject(Reject { reason, message: "why".into(), record: Some(vec![3]) });
    vec![
        ("control hello", Control::Hello(Hello { federation: FEDERATION, incarnation: 7, shard: 1, shards: 4 })),
        (
            "control join",
            Control::Join(Join {
                federation: FEDERATION,
                incarnation: 8,
                lane: 2,
                record: vec![1, 2, 3],
                authorities: vec![(ServiceName::new("embed").unwrap(), "127.0.0.1:8102".into())],
                credentials: vec![4],
            }),
        ),
        ("control welcome", Control::Welcome(Welcome { observed: "192.0.2.1:4001".into(), ping_interval_ms: 1000 })),
        ("control reject federation", reject(RejectReason::Federation)),
        ("control reject record", reject(RejectReason::Record)),
        ("control reject not admitted", reject(RejectReason::NotAdmitted)),
        ("control reject overloaded", reject(RejectReason::Overloaded)),
        ("control reject key in use", reject(RejectReason::KeyInUse)),
        ("control record", Control::Record(vec![5, 6])),
        ("control leave", Control::Leave(vec![7])),
        ("control ping", Control::Ping(u64::MAX)),
        ("control pong", Control::Pong(250)),
        ("control going", Control::Going),
        ("control census", Control::Census(Census { coordinators: 1, wanted: 3, rank: 300 })),
        ("control coordinators", Control::Coordinators(vec![vec![8], vec![9, 10]])),
    ]
}

#[test]
fn the_bytes_on_the_wire_and_on_the_disk_are_these() {
    let golden: BTreeMap<&str, &str> =
        include_str!("golden.txt").lines().filter_map(|line| line.split_once(": ")).collect();
    let written = written();
    let differing: Vec<String> = written
        .iter()
        .map(|(name, bytes)| (name, data_encoding::HEXLOWER.encode(bytes)))
        .filter(|(name, hex)| golden.get(name.as_str()) != Some(&hex.as_str()))
        .map(|(name, hex)| format!("{name}: {hex}"))
        .collect();
    assert!(differing.is_empty(), "these bytes have changed:\n{}", differing.join("\n"));
    assert_eq!(golden.len(), written.len());
}

#[test]
fn the_bytes_of_yesterday_are_read_today() {
    let golden: BTreeMap<&str, Vec<u8>> = include_str!("golden.txt")
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, hex)| (name, data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()))
        .collect();
    for (name, body) in bodies() {
        let bytes = Bytes::from(golden[name].clone());
        let signed = Signed::open(bytes, FEDERATION, &Limits::PRODUCTION).unwrap();
        assert_eq!(signed.record().body, body, "{name}");
    }
    let mut restored = Registry::new(FEDERATION, Limits::PRODUCTION);
    snapshot::restore(golden["snapshot"].clone(), &mut restored, NOW).unwrap();
    assert_eq!(restored.digest(), registry().digest());
}
