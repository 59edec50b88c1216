//! A tunnel over libp2p: the connection between a worker and its home, as a [`Link`].
//!
//! ```text
//! worker                                               home
//!   HostHandle::connect ── libp2p, both keys proven ──▶
//!   dial_home ── a stream of the protocol home/1 ─────▶ Homes::next   the control stream: taken, Hello, Join, Welcome, pings
//!             ◀───────── streams of tunnel/1 ─────────                exchanges, each as down any other tunnel
//! ```
//!
//! The worker opens the first stream, since it is the one that wants something; for the tunnel above it is the home that
//! opens streams, and that first one is what its first [`Link::open`] gives. Streams of libp2p carry no codes with their
//! resets: a reset here is always [`reset::CANCELLED`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::StreamExt;
use hedgerow_proto::frame::{close, reset};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::liveness::PING_INTERVAL_HOME;
use hedgerow_tunnel::link::{BoxFuture, BoxStream, Link, LinkClosed, Stream};
use libp2p::{PeerId, StreamProtocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::sleep;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tracing::{Instrument, debug};

use super::{HostHandle, node_id, peer_id};

/// Streams of a home that may wait to be served.
const BACKLOG: usize = 64;
/// The word that a stream has been taken: the first byte on it, from the end that it was opened to.
const TAKEN: u8 = 1;
/// How often a stream is opened that is not taken. More than a few come only of a peer that takes none.
const OPEN_TRIES: u32 = 8;
/// What one step of the pause before the second try is, and twice as long before each further one. Those that were lost together, of
/// one host or of many, take different numbers of steps.
const OPEN_AGAIN: Duration = Duration::from_millis(1);
const OPEN_AGAIN_STEPS: u64 = 8;

/// Why a home is not reached.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Its id is no key.
    #[error("{0:?} is not a key")]
    NotAKey(NodeId),
    /// Another dial of this host listens for homes already: a fault of this program.
    #[error("this host has a home already")]
    InUse,
    /// No connection came up, or no stream over it.
    #[error("the coordinator is not reached: {0}")]
    NotReached(String),
}

/// A connection of libp2p, as a tunnel sees it.
pub struct PeerLink {
    peer: NodeId,
    peer_id: PeerId,
    streams: libp2p_stream::Control,
    protocol: StreamProtocol,
    first: Mutex<Option<PeerStream>>,
    incoming: Mutex<mpsc::Receiver<libp2p::Stream>>,
    shared: Arc<Shared>,
}

/// What the streams of one link have in common.
pub(super) struct Shared {
    closed: watch::Sender<Option<LinkClosed>>,
    pub(super) received: AtomicU64,
    /// Streams that were not taken, counted from another number in each host.
    lost: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(0)
    }
}

/// Opens a stream, and is ready when the other end has taken it. libp2p-stream has room for one arriving stream of a protocol, and
/// drops those that come before that one has been taken, as some of a burst do. So whoever takes one says so with its first byte, and
/// whoever opens one tries again until it hears that. Nothing has been sent on those that were lost. Where the stream is taken at
/// once the word comes with the end of the negotiation, and costs no round trip.
pub(super) async fn open_taken(
    streams: &libp2p_stream::Control,
    peer: PeerId,
    protocol: &StreamProtocol,
    shared: &Arc<Shared>,
) -> Result<PeerStream, LinkClosed> {
    let mut tries = 1;
    loop {
        let opened = streams.clone().open_stream(peer, protocol.clone()).await;
        let opened = opened.map_err(|error| LinkClosed { code: None, reason: error.to_string() })?;
        let mut stream = PeerStream::new(opened, shared);
        match stream.read_u8().await {
            Ok(_) => return Ok(stream),
            Err(error) if tries == OPEN_TRIES => return Err(LinkClosed { code: None, reason: error.to_string() }),
            Err(error) => debug!(%peer, %error, "a stream was not taken, and is opened again"),
        }
        sleep(shared.pause() * (1 << (tries - 1))).await;
        tries += 1;
    }
}

impl Shared {
    /// `seed` is for the pauses.
    pub(super) fn new(seed: u64) -> Self {
        Self { closed: watch::Sender::new(None), received: AtomicU64::new(0), lost: AtomicU64::new(seed) }
    }

    /// How long to wait after a stream was lost.
    fn pause(&self) -> Duration {
        // Multiplied by a large odd number, so that neighbouring numbers come out far apart (Knuth, TAOCP 3, §6.4).
        let spread = self.lost.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        OPEN_AGAIN * (spread % OPEN_AGAIN_STEPS + 1) as u32
    }

    pub(super) fn close(&self, code: u32, reason: &str) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| LinkClosed { code: Some(code), reason: reason.to_owned() });
            first
        });
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    pub(super) async fn closed(&self) -> LinkClosed {
        let mut closed = self.closed.subscribe();
        // The sender is ours: it cannot have gone.
        let _ = closed.wait_for(Option::is_some).await;
        self.gone()
    }

    fn gone(&self) -> LinkClosed {
        let reason = self.closed.borrow().clone();
        reason.unwrap_or_else(|| LinkClosed { code: None, reason: "the other end is gone".into() })
    }
}

impl PeerLink {
    fn new(
        (peer, peer_id): (NodeId, PeerId),
        handle: &HostHandle,
        first: PeerStream,
        incoming: mpsc::Receiver<libp2p::Stream>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            peer,
            peer_id,
            streams: handle.streams.clone(),
            protocol: handle.tunnel_protocol(),
            first: Mutex::new(Some(first)),
            incoming: Mutex::new(incoming),
            shared,
        }
    }
}

impl Drop for PeerLink {
    fn drop(&mut self) {
        self.close(close::GOING, "dropped");
    }
}

impl Link for PeerLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            if let Some(first) = self.first.lock().await.take() {
                return Ok(Box::new(first) as BoxStream);
            }
            tokio::select! {
                opened = open_taken(&self.streams, self.peer_id, &self.protocol, &self.shared) => {
                    opened.map(|stream| Box::new(stream) as BoxStream)
                }
                gone = self.closed() => Err(gone),
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            if let Some(first) = self.first.lock().await.take() {
                return Ok(Box::new(first) as BoxStream);
            }
            let mut incoming = self.incoming.lock().await;
            tokio::select! {
                stream = incoming.recv() => match stream {
                    Some(stream) => Ok(Box::new(PeerStream::taken(stream, &self.shared)) as BoxStream),
                    None => Err(self.shared.gone()),
                },
                gone = self.closed() => Err(gone),
            }
        })
    }

    fn close(&self, code: u32, reason: &str) {
        self.shared.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(self.shared.closed())
    }

    fn peer(&self) -> NodeId {
        self.peer
    }

    fn remote(&self) -> Option<SocketAddr> {
        None
    }

    fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    fn rtt(&self) -> Duration {
        // Not known here. What it is for (patience with a peer that is far away) has room for a path across the world.
        RTT_ASSUMED
    }

    fn ping_interval(&self, _: u16) -> Duration {
        PING_INTERVAL_HOME
    }
}

/// A round trip round the world, about.
pub(super) const RTT_ASSUMED: Duration = Duration::from_millis(300);

/// A stream of libp2p.
pub(super) struct PeerStream {
    /// None once it has been given up: then its drop has reset it.
    io: Option<Compat<libp2p::Stream>>,
    shared: Arc<Shared>,
    word: Word,
}

/// Whether the other end has been told that its stream was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Due,
    Written,
    /// Or there is nothing to be told.
    Said,
}

impl PeerStream {
    pub(super) fn new(stream: libp2p::Stream, shared: &Arc<Shared>) -> Self {
        Self { io: Some(stream.compat()), shared: shared.clone(), word: Word::Said }
    }

    /// One that the other end has opened with [`open_taken`]. It is told with the first use.
    pub(super) fn taken(stream: libp2p::Stream, shared: &Arc<Shared>) -> Self {
        Self { word: Word::Due, ..Self::new(stream, shared) }
    }

    fn poll_word(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.word == Word::Due {
            if ready!(self.io()?.poll_write(cx, &[TAKEN]))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.word = Word::Written;
        }
        if self.word == Word::Written {
            ready!(self.io()?.poll_flush(cx))?;
            self.word = Word::Said;
        }
        Poll::Ready(Ok(()))
    }

    fn io(&mut self) -> io::Result<Pin<&mut Compat<libp2p::Stream>>> {
        if let Some(closed) = self.shared.closed.borrow().clone() {
            return Err(closed.into());
        }
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_word(cx))?;
        let before = buf.filled().len();
        let polled = self.io()?.poll_read(cx, buf);
        if buf.filled().len() > before {
            self.shared.received.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_word(cx))?;
        self.io()?.poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_word(cx))?;
        self.io()?.poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_word(cx))?;
        self.io()?.poll_shutdown(cx)
    }
}

impl Stream for PeerStream {
    fn reset(&mut self, _: u32) {
        self.io = None;
    }

    fn poll_stopped(&mut self, _: &mut Context<'_>) -> Poll<u32> {
        // Libp2p does not tell; a write does, and so does a read.
        match self.io {
            Some(_) => Poll::Pending,
            None => Poll::Ready(reset::CANCELLED),
        }
    }
}

/// The workers that come to a coordinator.
pub struct Homes {
    handle: HostHandle,
    arriving: libp2p_stream::IncomingStreams,
}

impl Homes {
    /// Listens for workers; once for each host.
    pub fn listen(handle: &HostHandle) -> Result<Self, HomeError> {
        let arriving = handle.streams.clone().accept(handle.home_protocol()).map_err(|_| HomeError::InUse)?;
        Ok(Self { handle: handle.clone(), arriving })
    }

    /// The next worker that wants this node as its home. `None` when the host has stopped.
    pub async fn next(&mut self) -> Option<PeerLink> {
        loop {
            let (peer_id, stream) = self.arriving.next().await?;
            // A key of another kind is none of ours.
            let Some(peer) = node_id(&peer_id) else { continue };
            let shared = Arc::new(Shared::new(self.handle.seed));
            let first = PeerStream::taken(stream, &shared);
            return Some(PeerLink::new((peer, peer_id), &self.handle, first, mpsc::channel(1).1, shared));
        }
    }
}

/// A worker's host, which has one home at a time.
pub struct HomeDialer {
    handle: HostHandle,
    current: watch::Sender<Option<(PeerId, mpsc::Sender<libp2p::Stream>)>>,
}

impl HomeDialer {
    /// Once for each host.
    pub fn new(handle: &HostHandle) -> Result<Self, HomeError> {
        let mut incoming = handle.streams.clone().accept(handle.tunnel_protocol()).map_err(|_| HomeError::InUse)?;
        let current: watch::Sender<Option<(PeerId, mpsc::Sender<libp2p::Stream>)>> = watch::Sender::new(None);
        let to = current.subscribe();
        let taking = async move {
            while let Some((peer, stream)) = incoming.next().await {
                let home = to.borrow().as_ref().filter(|(home, _)| *home == peer).map(|(_, sender)| sender.clone());
                // Nobody else has anything to send down here; and a home that opens more than can wait is refused.
                match home {
                    Some(sender) if sender.try_send(stream).is_ok() => {}
                    _ => debug!(%peer, "a stream that nobody waits for is reset"),
                }
            }
        };
        tokio::spawn(taking.in_current_span());
        Ok(Self { handle: handle.clone(), current })
    }

    /// Opens the control stream to a coordinator that is connected, or is being connected; ready when that one has said its first
    /// word on it. The link's first [`Link::accept`] is that stream.
    pub async fn dial(&self, home: NodeId) -> Result<PeerLink, HomeError> {
        let peer = peer_id(home).ok_or(HomeError::NotAKey(home))?;
        let (sender, incoming) = mpsc::channel(BACKLOG);
        self.current.send_replace(Some((peer, sender)));
        let shared = Arc::new(Shared::new(self.handle.seed));
        let opened = open_taken(&self.handle.streams, peer, &self.handle.home_protocol(), &shared).await;
        let first = opened.map_err(|closed| HomeError::NotReached(closed.reason))?;
        Ok(PeerLink::new((home, peer), &self.handle, first, incoming, shared))
    }
}
