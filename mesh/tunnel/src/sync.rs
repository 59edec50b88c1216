//! Synchronisation of a registry over any stream of bytes: a stream of a tunnel of kind
//! [`hedgerow_proto::frame::StreamKind::Sync`] once it has been accepted, a libp2p stream, memory. The rules are
//! [`hedgerow_proto::sync`]'s; here are only the frames.

use std::io;
use std::time::Duration;

use hedgerow_proto::frame::{FrameError, FrameHeader, FrameType, HEADER_BYTES};
use hedgerow_proto::sync::{Session, SyncError, Traffic};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// A peer that neither sends nor takes a byte for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A registry, wherever it is kept. Called with short bits of work, never across an `await`.
pub trait SyncReplica: Send + Sync {
    /// [`Session::poll_transmit`] with the registry.
    fn transmit(&self, session: &mut Session) -> Option<Vec<u8>>;
    /// [`Session::handle`] with the registry; what it brought is this side's to use.
    fn receive(&self, session: &mut Session, message: &[u8]) -> Result<(), SyncError>;
}

/// Why a synchronisation broke off. What was taken until then stays taken.
#[derive(Debug, thiserror::Error)]
pub enum SyncBroken {
    /// The stream broke, or the peer fell silent.
    #[error("the stream of the synchronisation: {0}")]
    Stream(#[from] io::Error),
    /// The peer broke the rules.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer broke the rules.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// Runs one session to its end. The stream is not closed.
pub async fn synchronise<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut session: Session,
    replica: &(impl SyncReplica + ?Sized),
) -> Result<Traffic, SyncBroken> {
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "the peer is silent");
    loop {
        while let Some(payload) = replica.transmit(&mut session) {
            let header = FrameHeader { frame_type: FrameType::Sync, payload_bytes: payload.len() };
            timeout(SILENCE_MAX, async {
                stream.write_all(&header.encode()).await?;
                stream.write_all(&payload).await?;
                stream.flush().await
            })
            .await
            .map_err(silent)??;
        }
        if session.is_finished() {
            return Ok(session.traffic());
        }
        let payload = timeout(SILENCE_MAX, read(stream)).await.map_err(silent)??;
        replica.receive(&mut session, &payload)?;
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, SyncBroken> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = FrameHeader::decode(header)?;
    if header.frame_type != FrameType::Sync {
        return Err(FrameError::OutOfPlace(header.frame_type).into());
    }
    let mut payload = vec![0; header.payload_bytes];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}
