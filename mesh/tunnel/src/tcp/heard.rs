//! The socket, with a note of when and how often something came from the other end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What has come so far. Acknowledgements of TCP are not among it: the kernel sends them for a process that stands still.
pub(super) struct Arrivals {
    began: Instant,
    count: AtomicU64,
    last_ms: AtomicU64,
}

impl Arrivals {
    /// Grows with whatever arrives.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// When something last arrived.
    pub(super) fn last(&self) -> Instant {
        self.began + std::time::Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// The socket.
pub(super) struct Heard<S> {
    socket: S,
    arrivals: Arc<Arrivals>,
}

impl<S> Heard<S> {
    pub(super) fn new(socket: S) -> (Self, Arc<Arrivals>) {
        let arrivals =
            Arc::new(Arrivals { began: Instant::now(), count: AtomicU64::new(0), last_ms: AtomicU64::new(0) });
        (Self { socket, arrivals: arrivals.clone() }, arrivals)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        if buf.filled().len() > before {
            let arrivals = &self.arrivals;
            arrivals.count.fetch_add(1, Ordering::Relaxed);
            arrivals.last_ms.store(arrivals.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
