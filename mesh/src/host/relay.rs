//! Streams between coordinators: what one may ask of another as an entry asks it down its tunnel.
//!
//! ```text
//! client ─▶ coordinator A                        coordinator B                    worker at home at B
//!             RelayLink::open ─ relay/1, libp2p ─▶ RelayStreams::next
//!                              ── OPEN(relay) ───▶ passes on what follows ── tunnel/1 ──▶
//!                              ── OPEN(http) ────▶ its own services
//! ```
//!
//! Here is only how the streams come about. What B lets be asked of it, and of whom, is up to whoever takes them from
//! [`RelayStreams`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use hedgerow_proto::id::NodeId;
use hedgerow_tunnel::link::{BoxFuture, BoxStream, Link, LinkClosed};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::watch;

use super::handle::Caller;
use super::link::{HomeError, PeerStream, RTT_ASSUMED, Shared, open_taken};
use super::{AskError, HostHandle, HostStatus, node_id, parsed, peer_id};
use crate::replica::Replica;

/// Another coordinator, as somebody who serves streams. It does not keep the host running, nor the connection: one that is not
/// there is dialled for the stream that needs it.
pub struct RelayLink {
    node: NodeId,
    peer: PeerId,
    streams: libp2p_stream::Control,
    protocol: StreamProtocol,
    status: watch::Receiver<HostStatus>,
    caller: Caller,
    replica: Replica,
    shared: Arc<Shared>,
}

impl RelayLink {
    /// To this coordinator, whose addresses the replica knows. `None` where its id is no key.
    pub fn new(handle: &HostHandle, replica: &Replica, node: NodeId) -> Option<Self> {
        Some(Self {
            node,
            peer: peer_id(node)?,
            streams: handle.streams.clone(),
            protocol: handle.relay_protocol(),
            status: handle.status(),
            caller: handle.caller(),
            replica: replica.clone(),
            shared: Arc::new(Shared::new(handle.seed)),
        })
    }

    fn addresses(&self) -> Vec<Multiaddr> {
        self.replica.read(|registry| {
            let node = registry.node(&self.node).and_then(|record| record.node());
            node.filter(|node| node.roles.coordinates()).map(|node| parsed(&node.multiaddrs)).unwrap_or_default()
        })
    }

    async fn open_stream(&self) -> Result<BoxStream, LinkClosed> {
        let failed = |reason: String| LinkClosed { code: None, reason };
        // With more coordinators than a node has neighbours it is connected to some of them.
        if !self.status.borrow().peers.contains(&self.peer) {
            let connected = self.caller.connect(self.node, self.addresses()).await;
            connected.map_err(|error| failed(error.to_string()))?;
        }
        let opened = open_taken(&self.streams, self.peer, &self.protocol, &self.shared).await;
        opened.map(|stream| Box::new(stream) as BoxStream)
    }
}

impl Link for RelayLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            tokio::select! {
                biased;
                gone = self.closed() => Err(gone),
                opened = self.open_stream() => opened,
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        // What the other one wants of this node comes by its own link.
        Box::pin(async move { Err(self.closed().await) })
    }

    fn close(&self, code: u32, reason: &str) {
        self.shared.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(async move {
            let mut status = self.status.clone();
            let host_stopped = async { while status.changed().await.is_ok() {} };
            tokio::select! {
                closed = self.shared.closed() => closed,
                () = host_stopped => LinkClosed { code: None, reason: AskError::Stopped.to_string() },
            }
        })
    }

    fn is_closed(&self) -> bool {
        // The status ends with the host.
        self.shared.is_closed() || self.status.has_changed().is_err()
    }

    fn peer(&self) -> NodeId {
        self.node
    }

    fn remote(&self) -> Option<SocketAddr> {
        None
    }

    fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    fn rtt(&self) -> Duration {
        RTT_ASSUMED
    }
}

/// The streams that others open to this coordinator.
pub struct RelayStreams {
    arriving: libp2p_stream::IncomingStreams,
}

impl RelayStreams {
    /// Listens for them; once for each host.
    pub fn listen(handle: &HostHandle) -> Result<Self, HomeError> {
        let arriving = handle.streams.clone().accept(handle.relay_protocol()).map_err(|_| HomeError::InUse)?;
        Ok(Self { arriving })
    }

    /// The next one, and who has opened it: a node of this federation, which need not be a coordinator. `None` when the host has
    /// stopped. One that is not taken at once is lost and opened again, so nothing should be waited for in between. Whoever opened it
    /// waits until it is read or written here.
    pub async fn next(&mut self) -> Option<(NodeId, BoxStream)> {
        loop {
            let (peer, stream) = self.arriving.next().await?;
            // A key of another kind is none of ours.
            let Some(node) = node_id(&peer) else { continue };
            return Some((node, Box::new(PeerStream::taken(stream, &Arc::default()))));
        }
    }
}
