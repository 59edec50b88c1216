//! A connection inside one process: for a node's own LAN port, which takes the same way as the tunnels, and for tests.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hedgerow_proto::frame::reset;
use hedgerow_proto::id::NodeId;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{Mutex, mpsc, watch};

use crate::link::{BoxFuture, BoxStream, Link, LinkClosed, Stream, StreamReset};

/// Bytes that may wait in a stream, each way.
const WINDOW_BYTES: usize = 256 * 1024;
/// Streams that may wait to be accepted.
const BACKLOG: usize = 64;

/// One end of a connection in memory.
pub struct MemoryLink {
    peer: NodeId,
    outgoing: mpsc::Sender<MemoryStream>,
    incoming: Mutex<mpsc::Receiver<MemoryStream>>,
    closed: Arc<watch::Sender<Option<LinkClosed>>>,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    rtt_us: Arc<AtomicU64>,
}

/// Two ends: the first belongs to `a` and sees `b` as its peer, the second the other way round.
pub fn pair(a: NodeId, b: NodeId) -> (MemoryLink, MemoryLink) {
    let (to_b, from_a) = mpsc::channel(BACKLOG);
    let (to_a, from_b) = mpsc::channel(BACKLOG);
    let closed = Arc::new(watch::Sender::new(None));
    let [at_a, at_b, rtt_us] = std::array::from_fn(|_| Arc::new(AtomicU64::new(0)));
    let end = |peer, outgoing, incoming, received: &Arc<AtomicU64>, sent: &Arc<AtomicU64>| MemoryLink {
        peer,
        outgoing,
        incoming: Mutex::new(incoming),
        closed: closed.clone(),
        received: received.clone(),
        sent: sent.clone(),
        rtt_us: rtt_us.clone(),
    };
    (end(b, to_b, from_b, &at_a, &at_b), end(a, to_a, from_a, &at_b, &at_a))
}

impl MemoryLink {
    /// Says at both ends how long one has to wait for the other, where that one has to ask farther away. Nothing at first.
    pub fn set_rtt(&self, rtt: Duration) {
        self.rtt_us.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn stream_pair(&self) -> (MemoryStream, MemoryStream) {
        let (mine, theirs) = tokio::io::duplex(WINDOW_BYTES);
        let (a, b) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let end = |io, own: &Arc<Signal>, peer: &Arc<Signal>, received: &Arc<AtomicU64>| MemoryStream {
            io: Some(io),
            own: own.clone(),
            peer: peer.clone(),
            received: received.clone(),
            closed: self.closed.clone(),
            finished: false,
        };
        (end(mine, &a, &b, &self.received), end(theirs, &b, &a, &self.sent))
    }

    fn gone(&self) -> LinkClosed {
        let reason = self.closed.borrow().clone();
        reason.unwrap_or_else(|| LinkClosed { code: None, reason: "the other end is gone".into() })
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.close(hedgerow_proto::frame::close::GOING, "dropped");
    }
}

impl Link for MemoryLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let (mine, theirs) = self.stream_pair();
            tokio::select! {
                biased;
                // First: there may be room behind a close too.
                gone = self.closed() => return Err(gone),
                sent = self.outgoing.send(theirs) => sent.map_err(|_| self.gone())?,
            }
            Ok(Box::new(mine) as BoxStream)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let mut incoming = self.incoming.lock().await;
            tokio::select! {
                biased;
                gone = self.closed() => Err(gone),
                stream = incoming.recv() => stream.map(|s| Box::new(s) as BoxStream).ok_or_else(|| self.gone()),
            }
        })
    }

    fn close(&self, code: u32, reason: &str) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| LinkClosed { code: Some(code), reason: reason.to_owned() });
            first
        });
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(async move {
            let mut closed = self.closed.subscribe();
            let _ = closed.wait_for(Option::is_some).await;
            self.gone()
        })
    }

    fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    fn peer(&self) -> NodeId {
        self.peer
    }

    fn remote(&self) -> Option<SocketAddr> {
        None
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt_us.load(Ordering::Relaxed))
    }
}

/// What one end has told the other beside the bytes: 0 is nothing, else the code of a reset, plus one.
#[derive(Default)]
struct Signal {
    reset: AtomicU32,
    reader: AtomicWaker,
    stopped: AtomicWaker,
}

impl Signal {
    fn raise(&self, code: u32) {
        let _ = self.reset.compare_exchange(0, code.saturating_add(1), Ordering::AcqRel, Ordering::Acquire);
        self.reader.wake();
        self.stopped.wake();
    }

    fn raised(&self) -> Option<u32> {
        self.reset.load(Ordering::Acquire).checked_sub(1)
    }
}

struct MemoryStream {
    io: Option<DuplexStream>,
    /// Raised by the peer for us.
    own: Arc<Signal>,
    peer: Arc<Signal>,
    received: Arc<AtomicU64>,
    closed: Arc<watch::Sender<Option<LinkClosed>>>,
    finished: bool,
}

impl MemoryStream {
    fn check(&mut self) -> io::Result<Pin<&mut DuplexStream>> {
        if let Some(code) = self.own.raised() {
            return Err(StreamReset(code).into_io());
        }
        if let Some(closed) = self.closed.borrow().clone() {
            return Err(closed.into());
        }
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.own.reader.register(cx.waker());
        let before = buf.filled().len();
        let polled = self.check()?.poll_read(cx, buf);
        if buf.filled().len() > before {
            self.received.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?.poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?.poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        self.check()?.poll_shutdown(cx)
    }
}

impl Stream for MemoryStream {
    fn reset(&mut self, code: u32) {
        if self.io.take().is_some() {
            self.peer.raise(code);
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<u32> {
        self.own.stopped.register(cx.waker());
        match self.own.raised() {
            Some(code) => Poll::Ready(code),
            None => Poll::Pending,
        }
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(reset::CANCELLED);
        }
    }
}
