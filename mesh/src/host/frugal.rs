//! Kademlia without the connections that it opens for itself.
//!
//! The stock behaviour walks over the network by itself while its tables are small (libp2p-kad 0.49 lets nobody turn that off), and a
//! walk dials whomever it hears of: forty coordinators were connected to each other all, though each sought eight. Here its tables
//! are filled from the registry, and it dials only to ask for providers of a service, and to tell of them.

use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, QueryInfo};
use libp2p::swarm::behaviour::DialFailure;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

type Kademlia = kad::Behaviour<MemoryStore>;

/// Kademlia that dials nobody for the upkeep of its tables.
pub(super) struct Frugal(pub(super) Kademlia);

impl Frugal {
    /// Whether anything is under way that this node wants to know, or to have known.
    fn is_asking(&self) -> bool {
        self.0.iter_queries().any(|query| !matches!(query.info(), QueryInfo::Bootstrap { .. }))
    }
}

impl NetworkBehaviour for Frugal {
    type ConnectionHandler = <Kademlia as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = <Kademlia as NetworkBehaviour>::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.0.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.0.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.0.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match self.0.poll(cx) {
                Poll::Ready(ToSwarm::Dial { opts }) if !self.is_asking() => {
                    // It waits for no answer of somebody who was not dialled.
                    let (peer_id, connection_id) = (opts.get_peer_id(), opts.connection_id());
                    let failure = DialFailure { peer_id, error: &DialError::Aborted, connection_id };
                    self.0.on_swarm_event(FromSwarm::DialFailure(failure));
                }
                other => return other,
            }
        }
    }
}
