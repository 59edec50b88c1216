//! Who is connected, and who is told of it: the swarm's events.

use hedgerow_proto::peering::Part;
use libp2p::PeerId;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{identify, ping};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::behaviour::BehaviourEvent;
use super::dials::Failed;
use super::paths::Path;
use super::{Host, Multiaddr, Way, Why, node_id};

impl Host {
    pub(super) fn dial(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>) {
        // What it says of itself may mean nothing here.
        addresses.extend_from_slice(self.lan.addresses(&peer));
        self.dials.begin(Instant::now(), peer, addresses);
        self.dial_due();
    }

    /// Tries the next addresses of those whose former ones have failed, or have had their time.
    pub(super) fn dial_due(&mut self) {
        while let Some((peer, addresses)) = self.dials.due(Instant::now()) {
            // Another attempt at this peer is no reason to wait: it may be one at a worse address.
            let options = DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::Disconnected).build();
            let id = options.connection_id();
            self.dials.started(&peer, id);
            if let Err(error) = self.swarm.dial(options) {
                self.not_reached(peer, id, &error);
            }
        }
    }

    fn not_reached(&mut self, peer: PeerId, id: ConnectionId, error: &DialError) {
        if self.shortcut_failed(id, error) {
            return;
        }
        debug!(%peer, %error, "cannot be reached");
        // Another attempt has succeeded.
        if matches!(error, DialError::DialPeerConditionFalse(_)) {
            self.dials.connected(&peer);
            return;
        }
        // One that was overtaken says nothing of the one that succeeded.
        if self.dials.failed(Instant::now(), &peer, id) == Failed::GoesOn || self.swarm.is_connected(&peer) {
            return;
        }
        self.tell_connecting(peer, &Err(error.to_string()));
        if let Some(node) = node_id(&peer) {
            self.tell(|peering, _, now| peering.dial_failed(now, node));
        }
    }

    /// Tells whoever waits for a connection to this peer. Some may have gone.
    fn tell_connecting(&mut self, peer: PeerId, outcome: &Result<(), String>) {
        for waiting in self.connecting.remove(&peer).into_iter().flatten() {
            let _ = waiting.send(outcome.clone());
        }
    }

    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            // There is no port.
            SwarmEvent::NewListenAddr { address, .. } if Path::of(&address) == Path::Entry => {}
            SwarmEvent::NewListenAddr { address, listener_id } => {
                info!(%address, "listening for the mesh");
                self.binding.remove(&listener_id);
                self.status.send_modify(|status| {
                    status.listening.push(address);
                    status.binding = self.binding.len();
                });
                self.look_at_observers();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.status.send_modify(|status| status.listening.retain(|bound| *bound != address));
                self.look_at_observers();
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "a libp2p listener failed"),
            SwarmEvent::ListenerClosed { reason, .. } => warn!(?reason, "a libp2p listener has closed"),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } if node_id(&peer_id).is_none() => {
                debug!(peer = %peer_id, "not the key of a node");
                // Whatever was tried with it is over.
                let _ = self.shortcut_connected(connection_id);
                self.disconnect(peer_id);
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, num_established, .. }
                if self.registry.is_none() && num_established.get() > 1 =>
            {
                debug!(peer = %peer_id, "a worker's second connection to its home, which was overtaken");
                self.swarm.close_connection(connection_id);
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), connection_id, error } => {
                self.not_reached(peer, connection_id, &error);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: None, connection_id, error } => {
                self.shortcut_failed(connection_id, &error);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                debug!(peer = %peer_id, left = num_established, cause = cause.as_ref().map(tracing::field::display), "disconnected");
                self.ways.closed(&peer_id, connection_id);
                match num_established {
                    0 => {
                        self.lost_on_lan(&peer_id, cause.as_ref());
                        self.gone(peer_id);
                    }
                    _ => self.note_way(&peer_id),
                }
                self.look_for_shortcut(&peer_id);
            }
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            other => debug!(event = ?other, "libp2p"),
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.identified(peer_id, &info)
            }
            BehaviourEvent::Identify(identify::Event::Error { peer_id, error, .. }) => {
                debug!(peer = %peer_id, %error, "does not say who it is");
                self.disconnect(peer_id);
            }
            // One that does not speak the protocol is no dead one.
            BehaviourEvent::Ping(ping::Event { result: Err(ping::Failure::Unsupported), .. }) => {}
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(error) }) => {
                debug!(%peer, %error, "does not answer pings");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Peers(event) => self.on_request_response(event),
            BehaviourEvent::Appointments(event) => self.on_appointment(event),
            BehaviourEvent::Kad(event) => self.on_kademlia(event),
            BehaviourEvent::Lan(event) => self.on_lan(event),
            _ => {}
        }
    }

    pub(super) fn disconnect(&mut self, peer: PeerId) {
        // An error says that it has gone already.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let directly = self.dials.connected(&peer);
        let mut way = Way::of(endpoint, directly);
        if self.came_by_lan(&peer, endpoint) {
            way.why = Why::FoundOnLan;
        }
        way.why = self.shortcut_connected(id).unwrap_or(way.why);
        debug!(%peer, path = %way.path, why = ?way.why, "connected");
        self.ways.opened(Instant::now(), peer, id, way);
        self.note_way(&peer);
        self.look_for_shortcut(&peer);
    }

    /// Says how a peer is connected, once it has said that it is of this federation.
    fn note_way(&self, peer: &PeerId) {
        let (Some(node), Some(way)) = (node_id(peer), self.ways.best(peer)) else { return };
        self.status
            .send_if_modified(|status| status.peers.contains(peer) && status.ways.insert(node, way) != Some(way));
    }

    /// Lets go of connections to coordinators beside a better one. Workers are let alone: what runs between a worker and its home
    /// would break.
    pub(super) fn close_surplus(&mut self) {
        let surplus = self.ways.surplus(Instant::now(), self.swarm.local_peer_id());
        for (peer, id) in surplus {
            if node_id(&peer).is_some_and(|node| self.is_neighbour(&node)) {
                self.swarm.close_connection(id);
            }
        }
    }

    /// A peer has said who it is.
    fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        let ours = self.names.are_spoken_by(info);
        let Some(node) = node_id(&peer).filter(|_| ours) else {
            debug!(%peer, said = info.protocol_version, "not of this federation");
            self.lan.is_a_stranger(Instant::now(), &peer);
            self.disconnect(peer);
            return;
        };
        self.lan.met(&peer);
        self.status.send_if_modified(|status| status.peers.insert(peer));
        self.note_way(&peer);
        self.tell_connecting(peer, &Ok(()));
        let part = match info.protocols.contains(&self.names.peer()) {
            true => Part::Coordinator,
            false => Part::Worker,
        };
        let told = self.tell(|peering, replica, now| peering.connected(now, replica, node, part));
        if told.is_some() && part == Part::Coordinator {
            let new = self.status.send_if_modified(|status| status.coordinators.insert(node));
            if new {
                debug!(node = %node.short(), "a coordinator is connected");
            }
            self.speaks(peer, info.protocols.contains(&self.names.punch()));
            self.look_for_shortcut(&peer);
        }
    }

    fn gone(&mut self, peer: PeerId) {
        self.tell_connecting(peer, &Err("the connection was closed".into()));
        let Some(node) = node_id(&peer) else { return };
        self.tell(|peering, replica, now| peering.disconnected(now, replica, node));
        self.status.send_if_modified(|status| {
            let known = status.peers.remove(&peer);
            status.ways.remove(&node);
            let coordinator = status.coordinators.remove(&node);
            if coordinator {
                debug!(node = %node.short(), "a coordinator is disconnected");
            }
            known || coordinator
        });
    }
}
