//! A coordinator that keeps no rule: a stock libp2p host over the simulated network. Beside what [`Evil`] does it does what all do, by
//! the machines that ship ([`Core`], [`Peering`]): so it is let in, has a standing, and comes again when it was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use hedgerow_mesh::host::{Multiaddr, keypair, node_id, peer_id, protocol_version, topic};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::peer::{self, PeerResponse};
use hedgerow_proto::peering::{self, Acceptance, Part, Peering, Replication, Reply, RequestId};
use hedgerow_proto::record::{NodeRecord, Roles};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::replica::{self, Core};
use hedgerow_sim_core::malice::{self, Evil, Mouth};
use hedgerow_sim_model::random;
use hedgerow_sim_model::scenario::Malice;
use libp2p::gossipsub::{IdentTopic, MessageAcceptance};
use libp2p::identity::Keypair;
use libp2p::request_response::OutboundRequestId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, gossipsub, identify, ping, request_response};
use tokio::sync::mpsc;
use tracing::debug;

use super::node::{MESH_PORT, NodeError};
use super::process::Process;
use crate::net::transport::{Security, upgraded};
use crate::net::{Network, address};
use crate::time;

mod raw;

use raw::Raw;

/// The loop turns at least this often: nothing else wakes gossipsub's heartbeat, and a peering looks as often.
const TICK: Duration = Duration::from_millis(250);
/// A connection over which nothing has been going on for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Lists of coordinators that wait to be read.
const HINTS: usize = 4;

/// What one is.
pub(super) struct Hostile {
    pub(super) node: u32,
    pub(super) federation: FederationId,
    pub(super) limits: Limits,
    pub(super) key: SecretKey,
    pub(super) malice: Vec<Malice>,
    pub(super) invents_per_second: f64,
    pub(super) security: Security,
    pub(super) seed: u64,
}

/// One that runs.
pub(super) struct RunningHostile {
    process: Process,
    told: mpsc::Sender<Vec<Vec<u8>>>,
}

impl Hostile {
    /// Starts it. It knows nobody.
    pub(super) fn start(self, network: &Network) -> Result<RunningHostile, NodeError> {
        let process = Process::of(self.node);
        let (told, hints) = mpsc::channel(HINTS);
        let node = self.node;
        let host = Host::new(self, network, process.clone(), hints);
        let host = host.map_err(|reason| NodeError::Start { node, reason })?;
        process.spawn(host.run());
        Ok(RunningHostile { process, told })
    }
}

impl RunningHostile {
    /// These are coordinators, as they have signed it.
    pub(super) fn hear_of_coordinators(&self, records: Vec<Vec<u8>>) {
        // What finds no room is said again.
        drop(self.told.try_send(records));
    }

    /// Kills it.
    pub(super) async fn kill(self) {
        self.process.kill().await;
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    gossip: gossipsub::Behaviour,
    peers: request_response::Behaviour<Raw>,
}

/// The name of a protocol of the federation.
fn name(federation: FederationId, protocol: &str) -> String {
    format!("/hedgerow/{federation}/{protocol}")
}

impl Behaviour {
    fn new(key: &Keypair, federation: FederationId, peers: StreamProtocol) -> Result<Self, String> {
        let mut config = gossipsub::ConfigBuilder::default();
        // Its messages have numbers, so that it can say one thing twice. Nobody else would know them by those.
        config.protocol_id_prefix(name(federation, "gossip")).gossip_lazy(0).gossip_factor(0.0).validate_messages();
        let config = config.build().map_err(|error| error.to_string())?;
        let authenticity = gossipsub::MessageAuthenticity::Signed(key.clone());
        let mut gossip: gossipsub::Behaviour = gossipsub::Behaviour::new(authenticity, config)?;
        gossip.subscribe(&topic(federation)).map_err(|error| error.to_string())?;
        Ok(Self {
            identify: identify::Behaviour::new(identify::Config::new(protocol_version(federation), key.public())),
            ping: ping::Behaviour::default(),
            gossip,
            peers: request_response::Behaviour::with_codec(
                Raw,
                [(peers, request_response::ProtocolSupport::Full)],
                request_response::Config::default(),
            ),
        })
    }

    fn publish(&mut self, topic: &IdentTopic, bytes: impl Into<Vec<u8>>) {
        // An error says that nobody listens, or that all have enough to do.
        drop(self.gossip.publish(topic.clone(), bytes));
    }
}

struct Host {
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    peers: StreamProtocol,
    core: Core,
    peering: Peering,
    evil: Evil,
    /// What the peering asks, and not malice.
    asked: BTreeMap<OutboundRequestId, RequestId>,
    hints: mpsc::Receiver<Vec<Vec<u8>>>,
}

impl Host {
    fn new(
        hostile: Hostile,
        network: &Network,
        process: Process,
        hints: mpsc::Receiver<Vec<Vec<u8>>>,
    ) -> Result<Self, String> {
        let Hostile { node, federation, limits, key, malice, invents_per_second, security, seed } = hostile;
        let seed = |what| random::number(seed, what, 0);
        let (now, pair) = (time::now(), keypair(&key).map_err(|error| error.to_string())?);
        let transport = upgraded(network, node, &pair, security, None).map_err(|error| error.to_string())?;
        let peers = StreamProtocol::try_from_owned(name(federation, "peer/1")).map_err(|error| error.to_string())?;
        let behaviour = Behaviour::new(&pair, federation, peers.clone())?;
        let config = libp2p::swarm::Config::with_executor(process).with_idle_connection_timeout(IDLE_TIMEOUT);
        let mut swarm = Swarm::new(transport, behaviour, pair.public().to_peer_id(), config);
        let here = address::multiaddr(address::of(node, MESH_PORT));
        swarm.listen_on(here.clone()).map_err(|error| error.to_string())?;
        let voice = Voice::new(key.clone(), federation, seed("incarnation"), 1, limits.clone());
        let mut core = Core::new(now, voice, Registry::new(federation, limits), Duration::ZERO);
        let record = NodeRecord { multiaddrs: vec![here.to_string()], ..malice::record(Roles::Coordinator, None) };
        core.announce(now, record).map_err(|error| error.to_string())?;
        Ok(Self {
            swarm,
            topic: topic(federation),
            peers,
            core,
            peering: Peering::new(now, key.id(), Replication::Both, seed("peering")),
            evil: Evil::new(now, malice, invents_per_second, key, seed("evil")),
            asked: BTreeMap::new(),
            hints,
        })
    }

    async fn run(mut self) {
        loop {
            self.handle_timeouts();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(records) = self.hints.recv() => self.hear_of_coordinators(records),
                () = tokio::time::sleep(TICK) => {}
            }
            self.follow();
        }
    }

    fn handle_timeouts(&mut self) {
        let Self { swarm, topic, core, peering, evil, .. } = self;
        let now = time::now();
        core.handle_timeout(now, Duration::ZERO);
        peering.handle_timeout(now, core);
        let peers = peering.coordinators();
        evil.handle_timeout(now, core, &mut Tongue { behaviour: swarm.behaviour_mut(), topic, peers });
        self.follow();
    }

    fn hear_of_coordinators(&mut self, records: Vec<Vec<u8>>) {
        for record in records {
            let source = Source::Passed(Duration::ZERO);
            // What cannot be read, or is older than what is here, helps nobody.
            drop(self.core.insert_if(time::now(), record.into(), source, |_, _| Ok::<(), ()>(())));
        }
    }

    /// Does what follows from what has been done.
    fn follow(&mut self) {
        let now = time::now();
        loop {
            while let Some(event) = self.core.poll_event() {
                match event {
                    replica::Event::Hurry(bytes) => self.peering.hurry(bytes),
                    replica::Event::RaiseEpoch { above } => self.core.epoch_raised(now, above + 1),
                    // That another speaks with its key is its own doing.
                    replica::Event::Failed(_) | replica::Event::GuestNews(_) | replica::Event::OwnRecord(_) => {}
                }
            }
            let Some(event) = self.peering.poll_event() else { return };
            match event {
                peering::Event::Dial { node, addresses } => self.dial(node, &addresses),
                peering::Event::Request { id, to, request } => match peer_id(to) {
                    Some(peer) => {
                        let peers = &mut self.swarm.behaviour_mut().peers;
                        self.asked.insert(peers.send_request(&peer, peer::encode(&request)), id);
                    }
                    None => self.peering.unanswered(id),
                },
                peering::Event::Publish(bytes) => self.swarm.behaviour_mut().publish(&self.topic, bytes),
                // It cuts nobody off.
                peering::Event::Block(_)
                | peering::Event::Unblock(_)
                | peering::Event::SynchronisationEnded(_)
                | peering::Event::Concluded(..)
                | peering::Event::Complaint(..) => {}
            }
        }
    }

    fn dial(&mut self, node: NodeId, addresses: &[String]) {
        let Some(peer) = peer_id(node) else { return self.peering.dial_failed(time::now(), node) };
        let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let options = DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::Disconnected).build();
        if let Err(error) = self.swarm.dial(options) {
            self.not_reached(peer, &error);
        }
    }

    fn not_reached(&mut self, peer: PeerId, error: &DialError) {
        // Who is connected says so itself.
        if !self.swarm.is_connected(&peer)
            && let Some(node) = node_id(&peer)
        {
            debug!(node = %node.short(), %error, "a hostile one does not reach it");
            self.peering.dial_failed(time::now(), node);
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = time::now();
        match event {
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => self.not_reached(peer, &error),
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                if let Some(node) = node_id(&peer_id) {
                    self.peering.disconnected(now, &mut self.core, node);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                let coordinates = info.protocols.contains(&self.peers);
                let part = if coordinates { Part::Coordinator } else { Part::Worker };
                if let Some(node) = node_id(&peer_id) {
                    self.peering.connected(now, &mut self.core, node, part);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => {
                let acceptance = self.gossiped(propagation_source, message);
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Peers(event)) => self.on_request_response(event),
            _ => {}
        }
    }

    /// What others say it passes on as all do, or it would be cut off for that.
    fn gossiped(&mut self, hop: PeerId, message: gossipsub::Message) -> MessageAcceptance {
        let bytes = Bytes::from(message.data);
        self.evil.overhears(&bytes);
        let known = node_id(&hop).zip(message.source.as_ref().and_then(node_id));
        let Some((hop, publisher)) = known else { return MessageAcceptance::Reject };
        match self.peering.gossiped(time::now(), &mut self.core, hop, publisher, bytes) {
            Acceptance::Accept => MessageAcceptance::Accept,
            Acceptance::Ignore => MessageAcceptance::Ignore,
            Acceptance::Reject => MessageAcceptance::Reject,
        }
    }

    fn on_request_response(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        let now = time::now();
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                let asked = node_id(&peer).zip(peer::decode(&request).ok());
                let reply = asked.map(|(from, request)| self.peering.requested(now, &mut self.core, from, request));
                let response = match reply {
                    Some(Reply::Now(response)) => response,
                    // It speaks for no agents.
                    Some(Reply::Call(_)) | None => PeerResponse::Refused,
                };
                // An error says that the peer does not wait any more.
                drop(self.swarm.behaviour_mut().peers.send_response(channel, peer::encode(&response)));
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                let Some(id) = self.asked.remove(&request_id) else { return };
                match peer::decode(&response) {
                    Ok(response) => self.peering.answered(now, &mut self.core, id, response),
                    Err(_) => self.peering.unanswered(id),
                }
            }
            Event::OutboundFailure { request_id, .. } => {
                if let Some(id) = self.asked.remove(&request_id) {
                    self.peering.unanswered(id);
                }
            }
            Event::InboundFailure { .. } | Event::ResponseSent { .. } => {}
        }
    }
}

/// Its way to others.
struct Tongue<'a> {
    behaviour: &'a mut Behaviour,
    topic: &'a IdentTopic,
    peers: &'a BTreeSet<NodeId>,
}

impl Mouth for Tongue<'_> {
    fn gossip(&mut self, _: &mut fastrand::Rng, bytes: Bytes) {
        self.behaviour.publish(self.topic, bytes);
    }

    fn ask(&mut self, random: &mut fastrand::Rng, bytes: Bytes) {
        if let Some(peer) = random.choice(self.peers).copied().and_then(peer_id) {
            self.behaviour.peers.send_request(&peer, bytes.into());
        }
    }
}
