//! Peers of the same LAN, found by multicast DNS as libp2p does it (RFC 6762; discovery/mdns of libp2p's specifications).
//!
//! What is heard is a hint of where somebody may be, from anybody on the LAN, and proves nothing: whoever is dialled there proves its
//! key, and then its federation, as everywhere else. So what a liar gains is bounded: [`found`] says how much is remembered and how
//! often anybody is dialled, and [`Lan`] how much of it is listened to. Nothing is told on the LAN but the peer id and the addresses
//! there: neither the federation nor what this node is.

use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::mdns;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{
    ConnectionDenied, ConnectionError, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::paths::Path;
use super::{Host, node_id};

mod found;

pub(super) use found::Found;

/// So many answers that differ are listened to: more than the machines of any home or office give. The behaviour of libp2p keeps each for as long
/// as its sender wants, so one who sends more must not be heard.
const ANSWERS_MAX: usize = 256;

/// Whether a host looks for others on its LAN, and lets itself be found there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanDiscovery {
    /// By multicast DNS.
    On,
    /// No.
    Off,
}

type Mdns = mdns::tokio::Behaviour;

/// The behaviour of libp2p, within bounds, and without telling others what it has heard: whom to dial where is the host's matter.
pub(super) struct Lan(Option<Mdns>);

impl Lan {
    pub(super) fn new(me: PeerId) -> std::io::Result<Self> {
        Ok(Self(Some(Mdns::new(mdns::Config::default(), me)?)))
    }
}

impl NetworkBehaviour for Lan {
    type ConnectionHandler = <Mdns as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = mdns::Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(libp2p::swarm::dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(libp2p::swarm::dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let Some(mdns) = &mut self.0 {
            mdns.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            let Some(mdns) = &mut self.0 else { return Poll::Pending };
            match mdns.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    if mdns.discovered_nodes().len() > ANSWERS_MAX {
                        warn!(
                            "somebody on this LAN answers for more than {ANSWERS_MAX} addresses: others are not \
                             looked for there any more until this node starts anew"
                        );
                        // Its tasks end with the next answer.
                        self.0 = None;
                    }
                    return Poll::Ready(ToSwarm::GenerateEvent(event));
                }
                // What it would have the other behaviours know.
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Host {
    /// Looks for others on the LAN from now on, and lets itself be found. To be called before it runs.
    pub(super) fn discover(&mut self) {
        match Lan::new(*self.swarm.local_peer_id()) {
            Ok(lan) => self.swarm.behaviour_mut().lan = Some(lan).into(),
            Err(error) => warn!(%error, "others are not looked for on the LAN"),
        }
    }

    pub(super) fn on_lan(&mut self, event: mdns::Event) {
        let now = Instant::now();
        let mut news = false;
        match event {
            mdns::Event::Discovered(heard) => {
                for (peer, address) in heard.into_iter().filter(|(peer, _)| node_id(peer).is_some()) {
                    news |= self.lan.heard(now, peer, &address);
                }
            }
            mdns::Event::Expired(gone) => {
                for (peer, address) in gone {
                    news |= self.lan.forget(&peer, &address);
                }
            }
        }
        if news {
            debug!(peers = self.lan.len(), "who is on the LAN has changed");
            let found = self.lan.all().filter_map(|(peer, addresses)| Some((node_id(peer)?, addresses.to_vec())));
            let found = found.collect();
            self.status.send_modify(|status| status.on_lan = found);
        }
    }

    /// Dials who was found on the LAN and is not connected, or only by way of an entry. A worker dials its home alone, and that is its
    /// seeker's to choose.
    pub(super) fn dial_on_lan(&mut self) {
        if self.registry.is_none() {
            return;
        }
        let ways = &self.ways;
        let directly = |peer: &PeerId| ways.best(peer).is_some_and(|way| way.path != Path::Entry);
        let Some((peer, addresses)) = self.lan.due(Instant::now(), directly) else { return };
        let options = DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::NotDialing).build();
        if let Err(error) = self.swarm.dial(options) {
            debug!(%peer, %error, "one that was found on the LAN is not dialled");
        }
    }

    /// Whether this connection was dialled where the peer was found on the LAN.
    pub(super) fn came_by_lan(&self, peer: &PeerId, endpoint: &ConnectedPoint) -> bool {
        matches!(endpoint, ConnectedPoint::Dialer { address, .. } if self.lan.is_at(peer, address))
    }

    /// The last connection to a peer has gone.
    pub(super) fn lost_on_lan(&mut self, peer: &PeerId, cause: Option<&ConnectionError>) {
        match cause {
            // Nobody needed it. Whoever does dials it.
            Some(ConnectionError::KeepAliveTimeout) => self.lan.let_go(Instant::now(), peer),
            _ => self.lan.lost(Instant::now(), peer),
        }
    }
}
