//! What a node may say: the kinds of records.
//!
//! One writer each: a node signs only what it says about itself. [`Signed`] is the envelope in which a record
//! travels and is kept; [`check`] has the bounds and the rules that a record must keep.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{FederationId, NodeId, ServiceName};

mod check;
mod signed;

pub use check::Invalid;
pub use signed::{Open, RecordError, RecordHash, Signed};

/// What a node does. At least one is set in a valid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Roles {
    /// Offers services.
    Worker,
    /// Holds the registry.
    Coordinator,
    /// Both.
    Both,
}

impl Roles {
    /// Whether the node holds the registry.
    pub fn coordinates(self) -> bool {
        matches!(self, Self::Coordinator | Self::Both)
    }
    /// Whether the node offers services.
    pub fn works(self) -> bool {
        matches!(self, Self::Worker | Self::Both)
    }
}

/// One service that a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOffer {
    /// Its name.
    pub name: ServiceName,
    /// How many requests it takes at once; at least 1.
    pub capacity: u32,
    /// Whether its probe succeeds: an offer that is down is known but gets no requests.
    pub health: ServiceHealth,
}

/// What a node's own probe says of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceHealth {
    /// It takes connections.
    Up,
    /// It does not.
    Down,
}

/// A worker's home: the coordinator that it is attached to, and the how-manieth move this was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The coordinator.
    pub coordinator: NodeId,
    /// Counts the moves: the attachment that quotes the highest one counts.
    pub home_seq: u64,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What it does.
    pub roles: Roles,
    /// Where it says it is: free text for people.
    pub location: String,
    /// The version of its software.
    pub version: String,
    /// The services that its operator named, in order of name, each once.
    pub services: Vec<ServiceOffer>,
    /// libp2p multiaddrs that it can be dialled at; empty when there are none.
    pub multiaddrs: Vec<String>,
    /// The coordinator that it is attached to, if any.
    pub home: Option<Home>,
    /// Whether it coordinates because its operator says so, or as long as there are too few who do.
    pub candidacy: Candidacy,
    /// What it runs on.
    pub hardware: Hardware,
}

/// How a node comes to be a coordinator, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Candidacy {
    /// Its operator has said what it is: it stays that.
    #[default]
    Fixed,
    /// It becomes a coordinator while there are too few, and steps down when there are too many.
    Elective,
}

/// What a node runs on, as it found it or as its operator says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Hardware {
    /// What kind of work it is for.
    pub worker_type: WorkerType,
    /// Logical processors; 0 where that is not known.
    pub cpu_cores: u16,
    /// Main memory in MiB; 0 where that is not known.
    pub memory_mib: u32,
    /// Room on the disk of its data directory in GiB; 0 where that is not known.
    pub storage_gib: u32,
    /// Its largest GPU, if it has one.
    pub gpu: Option<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gpu {
    /// What its driver calls it.
    pub name: String,
    /// Its memory in MiB.
    pub memory_mib: u32,
}

/// What kind of work a node is for: `worker_type` of the contract that existing agents speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum WorkerType {
    /// Models that need a GPU.
    Gpu,
    /// Anything that a processor does.
    #[default]
    Cpu,
    /// Keeping things.
    Storage,
    /// Passing requests on.
    Edge,
}

impl WorkerType {
    /// All of them, by tier.
    pub const ALL: [Self; 4] = [Self::Gpu, Self::Cpu, Self::Storage, Self::Edge];

    /// As the contract writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
            Self::Storage => "storage",
            Self::Edge => "edge",
        }
    }

    /// The contract's tier: 1 to 4.
    pub fn tier(self) -> u8 {
        match self {
            Self::Gpu => 1,
            Self::Cpu => 2,
            Self::Storage => 3,
            Self::Edge => 4,
        }
    }
}

impl std::str::FromStr for WorkerType {
    type Err = WorkerTypeError;
    fn from_str(text: &str) -> Result<Self, WorkerTypeError> {
        let same = |one: &Self| one.as_str().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(same).ok_or_else(|| WorkerTypeError(text.to_owned()))
    }
}

/// A text that is none of the types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of gpu, cpu, storage, edge")]
pub struct WorkerTypeError(pub String);

/// Newest first: the counter that the node keeps on its disk, then how often it has spoken since it was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Raised on disk before a process uses it: never a clock.
    pub epoch: u64,
    /// Counts what was said in this epoch.
    pub seq: u64,
}

/// A coordinator is here. Renewed by its owner alone, at a third of its time to live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// How long it lasts from the moment it was signed. The receiver measures on its own clock.
    #[serde(with = "milliseconds")]
    pub ttl: Duration,
}

/// A coordinator's word on whether a worker has its control connection to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The worker: it stands in the envelope, since there is one record for each.
    pub worker: NodeId,
    /// The worker's count of its moves that this is about.
    pub home_seq: u64,
    /// Whether it is there.
    pub state: AttachmentState,
}

/// Whether a worker is with the coordinator that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AttachmentState {
    /// Its control connection is up.
    Attached,
    /// It has been down for longer than a reconnect takes.
    Detached,
}

/// A coordinator speaks for an agent that has no key of ours (the contract that existing agents speak).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// What the agent calls itself: it stands in the envelope, since there is one record for each.
    pub worker_id: String,
    /// What it says of itself.
    pub details: GuestDetails,
}

/// What an agent said when it registered, as the contract names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDetails {
    /// `worker_type`: gpu, cpu, storage, edge, or what else it says.
    pub worker_type: String,
    /// `tunnel_url`, as it came: it may be empty or nonsense. Whether it is a route is for each entry to check.
    pub tunnel_url: String,
    /// Where it says it is.
    pub location: String,
    /// The services that it offers or was assigned, in order of name, each once.
    pub services: Vec<ServiceName>,
    /// `capabilities`, as JSON text: unknown fields are kept.
    pub capabilities: String,
    /// How it does.
    pub status: GuestStatus,
    /// How busy it says it is, in hundredths: told again when it has changed by much.
    pub load_percent: u8,
}

/// How a guest does, as its heartbeats say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GuestStatus {
    /// Its heartbeats say so.
    Healthy,
    /// Its heartbeats say so, or are overdue.
    Degraded,
    /// It unregistered, or its heartbeats stopped: the tombstone of the guest.
    Gone,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// What the writer is and offers.
    Node(NodeRecord),
    /// The writer, a coordinator, is here.
    Lease(Lease),
    /// Whether a worker is with the writer, a coordinator.
    Attachment(Attachment),
    /// An agent for which the writer, a coordinator, speaks.
    Guest(Guest),
    /// The writer is going: the tombstone of everything that it said up to here.
    Leave,
    /// Something of a newer version: ordered, kept and passed on, and not understood.
    Unknown(Unknown),
}

/// A record of a kind, or in a shape, that only a newer version understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Its kind.
    pub kind: Kind,
    /// What it is about beside its writer; meaningless here.
    pub subject: Bytes,
    /// Its content, starting with its version byte.
    pub content: Bytes,
}

/// The number of a kind in the envelope. Kinds are added, and never change their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kind(pub u8);

impl Kind {
    /// [`Body::Node`].
    pub const NODE: Self = Self(1);
    /// [`Body::Lease`].
    pub const LEASE: Self = Self(2);
    /// [`Body::Attachment`].
    pub const ATTACHMENT: Self = Self(3);
    /// [`Body::Guest`].
    pub const GUEST: Self = Self(4);
    /// [`Body::Leave`].
    pub const LEAVE: Self = Self(5);

    /// Whether this version knows records of this kind.
    pub fn is_known(self) -> bool {
        (Self::NODE..=Self::LEAVE).contains(&self)
    }
}

impl Body {
    /// The kind's number.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::NODE,
            Self::Lease(_) => Kind::LEASE,
            Self::Attachment(_) => Kind::ATTACHMENT,
            Self::Guest(_) => Kind::GUEST,
            Self::Leave => Kind::LEAVE,
            Self::Unknown(unknown) => unknown.kind,
        }
    }

    /// What the record is about beside its writer: empty where there is one of the kind for each writer.
    pub fn subject(&self) -> &[u8] {
        match self {
            Self::Node(_) | Self::Lease(_) | Self::Leave => &[],
            Self::Attachment(attachment) => &attachment.worker.0,
            Self::Guest(guest) => guest.worker_id.as_bytes(),
            Self::Unknown(unknown) => &unknown.subject,
        }
    }
}

/// A record that has been opened: its signature holds, and it keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The federation that it was said in.
    pub federation: FederationId,
    /// Who said it.
    pub writer: NodeId,
    /// Random for each run of the writer: tells two processes with one key apart.
    pub incarnation: u64,
    /// Its place in the order of what the writer said.
    pub version: Version,
    /// What was said.
    pub body: Body,
}

impl Record {
    /// What is replaced when the writer says this again.
    pub fn key(&self) -> RecordKey {
        RecordKey { writer: self.writer, kind: self.body.kind(), subject: Bytes::copy_from_slice(self.body.subject()) }
    }

    /// What the node says of itself, if this is a node's record.
    pub fn node(&self) -> Option<&NodeRecord> {
        match &self.body {
            Body::Node(node) => Some(node),
            _ => None,
        }
    }
}

/// What a record replaces: there is one record for each key, and the newest is it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Who speaks.
    pub writer: NodeId,
    /// In which kind.
    pub kind: Kind,
    /// About whom, where the kind has many for each writer.
    pub subject: Bytes,
}

/// A duration as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
