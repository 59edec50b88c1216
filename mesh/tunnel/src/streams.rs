//! Streams to a node that are not exchanges with its services: opened, and taken or refused.

use std::io;

use hedgerow_proto::frame::{
    FrameError, FrameHeader, FrameType, HEADER_BYTES, Preface, Refusal, ServiceConnection, StreamKind, WhenFull,
    message,
};
use hedgerow_proto::id::{NodeId, RequestId};
use hedgerow_proto::wire::{self, DecodeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::accept::Tunnel;
use crate::link::{BoxStream, LinkClosed};

/// The longest payload of a verdict: ACCEPT has none, and a reason is a number.
const VERDICT_BYTES_MAX: usize = 16;

/// Why there is no such stream.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// Nobody has heard of it.
    #[error("the tunnel is closed: {0}")]
    Closed(#[from] LinkClosed),
    /// The node has said no.
    #[error("the node does not take it: {}", .0.as_str())]
    Refused(Refusal),
    /// What the node said is no answer.
    #[error("the node broke the rules: {0}")]
    Frame(#[from] FrameError),
    /// The node may have heard of it.
    #[error("the stream broke: {0}")]
    Stream(#[from] io::Error),
}

impl From<DecodeError> for NotOpened {
    fn from(error: DecodeError) -> Self {
        Self::Frame(error.into())
    }
}

/// Opens a stream of this kind; what follows is up to the kind. `node` is whom it is to be passed on to.
pub async fn open(
    tunnel: &Tunnel,
    kind: StreamKind,
    node: Option<NodeId>,
    request: RequestId,
) -> Result<BoxStream, NotOpened> {
    let mut stream = tunnel.open().await?;
    let (connection, when_full) = (ServiceConnection::Fresh, WhenFull::Refuse);
    let preface = Preface { kind, node, service: None, request, hops: 0, connection, when_full };
    stream.write_all(&message(FrameType::Open, &preface)).await?;
    stream.flush().await?;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = FrameHeader::decode(header)?;
    if header.payload_bytes > VERDICT_BYTES_MAX {
        let (frame_type, got_bytes) = (header.frame_type, header.payload_bytes);
        return Err(FrameError::TooLong { frame_type, got_bytes }.into());
    }
    let mut payload = vec![0; header.payload_bytes];
    stream.read_exact(&mut payload).await?;
    match header.frame_type {
        FrameType::Accept => Ok(stream),
        FrameType::Refuse => Err(NotOpened::Refused(wire::decode(&payload, VERDICT_BYTES_MAX)?)),
        other => Err(FrameError::OutOfPlace(other).into()),
    }
}
