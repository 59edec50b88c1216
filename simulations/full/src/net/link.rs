//! A tunnel's connection over the simulated network: what QUIC is in the product.
//!
//! ```text
//!  node ── dials, as over any NAT ──▶ entry      the first connection: both say who they are; the last word goes over it
//!       ◀── streams, each with its own order ──  they need no dialling, and do not wait for each other
//! ```
//!
//! As over QUIC a process that is killed says nothing; its peers find out when nothing has come for a while, or at once from a new
//! process with the same key at the same address (RFC 9000 §10.3, stateless reset). Keys are said and not proven.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hedgerow_proto::frame::{close, reset};
use hedgerow_proto::id::NodeId;
use hedgerow_tunnel::link::{BoxFuture, BoxStream, Link, LinkClosed, Stream as TunnelStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::connection::{Broken, Side};
use super::{Event, Network, State, Stream};

/// A link over which nothing has come for so long is no more (the product's idle time-out of QUIC).
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// One end of a link.
struct LinkEnd {
    node: u32,
    closed: Option<LinkClosed>,
    incoming: VecDeque<u64>,
    waiting: Vec<Waker>,
    received: u64,
    heard: Duration,
}

/// A link.
pub(super) struct Association {
    dialler: LinkEnd,
    listener: LinkEnd,
    streams: BTreeSet<u64>,
    /// Where the one that was dialled takes links in.
    port: u16,
}

impl Association {
    fn end(&mut self, side: Side) -> &mut LinkEnd {
        match side {
            Side::Dialler => &mut self.dialler,
            Side::Listener => &mut self.listener,
        }
    }
}

/// One end of a link, as the tunnel sees it.
pub struct SimLink {
    network: Network,
    first: Stream,
    peer: NodeId,
    remote: SocketAddr,
    rtt: Duration,
}

/// Dials a link: `me` to whoever answers there.
pub async fn dial_link(network: &Network, from: u32, me: NodeId, to: SocketAddr) -> io::Result<SimLink> {
    let mut first = network.dial(from, to).await?;
    first.write_all(&me.0).await?;
    let mut peer = [0; 32];
    first.read_exact(&mut peer).await?;
    Ok(SimLink::new(network, first, NodeId(peer), to))
}

/// Takes in a link that has been dialled.
pub async fn accept_link(network: &Network, mut first: Stream, me: NodeId, from: SocketAddr) -> io::Result<SimLink> {
    let mut peer = [0; 32];
    first.read_exact(&mut peer).await?;
    let link = SimLink::new(network, first, NodeId(peer), from);
    // Only now: streams may come as soon as the other side has read this.
    network.with(|state, now| {
        let (id, side) = link.first.place();
        // It fits: nothing has been written yet.
        state.write(now, id, side, &me.0, Waker::noop())
    });
    Ok(link)
}

impl SimLink {
    fn new(network: &Network, first: Stream, peer: NodeId, remote: SocketAddr) -> Self {
        let (id, side) = first.place();
        let rtt = network.with(|state, now| state.associate(now, id, side, remote));
        Self { network: network.clone(), first, peer, remote, rtt }
    }

    fn closed_now(&self, cx: Option<&Context<'_>>) -> Option<LinkClosed> {
        let (id, side) = self.first.place();
        self.network.with(|state, _| {
            let gone = || LinkClosed { code: None, reason: "the link is gone".into() };
            let Some(association) = state.associations.get_mut(&id) else { return Some(gone()) };
            let end = association.end(side);
            if end.closed.is_none()
                && let Some(cx) = cx
            {
                wait(&mut end.waiting, cx);
            }
            end.closed.clone()
        })
    }

    fn stream(&self, id: u64) -> BoxStream {
        let (_, side) = self.first.place();
        Box::new(SimStream { stream: Some(Stream::new(self.network.clone(), id, side)), network: self.network.clone() })
    }
}

/// Several tasks wait for one link, each once.
fn wait(waiting: &mut Vec<Waker>, cx: &Context<'_>) {
    if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
        waiting.push(cx.waker().clone());
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.close(close::GOING, "dropped");
        let (id, side) = self.first.place();
        self.network.with(|state, _| state.forget_link(id, side));
    }
}

impl Link for SimLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            if let Some(closed) = self.closed_now(None) {
                return Err(closed);
            }
            let (id, side) = self.first.place();
            Ok(self.stream(self.network.with(|state, now| state.open_on(now, id, side))))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let (id, side) = self.first.place();
            let next = poll_fn(|cx| {
                if let Some(closed) = self.closed_now(Some(cx)) {
                    return Poll::Ready(Err(closed));
                }
                let pop = |state: &mut State, _| state.associations.get_mut(&id)?.end(side).incoming.pop_front();
                self.network.with(pop).map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
            });
            Ok(self.stream(next.await?))
        })
    }

    fn close(&self, code: u32, reason: &str) {
        let (id, side) = self.first.place();
        self.network.with(|state, now| {
            let open = state.associations.get_mut(&id).is_some_and(|link| link.end(side).closed.is_none());
            if open {
                state.farewell(now, id, side, code, reason.to_owned());
                state.link_ends(id, side, Some(code), reason.to_owned());
            }
        });
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(poll_fn(|cx| self.closed_now(Some(cx)).map_or(Poll::Pending, Poll::Ready)))
    }

    fn is_closed(&self) -> bool {
        self.closed_now(None).is_some()
    }

    fn peer(&self) -> NodeId {
        self.peer
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(self.remote)
    }

    fn received(&self) -> u64 {
        let (id, side) = self.first.place();
        let received = |state: &mut State, _| state.associations.get_mut(&id).map(|link| link.end(side).received);
        self.network.with(received).unwrap_or_default()
    }

    fn rtt(&self) -> Duration {
        self.rtt
    }
}

/// A stream of a link.
struct SimStream {
    /// None once it has been reset.
    stream: Option<Stream>,
    network: Network,
}

impl SimStream {
    fn io(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for SimStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(self.io()?, cx, into)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(self.io()?, cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(self.io()?, cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(self.io()?, cx)
    }
}

impl TunnelStream for SimStream {
    fn reset(&mut self, code: u32) {
        if let Some(stream) = self.stream.take() {
            let (id, side) = stream.place();
            self.network.with(|state, now| state.reset(now, id, side, code));
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<u32> {
        let Some(stream) = &self.stream else { return Poll::Ready(reset::CANCELLED) };
        let (id, side) = stream.place();
        match self.network.with(|state, _| state.stopped(id, side, cx.waker())) {
            None => Poll::Pending,
            Some(Broken::Reset(code)) => Poll::Ready(code),
            Some(Broken::Kind(_)) => Poll::Ready(reset::CANCELLED),
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            let (id, side) = stream.place();
            self.network.with(|state, now| state.let_go(now, id, side, reset::CANCELLED));
        }
    }
}

impl State {
    /// One end of a link is there. Returns its round-trip time.
    fn associate(&mut self, now: Duration, id: u64, side: Side, remote: SocketAddr) -> Duration {
        let Some(connection) = self.connections.get_mut(&id) else { return Duration::ZERO };
        connection.set_link(id);
        let (dialler, listener) = (connection.node(Side::Dialler), connection.node(Side::Listener));
        let end = |node| LinkEnd {
            node,
            closed: None,
            incoming: VecDeque::new(),
            waiting: Vec::new(),
            received: 0,
            heard: now,
        };
        let new = !self.associations.contains_key(&id);
        let association = self.associations.entry(id).or_insert_with(|| Association {
            dialler: end(dialler),
            listener: end(listener),
            streams: BTreeSet::new(),
            port: 0,
        });
        if side == Side::Dialler {
            association.port = remote.port();
        }
        if new {
            self.schedule(now + IDLE_LOOK, Event::Idle(id));
        }
        2 * self.links.latency(dialler, listener)
    }

    fn open_on(&mut self, now: Duration, link: u64, side: Side) -> u64 {
        let Some(association) = self.associations.get_mut(&link) else { return 0 };
        let (from, to) = (association.end(side).node, association.end(side.other()).node);
        let id = self.open_stream(now, link, (from, side), to);
        if let Some(association) = self.associations.get_mut(&link) {
            association.streams.insert(id);
        }
        id
    }

    pub(super) fn stream_arrives(&mut self, now: Duration, link: u64, side: Side, stream: u64) {
        self.link_hears(now, link, side);
        let Some(association) = self.associations.get_mut(&link) else { return };
        let end = association.end(side);
        if end.closed.is_some() {
            return self.answer_for_link(link, side);
        }
        end.incoming.push_back(stream);
        let waiting = std::mem::take(&mut end.waiting);
        self.woken.extend(waiting);
    }

    pub(super) fn link_hears(&mut self, now: Duration, link: u64, side: Side) {
        if let Some(association) = self.associations.get_mut(&link) {
            let end = association.end(side);
            (end.received, end.heard) = (end.received + 1, now);
        }
    }

    /// Something has arrived that this end does not know any more. If it is the link, a process that listens there has the same key,
    /// and resets it; where there is none, nobody answers. If it is a stream alone, what still comes for it is of no use to anybody.
    pub(super) fn answer_for_link(&mut self, link: u64, side: Side) {
        let first = self.connections.get_mut(&link);
        let unknown = first.is_none_or(|first| first.is_dead_at(side));
        let Some(association) = self.associations.get_mut(&link) else { return };
        let port = association.port;
        let end = association.end(side);
        let (node, unknown) = (end.node, unknown || end.closed.is_some());
        if unknown && side == Side::Listener && self.listeners.contains_key(&(node, port)) {
            self.link_ends(link, side.other(), None, "reset by a later process with the same key".into());
        }
    }

    /// One end of a link is no more, and so are its streams there.
    pub(super) fn link_ends(&mut self, link: u64, side: Side, code: Option<u32>, reason: String) {
        let Some(association) = self.associations.get_mut(&link) else { return };
        let end = association.end(side);
        if end.closed.is_some() {
            return;
        }
        end.closed = Some(LinkClosed { code, reason });
        end.incoming.clear();
        let waiting = std::mem::take(&mut end.waiting);
        self.woken.extend(waiting);
        let streams: Vec<u64> = association.streams.iter().copied().collect();
        for stream in streams {
            self.break_off(stream, side, Broken::Kind(io::ErrorKind::NotConnected));
        }
    }

    pub(super) fn idle(&mut self, now: Duration, link: u64) {
        let Some(association) = self.associations.get_mut(&link) else { return };
        let mut open = false;
        let mut silent = Vec::new();
        for side in [Side::Dialler, Side::Listener] {
            let end = association.end(side);
            if end.closed.is_none() {
                open = true;
                if now >= end.heard + IDLE_TIMEOUT {
                    silent.push(side);
                }
            }
        }
        association.streams.retain(|stream| self.connections.contains_key(stream));
        for side in silent {
            self.link_ends(link, side, None, "timed out".into());
        }
        if open {
            self.schedule(now + IDLE_LOOK, Event::Idle(link));
        }
    }

    fn forget_link(&mut self, link: u64, side: Side) {
        let Some(association) = self.associations.get_mut(&link) else { return };
        if association.end(side.other()).closed.is_some() && association.end(side).closed.is_some() {
            self.associations.remove(&link);
        }
    }

    pub(super) fn silence_links(&mut self, node: u32) {
        let of_it = |(id, link): (&u64, &Association)| {
            let (dialler, listener) = (link.dialler.node == node, link.listener.node == node);
            [dialler.then_some((*id, Side::Dialler)), listener.then_some((*id, Side::Listener))]
        };
        let ends: Vec<_> = self.associations.iter().flat_map(of_it).flatten().collect();
        for (link, side) in ends {
            self.link_ends(link, side, None, "this process has been killed".into());
            let streams = self.associations.get(&link).map(|association| association.streams.clone());
            for stream in streams.into_iter().flatten().chain([link]) {
                self.vanish(stream, side);
            }
        }
    }
}
