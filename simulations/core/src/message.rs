//! What travels over simulated connections. Whatever has a wire format of its own in the product travels as those bytes; of the
//! frames of tunnels, whose bytes are the tunnel's matter, the content does.

use bytes::Bytes;
use hedgerow_proto::frame::{Census, Refusal};
use hedgerow_proto::id::NodeId;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    /// Between two coordinators.
    Mesh,
    /// From a worker to its home.
    Home,
    /// From a node to an entry.
    Tunnel,
}

/// A request of a client, by its number in the run.
pub(crate) type RequestNumber = u64;

/// What travels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// A gossiped message, as its publisher signed it.
    Gossip { id: u64, publisher: NodeId, bytes: Bytes },
    /// An encoded `PeerRequest`.
    Ask { id: u64, bytes: Bytes },
    /// An encoded `PeerResponse`.
    Answer { id: u64, bytes: Bytes },
    /// The first words of who dialled: its record, and which run it is.
    Join { incarnation: u64, record: Bytes },
    /// It is taken in.
    Welcome,
    /// It is not; with a newer record of its own key, if that is why.
    Reject { newer: Option<Bytes> },
    /// The record of who dialled has changed.
    Record(Bytes),
    /// It goes.
    Leave(Bytes),
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// Others whom to know.
    Coordinators(Vec<Vec<u8>>),
    /// How many coordinators there are.
    Census(Census),
    /// A message of the synchronisation between an entry and a coordinator.
    Sync { session: u64, bytes: Vec<u8> },
    /// A client's request, towards a service. `waits`: it stands in line for a moment where all slots are taken. `via`: for a
    /// worker that is at home with the one that gets this.
    Open { request: RequestNumber, service: u32, attempt: u32, waits: bool, via: Option<NodeId> },
    /// The service has it.
    Accept { request: RequestNumber, attempt: u32 },
    /// The service has not seen it.
    Refuse { request: RequestNumber, attempt: u32, refusal: Refusal },
    /// The answer begins.
    Begin { request: RequestNumber, attempt: u32 },
    /// The answer is whole.
    End { request: RequestNumber, attempt: u32 },
    /// The stream of this attempt has broken, behind whoever passed it on.
    Broke { request: RequestNumber, attempt: u32 },
    /// Whoever asked does not wait any more.
    Cancel { request: RequestNumber, attempt: u32 },
}

/// What a message counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Gossip,
    Sync,
    Other,
}

/// A frame's head, a stream's preface and the like.
const FRAME_BYTES: usize = 24;
/// A request or answer head with a small body.
const HTTP_BYTES: usize = 600;

impl Message {
    /// Its bytes, for what it costs.
    pub(crate) fn len(&self) -> usize {
        FRAME_BYTES
            + match self {
                // The publisher's signature is beside the record's own.
                Self::Gossip { bytes, .. } => bytes.len() + 120,
                Self::Ask { bytes, .. } | Self::Answer { bytes, .. } => bytes.len(),
                Self::Join { record, .. } | Self::Record(record) | Self::Leave(record) => record.len() + 100,
                Self::Reject { newer } => newer.as_ref().map_or(16, Bytes::len),
                Self::Coordinators(records) => records.iter().map(Vec::len).sum(),
                Self::Sync { bytes, .. } => bytes.len(),
                Self::Open { .. } | Self::Begin { .. } | Self::End { .. } => HTTP_BYTES,
                Self::Welcome
                | Self::Ping(_)
                | Self::Pong(_)
                | Self::Census(_)
                | Self::Accept { .. }
                | Self::Refuse { .. }
                | Self::Broke { .. }
                | Self::Cancel { .. } => 16,
            }
    }

    pub(crate) fn sort(&self) -> Sort {
        match self {
            Self::Gossip { .. } => Sort::Gossip,
            Self::Ask { .. } | Self::Answer { .. } | Self::Sync { .. } => Sort::Sync,
            _ => Sort::Other,
        }
    }

    /// A number for each kind, and its content, for the trace.
    pub(crate) fn traced(&self) -> (u8, Vec<u8>) {
        let numbers = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
        match self {
            Self::Gossip { id, publisher, bytes } => {
                (1, [id.to_be_bytes().as_slice(), publisher.0.as_slice(), bytes].concat())
            }
            Self::Ask { id, bytes } => (2, [id.to_be_bytes().as_slice(), bytes].concat()),
            Self::Answer { id, bytes } => (3, [id.to_be_bytes().as_slice(), bytes].concat()),
            Self::Join { incarnation, record } => (4, [incarnation.to_be_bytes().as_slice(), record].concat()),
            Self::Welcome => (5, Vec::new()),
            Self::Reject { newer } => (6, newer.as_ref().map(|record| record.to_vec()).unwrap_or_default()),
            Self::Record(record) => (7, record.to_vec()),
            Self::Leave(record) => (8, record.to_vec()),
            Self::Ping(n) => (9, numbers(&[*n])),
            Self::Pong(n) => (10, numbers(&[*n])),
            Self::Coordinators(records) => (11, records.concat()),
            Self::Census(census) => {
                (12, numbers(&[census.coordinators.into(), census.wanted.into(), census.rank.into()]))
            }
            Self::Sync { session, bytes } => (13, [session.to_be_bytes().as_slice(), bytes].concat()),
            Self::Open { request, service, attempt, waits, via } => {
                let mut bytes = numbers(&[*request, u64::from(*service), u64::from(*waits), u64::from(*attempt)]);
                bytes.extend(via.iter().flat_map(|node| node.0));
                (14, bytes)
            }
            Self::Accept { request, attempt } => (15, numbers(&[*request, u64::from(*attempt)])),
            Self::Refuse { request, attempt, refusal } => {
                (16, [numbers(&[*request, u64::from(*attempt)]).as_slice(), refusal.as_str().as_bytes()].concat())
            }
            Self::Begin { request, attempt } => (17, numbers(&[*request, u64::from(*attempt)])),
            Self::End { request, attempt } => (18, numbers(&[*request, u64::from(*attempt)])),
            Self::Broke { request, attempt } => (20, numbers(&[*request, u64::from(*attempt)])),
            Self::Cancel { request, attempt } => (19, numbers(&[*request, u64::from(*attempt)])),
        }
    }
}
