//! Better ways to coordinators that are connected only by way of an entry: what carries out [`hedgerow_proto::shortcuts`].
//!
//! ```text
//!   Look(entry) ── the swarm dials the entry's UDP port ──▶ which refuses it, and says from where it came (hedgerow_tunnel's observe)
//!   Ask, Answer ── the protocol punch/1, over the connection that there is
//!   Punch       ── QUIC from the socket that listens, both at once: one as the client, the other as the server (libp2p's override_role)
//! ```
//!
//! The entry must see the very socket that will punch, so it is libp2p that asks it, and no other socket would do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use hedgerow_proto::appointment::{Answer, Appointment, Unable, seen};
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::Record;
use hedgerow_proto::shortcuts::{Appoints, Directly, Event, ReplyId, Shortcuts, Side};
use hedgerow_proto::wire::DecodeError;
use libp2p::PeerId;
use libp2p::core::transport::TransportError;
use libp2p::request_response::{self, Message, OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tracing::{debug, trace};

use super::paths::Path;
use super::{Host, Multiaddr, Protocol, Registry, Why, node_id, parsed, peer_id};

/// What an attempt of these is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attempt {
    Look(SocketAddr),
    Dial(NodeId),
    Punch(NodeId),
}

/// The better ways that this host seeks, and what is under way for them.
pub(super) struct Seeking {
    core: Shortcuts,
    attempts: HashMap<ConnectionId, Attempt>,
    asked: HashMap<OutboundRequestId, NodeId>,
    replies: HashMap<ReplyId, ResponseChannel<Answer>>,
    last_reply: u64,
    /// Peers that make appointments.
    appoint: HashSet<PeerId>,
    /// The entries that see datagrams, whether or not this host listens where they could see it.
    observers: Vec<SocketAddr>,
    /// The generation of the registry's nodes that was looked at.
    generation: Option<u64>,
}

impl Seeking {
    pub(super) fn new(now: Time, me: NodeId, seed: u64) -> Self {
        Self {
            core: Shortcuts::new(now, me, seed),
            attempts: HashMap::new(),
            asked: HashMap::new(),
            replies: HashMap::new(),
            last_reply: 0,
            appoint: HashSet::new(),
            observers: Vec::new(),
            generation: None,
        }
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.core.poll_timeout()
    }
}

/// A QUIC address.
fn quic(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

/// Where QUIC listens.
fn quic_listener(address: &Multiaddr) -> Option<IpAddr> {
    let ip = match address.iter().next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    (Path::of(address) == Path::DirectQuic).then_some(ip)
}

impl Host {
    /// Tells the core of something, and does what follows. Nothing at a worker's.
    pub(super) fn seek(&mut self, tell: impl FnOnce(&mut Shortcuts, Time)) {
        let Some(Registry { replica, seeking, .. }) = &mut self.registry else { return };
        tell(&mut seeking.core, replica.now());
        while let Some(event) = self.registry.as_mut().and_then(|registry| registry.seeking.core.poll_event()) {
            self.follow_shortcut(event);
        }
        self.note_outlooks();
    }

    fn follow_shortcut(&mut self, event: Event) {
        match event {
            Event::Dial(node, addresses) => {
                let options = |peer| DialOpts::peer_id(peer).addresses(parsed(&addresses));
                let options = peer_id(node).map(|peer| options(peer).condition(PeerCondition::Always).build());
                self.attempt(Attempt::Dial(node), options);
            }
            Event::Look(entry) => {
                let options = DialOpts::unknown_peer_id().address(quic(entry)).build();
                self.attempt(Attempt::Look(entry), Some(options));
            }
            Event::Punch { node, addresses, side } => {
                debug!(node = %node.short(), ?side, "punching a hole");
                let addresses: Vec<Multiaddr> = addresses.into_iter().map(quic).collect();
                let options = peer_id(node).map(|peer| {
                    let options = DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::Always);
                    match side {
                        Side::Dials => options.build(),
                        // Libp2p's words for: from the socket that listens, as the server of the handshake.
                        Side::Awaits => options.override_role().allocate_new_port().build(),
                    }
                });
                self.attempt(Attempt::Punch(node), options);
            }
            Event::Ask(node, appointment) => {
                let peers = self.swarm.behaviour_mut().appointments.as_mut();
                let sent = peers.zip(peer_id(node)).map(|(peers, peer)| peers.send_request(&peer, Ok(appointment)));
                match (sent, &mut self.registry) {
                    (Some(id), Some(registry)) => drop(registry.seeking.asked.insert(id, node)),
                    _ => self.seek(|shortcuts, now| shortcuts.answered(now, node, None)),
                }
            }
            Event::Answer(reply, answer) => {
                let channel = self.registry.as_mut().and_then(|registry| registry.seeking.replies.remove(&reply));
                self.answer_appointment(channel, answer);
            }
        }
    }

    fn answer_appointment(&mut self, channel: Option<ResponseChannel<Answer>>, answer: Answer) {
        if let (Some(peers), Some(channel)) = (self.swarm.behaviour_mut().appointments.as_mut(), channel) {
            // An error says that the peer does not wait any more.
            let _ = peers.send_response(channel, answer);
        }
    }

    fn attempt(&mut self, attempt: Attempt, options: Option<DialOpts>) {
        let Some(options) = options else { return self.attempt_failed(attempt, None) };
        let id = options.connection_id();
        if let Some(registry) = &mut self.registry {
            registry.seeking.attempts.insert(id, attempt);
        }
        if let Err(error) = self.swarm.dial(options) {
            self.shortcut_failed(id, &error);
        }
    }

    /// An attempt to connect has failed. False: it is none of these.
    pub(super) fn shortcut_failed(&mut self, id: ConnectionId, error: &DialError) -> bool {
        let attempt = self.registry.as_mut().and_then(|registry| registry.seeking.attempts.remove(&id));
        if let Some(attempt) = attempt {
            trace!(?attempt, %error, "no better way");
            self.attempt_failed(attempt, Some(error));
        }
        attempt.is_some()
    }

    fn attempt_failed(&mut self, attempt: Attempt, error: Option<&DialError>) {
        match attempt {
            Attempt::Look(entry) => {
                let seen = error.and_then(seen_from);
                debug!(answered = seen.is_some(), "an entry was asked from where this node's datagrams come");
                self.seek(|shortcuts, now| shortcuts.observed(now, entry, seen));
            }
            Attempt::Dial(node) => self.seek(|shortcuts, now| shortcuts.not_dialled(now, node)),
            Attempt::Punch(node) => {
                debug!(node = %node.short(), "no hole was punched");
                self.seek(|shortcuts, now| shortcuts.not_punched(now, node));
            }
        }
    }

    /// A connection is up. Why by this way, if it is one of these.
    pub(super) fn shortcut_connected(&mut self, id: ConnectionId) -> Option<Why> {
        match self.registry.as_mut()?.seeking.attempts.remove(&id)? {
            Attempt::Punch(_) => Some(Why::Punched),
            Attempt::Dial(_) => Some(Why::Dialled),
            Attempt::Look(entry) => {
                // Somebody there takes connections of libp2p: that is no entry.
                self.swarm.close_connection(id);
                self.seek(|shortcuts, now| shortcuts.observed(now, entry, None));
                None
            }
        }
    }

    /// A coordinator has said what it speaks.
    pub(super) fn speaks(&mut self, peer: PeerId, appoints: bool) {
        if let Some(registry) = &mut self.registry {
            match appoints {
                true => registry.seeking.appoint.insert(peer),
                false => registry.seeking.appoint.remove(&peer),
            };
        }
    }

    /// The ways to a peer have changed, or what is known of it.
    pub(super) fn look_for_shortcut(&mut self, peer: &PeerId) {
        let (Some(node), Some(registry)) = (node_id(peer), &mut self.registry) else { return };
        let Some(way) = self.ways.best(peer) else {
            registry.seeking.appoint.remove(peer);
            return self.seek(|shortcuts, _| shortcuts.gone(node));
        };
        if way.path != Path::Entry {
            return self.seek(|shortcuts, _| shortcuts.better(node));
        }
        // Workers choose their ways themselves; and who has not said what it is may be one.
        if registry.peering.coordinators().contains(&node) {
            let appoints = if registry.seeking.appoint.contains(peer) { Appoints::Yes } else { Appoints::No };
            let directly = if way.why == Why::OthersUnanswered { Directly::InVain } else { Directly::Untried };
            let addresses = own_addresses(registry, &node);
            self.seek(|shortcuts, now| shortcuts.by_entry(now, node, appoints, directly, &addresses));
        }
    }

    /// Does what is due, and looks at what peers say of themselves if that has changed.
    pub(super) fn seek_shortcuts(&mut self) {
        let Some(registry) = &mut self.registry else { return };
        let generation = registry.replica.read(|registry| registry.nodes_generation());
        if registry.seeking.generation.replace(generation) != Some(generation) {
            let nodes: Vec<NodeId> = registry.seeking.core.by_entries().collect();
            let named: Vec<_> = nodes.into_iter().map(|node| (node, own_addresses(registry, &node))).collect();
            self.seek(|shortcuts, now| named.iter().for_each(|(node, all)| shortcuts.names(now, *node, all)));
        }
        let Some(registry) = &self.registry else { return };
        if registry.seeking.next_at().is_some_and(|at| at <= registry.replica.now()) {
            self.seek(|shortcuts, now| shortcuts.handle_timeout(now));
        }
    }

    /// These entries see datagrams of this machine.
    pub(super) fn observers(&mut self, all: Vec<SocketAddr>) {
        if let Some(registry) = &mut self.registry {
            registry.seeking.observers = all;
        }
        self.look_at_observers();
    }

    /// Of the entries only those see this host's socket that are of a family in which it listens over QUIC: to the others libp2p sends from
    /// some other one.
    pub(super) fn look_at_observers(&mut self) {
        let Some(registry) = &self.registry else { return };
        let listening: Vec<IpAddr> = self.status.borrow().listening.iter().filter_map(quic_listener).collect();
        let sees = |observer: &&SocketAddr| {
            let mut all = listening.iter().filter(|ip| ip.is_ipv4() == observer.is_ipv4());
            // From a socket that is bound to this machine's own address nothing comes from outside, and the other way round.
            if observer.ip().is_loopback() { all.any(IpAddr::is_loopback) } else { all.any(|ip| !ip.is_loopback()) }
        };
        let observers: Vec<SocketAddr> = registry.seeking.observers.iter().filter(sees).copied().collect();
        self.seek(|shortcuts, now| shortcuts.observers(now, &observers));
    }

    pub(super) fn on_appointment(&mut self, event: request_response::Event<Result<Appointment, DecodeError>, Answer>) {
        match event {
            request_response::Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.asked_for_appointment(peer, request, channel);
            }
            request_response::Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.appointment_answered(request_id, Some(response));
            }
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                debug!(%error, "a peer was asked for an appointment in vain");
                self.appointment_answered(request_id, None);
            }
            other => trace!(event = ?other, "appointments"),
        }
    }

    fn asked_for_appointment(
        &mut self,
        peer: PeerId,
        request: Result<Appointment, DecodeError>,
        channel: ResponseChannel<Answer>,
    ) {
        let (Ok(appointment), Some(node), Some(registry)) = (request, node_id(&peer), &mut self.registry) else {
            return self.answer_appointment(Some(channel), Answer::Refused(Unable::NotNow));
        };
        let seeking = &mut registry.seeking;
        seeking.last_reply += 1;
        let reply = ReplyId(seeking.last_reply);
        seeking.replies.insert(reply, channel);
        self.seek(|shortcuts, now| shortcuts.asked(now, node, appointment, reply));
    }

    fn appointment_answered(&mut self, id: OutboundRequestId, answer: Option<Answer>) {
        let asked = self.registry.as_mut().and_then(|registry| registry.seeking.asked.remove(&id));
        if let Some(node) = asked {
            self.seek(|shortcuts, now| shortcuts.answered(now, node, answer));
        }
    }

    /// Says how it stands with those that are connected by way of an entry.
    fn note_outlooks(&self) {
        let Some(registry) = &self.registry else { return };
        let core = &registry.seeking.core;
        let outlooks: BTreeMap<NodeId, _> =
            core.by_entries().filter_map(|node| Some((node, core.outlook(&node)?))).collect();
        self.status.send_if_modified(|status| {
            let news = status.outlooks != outlooks;
            status.outlooks = outlooks;
            news
        });
    }
}

/// The addresses of its own that a coordinator names.
fn own_addresses(registry: &Registry, node: &NodeId) -> Vec<String> {
    let is_own = |address: &&String| address.parse().is_ok_and(|address| Path::of(&address) != Path::Entry);
    registry.replica.read(|registry| {
        let named = registry.node(node).and_then(Record::node);
        named.map(|named| named.multiaddrs.iter().filter(is_own).cloned().collect()).unwrap_or_default()
    })
}

/// What an entry has said when it refused a connection.
fn seen_from(error: &DialError) -> Option<SocketAddr> {
    let DialError::Transport(errors) = error else { return None };
    errors.iter().find_map(|(_, error)| match error {
        TransportError::Other(error) => seen::hear(&error.to_string()),
        TransportError::MultiaddrNotSupported(_) => None,
    })
}
