//! An end of a connection, as libp2p (futures' traits) and as hyper and the tunnels (tokio's) see it. Dropping it lets go of it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hedgerow_tunnel::link::StreamReset;

use super::Network;
use super::connection::{Broken, Progress, Side};

/// An end of a connection.
pub struct Stream {
    network: Network,
    connection: u64,
    side: Side,
}

impl Stream {
    pub(super) fn new(network: Network, connection: u64, side: Side) -> Self {
        Self { network, connection, side }
    }

    pub(super) fn place(&self) -> (u64, Side) {
        (self.connection, self.side)
    }

    fn read(&self, cx: &Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = |state: &mut super::State, now| state.read(now, self.connection, self.side, into, cx.waker());
        poll(self.network.with(read))
    }

    fn write(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        poll(self.network.with(|state, now| state.write(now, self.connection, self.side, bytes, cx.waker())))
    }

    fn finish(&self) -> io::Result<()> {
        self.network.with(|state, now| state.finish(now, self.connection, self.side)).map_err(error)
    }
}

fn poll(progress: Progress) -> Poll<io::Result<usize>> {
    match progress {
        Progress::Bytes(count) => Poll::Ready(Ok(count)),
        Progress::Wait => Poll::Pending,
        Progress::Broken(broken) => Poll::Ready(Err(error(broken))),
    }
}

fn error(broken: Broken) -> io::Error {
    match broken {
        Broken::Kind(kind) => kind.into(),
        Broken::Reset(code) => StreamReset(code).into_io(),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.with(|state, now| state.close(now, self.connection, self.side));
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("connection", &self.connection).field("side", &self.side).finish()
    }
}

impl futures_util::AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.read(cx, into)
    }
}

impl futures_util::AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

impl tokio::io::AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = std::task::ready!(self.read(cx, into.initialize_unfilled()))?;
        into.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

/// Where both ends are.
impl Stream {
    /// The address of the node at the other end, without the port that it dialled from.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.network.with(|state, _| {
            let connection = state.connections.get(&self.connection)?;
            Some(super::address::of(connection.node(self.side.other()), 0))
        })
    }
}
