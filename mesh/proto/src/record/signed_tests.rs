use std::time::Duration;

use super::*;
use crate::id::ServiceName;
use crate::record::{
    Candidacy, Gpu, GuestStatus, Hardware, Home, Lease, NodeRecord, Roles, ServiceHealth, ServiceOffer,
};

const FEDERATION: FederationId = FederationId([0xfe; 32]);
const LIMITS: Limits = Limits::PRODUCTION;

fn key() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn node_record() -> NodeRecord {
    let offer =
        |name: &str| ServiceOffer { name: ServiceName::new(name).unwrap(), capacity: 2, health: ServiceHealth::Up };
    NodeRecord {
        roles: Roles::Worker,
        location: "Bern".into(),
        version: "0.1.0".into(),
        services: vec![offer("embed"), offer("files")],
        multiaddrs: vec!["/ip4/127.0.0.1/tcp/1".into()],
        home: Some(Home { coordinator: NodeId([2; 32]), home_seq: 3 }),
        candidacy: Candidacy::Elective,
        hardware: Hardware {
            cpu_cores: 300,
            gpu: Some(Gpu { name: "RTX".into(), memory_mib: 24576 }),
            ..Hardware::default()
        },
    }
}

fn guest() -> Guest {
    Guest {
        worker_id: "gpu-box".into(),
        details: GuestDetails {
            worker_type: "gpu".into(),
            tunnel_url: "http://:8000".into(),
            location: "EU".into(),
            services: vec![ServiceName::new("llm-inference").unwrap()],
            capabilities: r#"{"ram":"62GB"}"#.into(),
            status: GuestStatus::Healthy,
            load_percent: 5,
        },
    }
}

fn bodies() -> Vec<Body> {
    vec![
        Body::Node(node_record()),
        Body::Lease(Lease { ttl: Duration::from_secs(60) }),
        Body::Attachment(Attachment { worker: NodeId([3; 32]), home_seq: 300, state: AttachmentState::Attached }),
        Body::Guest(guest()),
        Body::Leave,
        Body::Unknown(Unknown {
            kind: Kind(77),
            subject: Bytes::from_static(b"whatever"),
            content: Bytes::from_static(b"\x09from the future"),
        }),
    ]
}

fn sign(body: &Body) -> Result<Signed, RecordError> {
    Signed::sign(&key(), FEDERATION, 7, Version { epoch: 5, seq: 9 }, body)
}

fn open(bytes: impl Into<Bytes>) -> Result<Signed, RecordError> {
    Signed::open(bytes.into(), FEDERATION, &LIMITS)
}

#[test]
fn what_was_signed_is_what_is_opened() {
    for body in bodies() {
        let signed = sign(&body).unwrap();
        let opened = open(signed.bytes().clone()).unwrap();
        assert_eq!(opened, signed);
        let version = Version { epoch: 5, seq: 9 };
        let record = Record { federation: FEDERATION, writer: key().id(), incarnation: 7, version, body };
        assert_eq!((opened.record(), signed.record()), (&record, &record));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for body in bodies() {
        let bytes = sign(&body).unwrap().bytes().to_vec();
        // Verifying costs, so one bit of each byte.
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(open(flipped).is_err(), "byte {at} of {body:?}");
        }
        for end in 0..bytes.len() {
            assert!(open(bytes[..end].to_vec()).is_err(), "cut at {end} of {body:?}");
        }
    }
}

#[test]
fn another_federation_is_refused_by_name() {
    let signed = sign(&Body::Leave).unwrap();
    let other = FederationId([1; 32]);
    assert_eq!(Signed::open(signed.bytes().clone(), other, &LIMITS), Err(RecordError::Federation(FEDERATION)));
}

#[test]
fn a_signature_for_another_purpose_does_not_pass() {
    let mut bytes = sign(&Body::Leave).unwrap().bytes().to_vec();
    let end = bytes.len() - SIGNATURE_BYTES;
    let signature = key().sign(&bytes[..end]);
    bytes[end..].copy_from_slice(&signature);
    assert_eq!(open(bytes), Err(RecordError::Signature { writer: key().id() }));
}

/// Signs content that [`Signed::sign`] would not make.
fn forge(kind: Kind, subject: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![FORMAT, kind.0];
    bytes.extend_from_slice(&FEDERATION.0);
    bytes.extend_from_slice(&key().id().0);
    bytes.extend_from_slice(&[0; 24]);
    bytes.push(subject.len() as u8);
    bytes.extend_from_slice(subject);
    bytes.extend_from_slice(content);
    let signature = key().sign(&[DOMAIN, &bytes].concat());
    bytes.extend_from_slice(&signature);
    bytes
}

#[test]
fn fields_of_a_newer_version_are_skipped_and_kept() {
    let mut content = encode_content(&Body::Node(node_record()));
    content.extend_from_slice(b"a field that this code does not know");
    let bytes = forge(Kind::NODE, &[], &content);
    let signed = open(bytes.clone()).unwrap();
    assert_eq!(signed.record().body, Body::Node(node_record()));
    assert_eq!(signed.bytes(), &bytes);
}

#[test]
fn a_known_kind_in_a_newer_version_travels_on_unread() {
    let bytes = forge(Kind::NODE, &[], b"\x02anything");
    let signed = open(bytes.clone()).unwrap();
    assert!(matches!(&signed.record().body, Body::Unknown(unknown) if unknown.kind == Kind::NODE));
    assert_eq!(signed.bytes(), &bytes);
}

#[test]
fn a_body_that_is_not_of_its_kind_is_refused() {
    for (kind, subject, content) in [
        (Kind::NODE, &b""[..], &b"\x01"[..]),
        (Kind::NODE, b"", b""),
        (Kind::NODE, b"x", &encode_content(&Body::Node(node_record()))),
        (Kind::LEASE, b"", b"\x01"),
        (Kind::LEAVE, b"x", b"\x01"),
        (Kind::ATTACHMENT, b"short", b"\x01\x00\x00"),
        (Kind::ATTACHMENT, &[9; 32], b"\x01\x00\x09"),
        (Kind::GUEST, b"\xff\xfe", &encode_content(&Body::Guest(guest()))),
        (Kind::GUEST, b"", &encode_content(&Body::Guest(guest()))),
        (Kind::LEASE, b"", &encode_content(&Body::Lease(Lease { ttl: Duration::ZERO }))),
    ] {
        assert!(open(forge(kind, subject, content)).is_err(), "{kind:?} {subject:?} {content:?}");
    }
}

#[test]
fn a_record_that_breaks_a_rule_is_neither_signed_nor_believed() {
    let broken = |change: fn(&mut NodeRecord)| {
        let mut record = node_record();
        change(&mut record);
        Body::Node(record)
    };
    let guest_with = |change: fn(&mut Guest)| {
        let mut guest = guest();
        change(&mut guest);
        Body::Guest(guest)
    };
    let cases = [
        broken(|r| r.services.reverse()),
        broken(|r| r.services[1] = r.services[0].clone()),
        broken(|r| r.services[0].capacity = 0),
        broken(|r| r.location = "a\u{1b}[2Jb".into()),
        broken(|r| r.location = "a\u{202e}b".into()),
        broken(|r| r.location = "x".repeat(65)),
        broken(|r| r.version = "x".repeat(33)),
        broken(|r| r.multiaddrs = vec!["ip4".into()]),
        broken(|r| r.multiaddrs = vec!["/ip4/1 2".into()]),
        broken(|r| r.multiaddrs = vec!["/a".into(); 9]),
        broken(|r| r.multiaddrs = vec![format!("/{}", "a".repeat(256))]),
        broken(|r| r.roles = Roles::Coordinator),
        broken(|r| r.home = Some(Home { coordinator: key().id(), home_seq: 0 })),
        Body::Lease(Lease { ttl: Duration::from_secs(59) }),
        Body::Lease(Lease { ttl: Duration::from_secs(3601) }),
        Body::Attachment(Attachment { worker: key().id(), home_seq: 0, state: AttachmentState::Detached }),
        guest_with(|g| g.worker_id.clear()),
        guest_with(|g| g.worker_id = "x".repeat(65)),
        guest_with(|g| g.worker_id = "a\nb".into()),
        guest_with(|g| g.details.capabilities = "x".repeat(641)),
        guest_with(|g| g.details.tunnel_url = "x".repeat(257)),
        Body::Unknown(Unknown { kind: Kind::LEASE, subject: Bytes::new(), content: Bytes::from_static(b"\x01") }),
    ];
    for body in cases {
        assert!(matches!(sign(&body), Err(RecordError::Invalid(_))), "{body:?}");
        let forged = forge(body.kind(), body.subject(), &encode_content(&body));
        assert!(open(forged).is_err(), "{body:?}");
    }
}

#[test]
fn a_record_over_the_limit_is_refused_by_name() {
    let record = Unknown { kind: Kind(9), subject: Bytes::new(), content: vec![9; 1024].into() };
    assert!(matches!(sign(&Body::Unknown(record)), Err(RecordError::TooLong { max_bytes: 1024, .. })));
    assert!(matches!(open(vec![FORMAT; 1025]), Err(RecordError::TooLong { got_bytes: 1025, .. })));
    let error = open(vec![2; 200]).unwrap_err();
    assert_eq!(error, RecordError::Format(2));
}

#[test]
fn keys_tell_subjects_apart() {
    let keys: std::collections::BTreeSet<_> = bodies()
        .into_iter()
        .chain([Body::Attachment(Attachment {
            worker: NodeId([4; 32]),
            home_seq: 0,
            state: AttachmentState::Detached,
        })])
        .map(|body| open(sign(&body).unwrap().bytes().clone()).unwrap().record().key())
        .collect();
    assert_eq!(keys.len(), 7);
}
