//! What the tests of the registry, of synchronisation and of snapshots share, and the tests by subject.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::id::ServiceName;
use crate::key::SecretKey;
use crate::record::{
    Attachment, AttachmentState, Body, Candidacy, Guest, GuestDetails, GuestStatus, Hardware, Home, Kind, Lease,
    NodeRecord, Roles, ServiceHealth, ServiceOffer, Signed, Unknown, Version,
};

mod ageing;
mod laws;
mod limits;

pub(crate) const FEDERATION: FederationId = FederationId([0xfe; 32]);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// The keys of the tests: 0 and 1 coordinate, 2 and above work.
pub(crate) fn key(n: u8) -> SecretKey {
    SecretKey::from_seed([n; 32])
}

pub(crate) fn id(n: u8) -> NodeId {
    key(n).id()
}

pub(crate) fn at(elapsed: Duration) -> Time {
    Time::from_origin(Duration::from_secs(1000) + elapsed)
}

pub(crate) fn registry() -> Registry {
    Registry::new(FEDERATION, Limits::PRODUCTION)
}

pub(crate) fn node(roles: Roles, home: Option<Home>) -> Body {
    let offer = ServiceOffer { name: ServiceName::new("embed").unwrap(), capacity: 1, health: ServiceHealth::Up };
    Body::Node(NodeRecord {
        roles,
        location: "here".into(),
        version: "0.1.0".into(),
        services: if roles.works() { vec![offer] } else { vec![] },
        multiaddrs: vec![],
        home,
        candidacy: Candidacy::default(),
        hardware: Hardware::default(),
    })
}

pub(crate) fn coordinator() -> Body {
    node(Roles::Coordinator, None)
}

pub(crate) fn worker_of(home: u8, home_seq: u64) -> Body {
    node(Roles::Worker, Some(Home { coordinator: id(home), home_seq }))
}

pub(crate) fn lease() -> Body {
    Body::Lease(Lease { ttl: MINUTE })
}

pub(crate) fn attachment(worker: u8, home_seq: u64, state: AttachmentState) -> Body {
    Body::Attachment(Attachment { worker: id(worker), home_seq, state })
}

pub(crate) fn guest(worker_id: &str, status: GuestStatus) -> Body {
    let details = GuestDetails {
        worker_type: "gpu".into(),
        tunnel_url: "http://:8000".into(),
        location: String::new(),
        services: vec![],
        capabilities: "{}".into(),
        status,
        load_percent: 0,
    };
    Body::Guest(Guest { worker_id: worker_id.into(), details })
}

pub(crate) fn say(n: u8, epoch: u64, seq: u64, body: &Body) -> Signed {
    Signed::sign(&key(n), FEDERATION, 1, Version { epoch, seq }, body).unwrap()
}

/// Any record of a few writers with a few versions, so that all that can meet does.
pub(crate) fn any_record() -> impl Strategy<Value = Signed> {
    let body = (0..8_u8, 0..3_u64, 0..3_u8).prop_map(|(kind, n, other)| {
        let attached = if n == 0 { AttachmentState::Detached } else { AttachmentState::Attached };
        match kind {
            0 => coordinator(),
            1 => worker_of(other, n),
            2 => lease(),
            3 => attachment(10 + other, n, attached),
            4 => guest(["a", "b", "c"][usize::from(other)], [GuestStatus::Healthy, GuestStatus::Gone][n as usize % 2]),
            5 => Body::Leave,
            6 => Body::Unknown(Unknown {
                kind: Kind(100 + other),
                subject: Bytes::from(vec![n as u8]),
                content: Bytes::from(vec![9, other]),
            }),
            _ => node(Roles::Worker, None),
        }
    });
    // Writers 5 to 8 and homes 0 to 2 are apart, so that nobody is its own home.
    (5..8_u8, 0..2_u64, 0..4_u64, 0..2_u64, body).prop_map(|(writer, epoch, seq, incarnation, body)| {
        Signed::sign(&key(writer), FEDERATION, incarnation, Version { epoch, seq }, &body).unwrap()
    })
}

/// What a registry holds, by hash.
pub(crate) fn held(registry: &Registry) -> BTreeSet<crate::record::RecordHash> {
    registry.records(at(Duration::ZERO)).map(|(signed, _)| signed.hash()).collect()
}

pub(crate) fn insert(registry: &mut Registry, now: Time, signed: &Signed) -> Outcome {
    registry.insert(now, signed.clone(), Source::Passed(Duration::ZERO)).unwrap()
}
