//! What goes over a stream of a tunnel: frames, the preface of a request, and the messages of the control stream.
//!
//! The entry opens every stream. The first stream of a connection is the control stream; each of the others carries
//! one exchange after another:
//!
//! ```text
//! entry                                        node                       service
//!   │── OPEN(preface) ─ DATA(request head) ────▶│  a slot free?               │
//!   │                                           │── connect (or reuse) ──────▶│
//!   │◀──────────────────────────────── ACCEPT ──│                             │
//!   │── DATA … ────────────────────────────────▶│── bytes ───────────────────▶│
//!   │◀──────────────────────────────── DATA … ──│◀────────────────── bytes ───│
//!   │── RELEASE(reuse) ────────────────────────▶│  slot free; connection kept │
//!   │── OPEN(next) …                            │                             │
//! ```
//!
//! or, in the place of ACCEPT, REFUSE(reason), and nothing ran. With no slot free the node refuses at once, unless the entry
//! has nowhere else to go and asks to stand in line ([`WhenFull`]). Either side says END after the last of its bytes and ends its
//! stream (a half-close, passed on): not every transport tells the end of a stream from one that was cut off. A reset, and an end
//! within an exchange without END, is a cancellation and closes the service's socket.
//!
//! A frame is one byte of type, three bytes of length (big-endian), and as many bytes of payload.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{FederationId, NodeId, RequestId, ServiceName};
use crate::wire::{self, DecodeError};

/// Length of a frame's header in bytes.
pub const HEADER_BYTES: usize = 4;
/// The longest payload of a DATA frame that is written, in bytes. Long enough that headers cost nothing.
pub const DATA_BYTES_MAX: usize = 64 * 1024;
/// The longest payload of any other frame, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Bytes of the exchange.
    Data = 0,
    /// Entry to node: begins an exchange; a [`Preface`].
    Open = 1,
    /// Node to entry: the exchange has a slot and a connection to the service; empty.
    Accept = 2,
    /// Node to entry: nothing ran; a [`Refusal`].
    Refuse = 3,
    /// Entry to node: the exchange has ended, its slot is free; a [`Release`].
    Release = 4,
    /// Either way, on the control stream only: a [`Control`] message.
    Control = 5,
    /// Either way, on a stream of kind [`StreamKind::Sync`]: a message of the registry's synchronisation.
    Sync = 6,
    /// Either way: the sender's bytes of the exchange end here, and its stream with them; empty.
    End = 7,
}

impl FrameType {
    /// The type of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Data,
            1 => Self::Open,
            2 => Self::Accept,
            3 => Self::Refuse,
            4 => Self::Release,
            5 => Self::Control,
            6 => Self::Sync,
            7 => Self::End,
            _ => return None,
        })
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub frame_type: FrameType,
    /// Length of the payload in bytes.
    pub payload_bytes: usize,
}

/// Why a frame cannot be read: the stream is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type of frame that this code does not know.
    #[error("unknown frame type {0}")]
    Type(u8),
    /// A payload over its limit.
    #[error("a {frame_type:?} frame of {got_bytes} bytes, over the limit")]
    TooLong {
        /// Type of the frame.
        frame_type: FrameType,
        /// Length that it claims, in bytes.
        got_bytes: usize,
    },
    /// A known frame in a place where it may not stand.
    #[error("a {0:?} frame out of place")]
    OutOfPlace(FrameType),
    /// A payload that does not decode.
    #[error(transparent)]
    Payload(#[from] DecodeError),
}

impl FrameHeader {
    /// The header as bytes. Payloads are below 16 MiB by [`DATA_BYTES_MAX`] and [`MESSAGE_BYTES_MAX`].
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        debug_assert!(self.payload_bytes < 1 << 24);
        let [_, a, b, c] = (self.payload_bytes as u32).to_be_bytes();
        [self.frame_type as u8, a, b, c]
    }

    /// Reads a header.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [kind, a, b, c] = bytes;
        let frame_type = FrameType::from_byte(kind).ok_or(FrameError::Type(kind))?;
        let payload_bytes = u32::from_be_bytes([0, a, b, c]) as usize;
        // The payload of DATA is never buffered whole, so any length that the header can say is fine.
        if frame_type != FrameType::Data && payload_bytes > MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLong { frame_type, got_bytes: payload_bytes });
        }
        Ok(Self { frame_type, payload_bytes })
    }
}

/// A whole frame with an encoded payload: header and payload in one buffer.
pub fn message<T: Serialize>(frame_type: FrameType, payload: &T) -> Vec<u8> {
    // Most are an OPEN or a RELEASE, written for every request: one allocation each.
    let mut out = Vec::with_capacity(HEADER_BYTES + 124);
    out.extend_from_slice(&[0; HEADER_BYTES]);
    wire::encode_onto(payload, &mut out);
    let header = FrameHeader { frame_type, payload_bytes: out.len() - HEADER_BYTES };
    out[..HEADER_BYTES].copy_from_slice(&header.encode());
    out
}

/// What a stream of the tunnel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StreamKind {
    /// HTTP/1.1 exchanges with a service.
    Http,
    /// One HTTP/1.1 exchange that asks for an upgrade: the stream is not used again.
    Upgrade,
    /// The connection's control stream.
    Control,
    /// Synchronisation of the registry.
    Sync,
    /// Bytes of a libp2p WebSocket to the coordinator's own listener.
    MeshPeer,
    /// A stream that the coordinator passes on to a worker that it holds: after ACCEPT, whatever follows is the worker's, as if
    /// its own tunnel had been opened.
    Relay,
    /// HTTP/1.1 with the coordinator itself, in the contract that existing agents speak.
    Contract,
}

/// May the exchange go down a connection to the service that was used before?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceConnection {
    /// Yes: the request is idempotent, and if the service closes just now it can be sent again.
    MayReuse,
    /// No: a fresh one, for a request that must not be sent twice.
    Fresh,
}

/// What the node does with an exchange while all of the service's slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenFull {
    /// Refuses it at once: another node may have room.
    Refuse,
    /// Lets it stand in line: the entry has asked everybody else. Who stands there gets the next slot before anybody who comes
    /// later, so that an entry whose next request follows on the last one's heels does not keep the service to itself.
    /// Refused all the same after [`WhenFull::IN_LINE_MAX`], or if the line is long.
    Wait,
}

impl WhenFull {
    /// How long an exchange stands in line at most. Long enough that who comes back for more is nearly always there, also from
    /// the other side of the world; short, since meanwhile another node may have room.
    pub const IN_LINE_MAX: Duration = Duration::from_millis(200);
}

/// The payload of OPEN: who asks for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preface {
    /// What follows.
    pub kind: StreamKind,
    /// The worker to pass it on to, for [`StreamKind::Relay`].
    pub node: Option<NodeId>,
    /// The service, for [`StreamKind::Http`] and [`StreamKind::Upgrade`].
    pub service: Option<ServiceName>,
    /// The request, for the logs of both ends.
    pub request: RequestId,
    /// How many nodes have passed it on already: 0 from the entry, at most [`Preface::HOPS_MAX`].
    pub hops: u8,
    /// Whether a kept connection to the service will do.
    pub connection: ServiceConnection,
    /// Whether it waits for a slot.
    pub when_full: WhenFull,
}

impl Preface {
    /// A coordinator may pass a request on to a worker; nobody passes it on again.
    pub const HOPS_MAX: u8 = 1;
}

/// The payload of REFUSE: the service has not seen a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// All of the service's slots are taken.
    Full,
    /// The node is leaving.
    Draining,
    /// The node does not offer this service.
    UnknownService,
    /// The service did not take a connection.
    ServiceDown,
    /// The preface asks for something that this node does not do.
    Unsupported,
    /// The request has been passed on too often.
    TooManyHops,
}

impl Refusal {
    /// A stable word for logs, metrics and error bodies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Draining => "draining",
            Self::UnknownService => "unknown-service",
            Self::ServiceDown => "service-down",
            Self::Unsupported => "unsupported",
            Self::TooManyHops => "too-many-hops",
        }
    }
}

/// The payload of RELEASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// The answer ended where its framing said, and the service keeps the connection: it may be used again.
    Keep,
    /// Close the connection to the service.
    Close,
}

/// Codes of a stream's reset.
pub mod reset {
    /// The client went away, or the entry gave up: close the service's socket.
    pub const CANCELLED: u32 = 1;
    /// The peer broke the rules of this module.
    pub const PROTOCOL: u32 = 2;
    /// A kept connection to the service had closed before it answered a byte. An idempotent request may be sent
    /// again to the same node.
    pub const STALE_CONNECTION: u32 = 3;
    /// The service's connection broke.
    pub const SERVICE_BROKE: u32 = 4;
}

/// Codes of a connection's close.
pub mod close {
    /// No fault: the process stops, or has drained.
    pub const GOING: u32 = 1;
    /// The handshake was refused; the reason says why.
    pub const REFUSED: u32 = 2;
    /// The peer broke the rules of this module.
    pub const PROTOCOL: u32 = 3;
    /// A newer connection of the same node and lane takes the place of this one.
    pub const REPLACED: u32 = 4;
    /// The watchdog found that nothing passes.
    pub const STALLED: u32 = 5;
}

/// A message on the control stream. The entry speaks first: `Hello`, then the node `Join`, then the entry `Welcome` or
/// `Reject`; from then on either side whenever it has something to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Entry: who it is.
    Hello(Hello),
    /// Node: who it is, with its signed record.
    Join(Join),
    /// Entry: the tunnel is up; requests may come from now on.
    Welcome(Welcome),
    /// Entry: the tunnel will be closed.
    Reject(Reject),
    /// Node: its record has changed; the bytes of a signed record.
    Record(Vec<u8>),
    /// Node: it drains. No new exchange; those that run may finish. The bytes of a signed Leave.
    Leave(Vec<u8>),
    /// Either: answer with a `Pong` of the same number.
    Ping(u64),
    /// Either: the answer to `Ping`.
    Pong(u64),
    /// Entry: it is about to stop. Exchanges that run may finish.
    Going,
    /// Entry: the signed records of coordinators, for the node to know of.
    Coordinators(Vec<Vec<u8>>),
    /// Entry: how many coordinators there are, for a node that would be one if there are too few.
    Census(Census),
}

/// What an entry tells those who may be elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Coordinators that are here.
    pub coordinators: u16,
    /// How many there should be.
    pub wanted: u16,
    /// How many of those who would be one are steadier and better connected than the node that is told.
    pub rank: u16,
}

/// The entry's side of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The federation that this entry serves.
    pub federation: FederationId,
    /// Random for each run of the entry: connections to the same run belong together.
    pub incarnation: u64,
    /// Which of the entry's threads holds this connection, below `shards`.
    pub shard: u16,
    /// How many threads the entry has.
    pub shards: u16,
}

/// The node's side of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The federation that the node wants to be in.
    pub federation: FederationId,
    /// Random for each run of the node: tells two processes with one key apart.
    pub incarnation: u64,
    /// 0 for the connection with the pings; above, further connections of the same tunnel, one for each thread of the entry.
    pub lane: u16,
    /// The bytes of the node's signed record.
    pub record: Vec<u8>,
    /// What a request to each of its services has as `Host`. For this entry alone: records are public, and this names hosts.
    pub authorities: Vec<(ServiceName, String)>,
    /// What admission asks for (an invitation, a certificate); empty in an open federation.
    pub credentials: Vec<u8>,
}

/// The entry's answer to `Join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node's address as the entry sees it (a socket address), for the node alone.
    pub observed: String,
    /// How often the node sends a `Ping`, in milliseconds.
    pub ping_interval_ms: u32,
}

/// The entry's refusal of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// What the node should make of it.
    pub reason: RejectReason,
    /// For the person who reads the node's log: what happened and what to do.
    pub message: String,
    /// For [`RejectReason::KeyInUse`]: the bytes of the record that is newer, for the node to speak above it.
    pub record: Option<Vec<u8>>,
}

/// Why a tunnel is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RejectReason {
    /// Another federation.
    Federation,
    /// The record does not decode, is not signed by the key of the connection, or breaks a limit.
    Record,
    /// The rules of admission do not let this key in.
    NotAdmitted,
    /// The entry holds as many tunnels as it can; try again later, or another entry.
    Overloaded,
    /// Another process with the same key has a newer tunnel.
    KeyInUse,
}

/// The connection's ALPN protocol (RFC 7301): a change that the old code cannot speak gets another number.
pub const ALPN: &[u8] = b"hedgerow-tunnel/1";
/// The same where a tunnel goes over TCP, on a port that may serve https too: by this an entry tells nodes and browsers apart.
pub const ALPN_TCP: &[u8] = b"hedgerow-tunnel-h2/1";
