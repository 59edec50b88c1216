//! The seam under the tunnel: a connection between two proven keys that gives ordered byte streams.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use hedgerow_proto::id::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::tuning;

/// A future of a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A pair of byte streams, one each way. Dropping it before both ends have finished is a reset.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Gives both directions up at once with a code of [`hedgerow_proto::frame::reset`]: what was written and is not yet sent is
    /// lost, and the peer sees [`StreamReset`].
    fn reset(&mut self, code: u32);

    /// Ready when the peer has given up the direction towards it, also while nobody reads or writes: the quick way to
    /// notice a cancellation under back-pressure.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<u32>;
}

/// Any stream.
pub type BoxStream = Box<dyn Stream>;

/// The error inside an [`io::Error`] when the peer has reset a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer reset the stream with code {0}")]
pub struct StreamReset(pub u32);

impl StreamReset {
    /// As an I/O error.
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self)
    }

    /// The code, if this error is a peer's reset.
    pub fn of(error: &io::Error) -> Option<u32> {
        error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).map(|reset| reset.0)
    }
}

/// Why a connection is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkClosed {
    /// The code of [`hedgerow_proto::frame::close`], where one side closed it on purpose.
    pub code: Option<u32>,
    /// What happened, for a log.
    pub reason: String,
}

impl fmt::Display for LinkClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for LinkClosed {}

impl From<LinkClosed> for io::Error {
    fn from(closed: LinkClosed) -> Self {
        Self::new(io::ErrorKind::NotConnected, closed)
    }
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
    /// Something inside this process, or another connection that passes streams on.
    Other,
}

impl Transport {
    /// Its name, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A connection between two proven keys.
pub trait Link: Send + Sync + 'static {
    /// Opens a stream. The peer learns of it with the first bytes written.
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>>;
    /// The next stream that the peer opens.
    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>>;
    /// Closes the connection and resets all of its streams.
    fn close(&self, code: u32, reason: &str);
    /// Ready when the connection is no more.
    fn closed(&self) -> BoxFuture<'_, LinkClosed>;
    /// Whether the connection is no more. Asked for every request that a tunnel without a control stream might take, so it
    /// should be cheap.
    fn is_closed(&self) -> bool {
        self.closed().now_or_never().is_some()
    }
    /// The key that the peer has proven.
    fn peer(&self) -> NodeId;
    /// The peer's address, where there is one.
    fn remote(&self) -> Option<SocketAddr>;
    /// A counter that grows whenever anything arrives from the peer, acknowledgements included.
    fn received(&self) -> u64;
    /// The round-trip time as measured lately.
    fn rtt(&self) -> Duration;
    /// How often whoever dialled is to send a PING, if this is the connection of this [`lane`](hedgerow_proto::frame::Join::lane).
    fn ping_interval(&self, lane: u16) -> Duration {
        if lane == 0 { tuning::PING_INTERVAL } else { tuning::PING_INTERVAL_LANE }
    }
    /// How long after its streams have broken the word may come why the peer has closed the connection. Nothing where both come at
    /// once.
    fn last_words_timeout(&self) -> Duration {
        Duration::ZERO
    }
    /// What carries it.
    fn transport(&self) -> Transport {
        Transport::Other
    }
}

/// A stream that lives as long as its connection has broken: waits for the peer's word why, and closes the connection if none comes.
/// Says why the connection is no more.
pub(crate) async fn last_words(link: &dyn Link, code: u32, reason: &str) -> LinkClosed {
    match timeout(link.last_words_timeout(), link.closed()).await {
        Ok(closed) => closed,
        Err(_) => {
            link.close(code, reason);
            LinkClosed { code: Some(code), reason: reason.to_owned() }
        }
    }
}
