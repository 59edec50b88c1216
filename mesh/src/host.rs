//! A node's libp2p host: how coordinators of a federation find each other and agree, and how workers reach their home.
//!
//! ```text
//!  replica ── what this node says ──▶ gossipsub ──▶ every coordinator, within a few hops: a hurry, and no promise
//!          ◀─▶ a neighbour each second: what differs, by digests (request-response) ──▶ they converge, whatever was lost
//!  Kademlia: finds peers, and who may know providers of a service: a hint that is asked, never believed
//! ```
//!
//! Transport, executor, key, clock (by way of the replica) and seed are passed in, so that the simulation runs this code over
//! its own. Strangers are cut off: the identify exchange names the federation, and who names another one, or none in time, is
//! disconnected. What a peer may say is [`judge`]'s matter; whom to be connected to, [`neighbours`]'.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::peer::{Call, PeerResponse};
pub use libp2p::Multiaddr;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, ListenerId};
use libp2p::core::upgrade::Version;
use libp2p::identity::{Keypair, PublicKey, ed25519};
pub use libp2p::multiaddr::Protocol;
use libp2p::request_response::{OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{Config, DialError, Executor, SwarmEvent};
use libp2p::{PeerId, Swarm, Transport, identify, noise, ping, quic, tcp, yamux};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{debug, info, warn};

use crate::replica::Replica;

mod behaviour;
mod bucket;
mod exchange;
mod gossip;
mod handle;
mod judge;
mod kademlia;
pub mod link;
mod neighbours;
pub mod relay;
mod requests;

use behaviour::{Behaviour, BehaviourEvent, Names};
use handle::Command;
pub use handle::{AskError, HostHandle};
pub use judge::Objection;
use judge::{Fault, Judge};
use neighbours::Neighbours;
use requests::{Pending, Sessions};

/// A connection over which nothing has been going on for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The loop turns at least this often: gossipsub's heartbeat does not wake it (libp2p-gossipsub 0.50.1 resets its timer
/// without polling it), so it must be below the heartbeat's interval.
const TICK: Duration = Duration::from_millis(250);
/// How often a neighbour is asked what differs, within a quarter. Equal registries cost two short messages.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Streams of one connection at once, each way: those of relays (`relay`), and of what coordinators say to each other.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// Commands that may wait for the host.
const COMMANDS: usize = 64;
/// Calls of the existing contract that peers have passed on and that wait for their answer, all peers together.
const CALLS_MAX: usize = 256;

/// Why a host does not come up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The noise handshake cannot use this key, or a behaviour its configuration: a fault of this program.
    #[error("cannot set libp2p up: {0}")]
    Setup(String),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} (--mesh-listen): {reason}. Is the port in use, or the address not this machine's?"
    )]
    Listen {
        /// As given.
        address: Multiaddr,
        /// What the system says.
        reason: String,
    },
}

/// The libp2p form of a node's key.
pub fn keypair(key: &SecretKey) -> Result<Keypair, HostError> {
    Keypair::ed25519_from_bytes(key.seed()).map_err(|error| HostError::Setup(error.to_string()))
}

/// The PeerId of a node: its public key in libp2p's words. `None` where the id is no valid key.
pub fn peer_id(node: NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The node of a PeerId: an Ed25519 key stands in it as it is (libp2p's peer id specification). `None` for other keys.
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    let hash = peer.as_ref();
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    Some(NodeId(key.try_into_ed25519().ok()?.to_bytes()))
}

/// What identify calls the federation: who says otherwise is a stranger.
pub fn protocol_version(federation: FederationId) -> String {
    Names::of(federation).identify()
}

/// The topic on which records are gossiped.
pub fn topic(federation: FederationId) -> libp2p::gossipsub::IdentTopic {
    Names::of(federation).topic()
}

/// The transport of the binaries: QUIC, and TCP with noise and yamux.
pub fn transport(key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, HostError> {
    let noise = noise::Config::new(key).map_err(|error| HostError::Setup(error.to_string()))?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(2 * STREAMS_PER_CONNECTION_MAX as usize);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let mut config = quic::Config::new(key);
    config.max_concurrent_stream_limit = STREAMS_PER_CONNECTION_MAX;
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed())
}

/// The tokio executor, for the binaries.
#[derive(Debug, Clone, Copy)]
pub struct TokioExecutor;

impl Executor for TokioExecutor {
    fn exec(&self, future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }
}

/// By which of the two ways records travel. Both, but in tests that show what each is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replication {
    /// Gossip hurries, synchronisation converges.
    #[default]
    Both,
    /// Nothing is published, and nothing that others publish is heard.
    WithoutGossip,
    /// What gossip loses is lost.
    WithoutSync,
}

impl Replication {
    fn gossips(self) -> bool {
        self != Self::WithoutGossip
    }

    fn synchronises(self) -> bool {
        self != Self::WithoutSync
    }
}

/// A call of the existing contract that a peer has passed on, and where its answer goes.
#[derive(Debug)]
pub struct IncomingCall {
    /// The coordinator that passed it on.
    pub from: NodeId,
    /// The call.
    pub call: Call,
    /// Its answer; dropping it is the refusal.
    pub answer: oneshot::Sender<CallAnswered>,
}

/// The answer to a call that a peer has passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallAnswered {
    /// The status of HTTP.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// What this node has signed about the agent.
    pub records: Vec<Vec<u8>>,
}

/// What a node is on the mesh.
pub enum Part {
    /// It keeps a connection to its home, and no more.
    Worker,
    /// It holds the registry.
    Coordinator {
        /// The registry.
        replica: Replica,
        /// Where calls go that peers pass on.
        calls: mpsc::Sender<IncomingCall>,
        /// By which ways records travel.
        replication: Replication,
    },
}

/// What a host starts with.
pub struct HostConfig {
    /// The node's key.
    pub key: Keypair,
    /// Its federation.
    pub federation: FederationId,
    /// The bounds.
    pub limits: Limits,
    /// What it is.
    pub part: Part,
    /// Where it listens; nowhere if empty.
    pub listen: Vec<Multiaddr>,
    /// For its choices and jitter.
    pub seed: u64,
}

/// What the host is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostStatus {
    /// The addresses that it is bound to.
    pub listening: Vec<Multiaddr>,
    /// Addresses that it was told to listen on and is not bound to yet.
    pub binding: usize,
    /// The coordinators of its federation that are connected, and have said that they are.
    pub coordinators: BTreeSet<NodeId>,
    /// Peers of its federation that are connected, workers included.
    pub peers: BTreeSet<PeerId>,
}

/// What only a coordinator has.
struct Registry {
    replica: Replica,
    calls: mpsc::Sender<IncomingCall>,
    replication: Replication,
    /// What this node says, for gossip.
    hurry: broadcast::Receiver<bytes::Bytes>,
}

type CallAnswer = futures_util::future::BoxFuture<'static, (ResponseChannel<PeerResponse>, PeerResponse)>;

/// A host that is to be run.
pub struct Host {
    swarm: Swarm<Behaviour>,
    names: Names,
    status: watch::Sender<HostStatus>,
    commands: mpsc::Receiver<Command>,
    registry: Option<Registry>,
    /// The listeners that are not bound yet.
    binding: HashSet<ListenerId>,
    judge: Judge,
    neighbours: Neighbours,
    /// Connected coordinators.
    friends: BTreeMap<NodeId, PeerId>,
    pending: HashMap<OutboundRequestId, Pending>,
    /// Who waits for a connection.
    connecting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), String>>>>,
    sessions: Sessions,
    calls: FuturesUnordered<CallAnswer>,
    queries: kademlia::Queries,
    random: fastrand::Rng,
}

impl Host {
    /// Binds the addresses. `transport` and `executor` are the seams for the simulation.
    pub fn new(
        config: HostConfig,
        transport: Boxed<(PeerId, StreamMuxerBox)>,
        executor: impl Executor + Send + 'static,
    ) -> Result<(Self, HostHandle), HostError> {
        let HostConfig { key, federation, limits, part, listen, seed } = config;
        let names = Names::of(federation);
        let (behaviour, registry) = match part {
            Part::Worker => (Behaviour::worker(&key, &names, &limits), None),
            Part::Coordinator { replica, calls, replication } => {
                let behaviour = Behaviour::coordinator(&key, &names, &limits, replication, !listen.is_empty())?;
                let hurry = replica.hurry();
                (behaviour, Some(Registry { replica, calls, replication, hurry }))
            }
        };
        let peer = key.public().to_peer_id();
        let me = node_id(&peer).ok_or_else(|| HostError::Setup("the key is not an Ed25519 key".into()))?;
        let streams = behaviour.streams.new_control();
        let config = Config::with_executor(executor).with_idle_connection_timeout(IDLE_TIMEOUT);
        let mut swarm = Swarm::new(transport, behaviour, peer, config);
        let mut binding = HashSet::new();
        for address in listen {
            let listening = swarm.listen_on(address.clone());
            let id =
                listening.map_err(|error| HostError::Listen { address: address.clone(), reason: error.to_string() })?;
            binding.insert(id);
        }
        let (sender, commands) = mpsc::channel(COMMANDS);
        let status = watch::Sender::new(HostStatus { binding: binding.len(), ..HostStatus::default() });
        let handle = HostHandle::new(sender, status.subscribe(), streams, names.clone());
        let host = Self {
            swarm,
            names,
            status,
            commands,
            registry,
            binding,
            judge: Judge::default(),
            neighbours: Neighbours::new(me),
            friends: BTreeMap::new(),
            pending: HashMap::new(),
            connecting: HashMap::new(),
            sessions: Sessions::default(),
            calls: FuturesUnordered::new(),
            queries: kademlia::Queries::default(),
            random: fastrand::Rng::with_seed(seed),
        };
        Ok((host, handle))
    }

    /// Puts a host of the binaries up, and runs it in a task of its own for as long as somebody holds a handle.
    pub fn spawn(config: HostConfig) -> Result<HostHandle, HostError> {
        let transport = transport(&config.key)?;
        let (host, handle) = Self::new(config, transport, TokioExecutor)?;
        tokio::spawn(host.run());
        Ok(handle)
    }

    /// Runs for as long as somebody holds a handle.
    pub async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sync = interval_at(Instant::now() + SYNC_INTERVAL.mul_f32(self.random.f32()), SYNC_INTERVAL);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                said = said(&mut self.registry) => self.publish(said),
                Some((channel, response)) = self.calls.next(), if !self.calls.is_empty() => self.respond(channel, response),
                _ = tick.tick() => self.look(),
                now = sync.tick() => {
                    let pause = SYNC_INTERVAL.mul_f32(0.75 + 0.5 * self.random.f32());
                    sync.reset_at(now + pause);
                    self.synchronise_with_somebody();
                }
            }
        }
        // Whoever was met is not met any more.
        for node in std::mem::take(&mut self.friends).into_keys() {
            self.part(node);
        }
    }

    /// What is to be done now and then.
    fn look(&mut self) {
        let Some(Registry { replica, .. }) = &self.registry else { return };
        let now = replica.now();
        for peer in self.judge.pardoned(now) {
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
        let known: BTreeMap<NodeId, Vec<Multiaddr>> = replica.read(|registry| {
            self.judge.forget_strangers(registry);
            let coordinators = registry.nodes().filter_map(|record| Some((record.writer, record.node()?)));
            let dialable = coordinators.filter(|(_, node)| node.roles.coordinates() && !node.multiaddrs.is_empty());
            dialable.map(|(id, node)| (id, parsed(&node.multiaddrs))).collect()
        });
        let ids: BTreeSet<NodeId> = known.keys().copied().collect();
        let connected: BTreeSet<NodeId> = self.friends.keys().copied().collect();
        for node in self.neighbours.due(now, &ids, &connected) {
            let addresses = known.get(&node).cloned().unwrap_or_default();
            self.dial(node, addresses);
        }
        self.look_at_kademlia(&known);
    }

    fn dial(&mut self, node: NodeId, addresses: Vec<Multiaddr>) {
        let Some(peer) = peer_id(node) else { return };
        let options =
            DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::DisconnectedAndNotDialing).build();
        if let Err(error) = self.swarm.dial(options) {
            self.not_reached(peer, &error);
        }
    }

    fn not_reached(&mut self, peer: PeerId, error: &DialError) {
        debug!(%peer, %error, "cannot be reached");
        // Another attempt is under way, or has succeeded.
        if matches!(error, DialError::DialPeerConditionFalse(_)) {
            return;
        }
        self.tell_connecting(peer, &Err(error.to_string()));
        if let Some(node) = node_id(&peer) {
            let (now, jitter) = (self.now(), self.random.f32());
            self.neighbours.missed(now, node, jitter);
        }
    }

    /// Tells whoever waits for a connection to this peer. Some may have gone.
    fn tell_connecting(&mut self, peer: PeerId, outcome: &Result<(), String>) {
        for waiting in self.connecting.remove(&peer).into_iter().flatten() {
            let _ = waiting.send(outcome.clone());
        }
    }

    fn now(&self) -> hedgerow_proto::clock::Time {
        self.registry.as_ref().map(|registry| registry.replica.now()).unwrap_or_default()
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, listener_id } => {
                info!(%address, "listening for the mesh");
                self.binding.remove(&listener_id);
                self.status.send_modify(|status| {
                    status.listening.push(address);
                    status.binding = self.binding.len();
                });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.status.send_modify(|status| status.listening.retain(|bound| *bound != address));
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "a libp2p listener failed"),
            SwarmEvent::ListenerClosed { reason, .. } => warn!(?reason, "a libp2p listener has closed"),
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => self.not_reached(peer, &error),
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                debug!(peer = %peer_id, cause = cause.map(tracing::field::display), "disconnected");
                self.gone(peer_id);
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
                // An error says that it has gone already.
                let _ = self.swarm.disconnect_peer_id(peer_id);
            }
            // One that does not speak the protocol is no dead one.
            BehaviourEvent::Ping(ping::Event { result: Err(ping::Failure::Unsupported), .. }) => {}
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(error) }) => {
                debug!(%peer, %error, "does not answer pings");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Peers(event) => self.on_request_response(event),
            BehaviourEvent::Kad(event) => self.on_kademlia(event),
            _ => {}
        }
    }

    /// A peer has said who it is.
    fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        if info.protocol_version != self.names.identify() {
            debug!(%peer, said = info.protocol_version, "not of this federation");
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        self.status.send_if_modified(|status| status.peers.insert(peer));
        self.tell_connecting(peer, &Ok(()));
        let coordinates = info.protocols.contains(&self.names.peer());
        let Some(node) = node_id(&peer).filter(|_| coordinates && self.registry.is_some()) else { return };
        self.neighbours.reached(&node);
        if self.friends.insert(node, peer).is_none() {
            debug!(node = %node.short(), "a coordinator is connected");
            if let Some(registry) = &self.registry {
                registry.replica.meet(node);
            }
            self.status.send_modify(|status| _ = status.coordinators.insert(node));
            self.introduce(peer);
        }
    }

    fn gone(&mut self, peer: PeerId) {
        self.judge.gone(&peer);
        self.tell_connecting(peer, &Err("the connection was closed".into()));
        self.sessions.gone(&peer);
        self.status.send_if_modified(|status| status.peers.remove(&peer));
        if let Some(node) = node_id(&peer)
            && self.friends.remove(&node).is_some()
        {
            debug!(node = %node.short(), "a coordinator is disconnected");
            self.part(node);
            self.status.send_modify(|status| _ = status.coordinators.remove(&node));
        } else if let Some(node) = node_id(&peer) {
            // It was reached, and was none, or did not say so.
            let (now, jitter) = (self.now(), self.random.f32());
            self.neighbours.missed(now, node, jitter);
        }
    }

    fn part(&self, node: NodeId) {
        if let Some(registry) = &self.registry {
            registry.replica.part(node);
        }
    }

    /// A peer has done something that it should not have.
    fn fault(&mut self, peer: PeerId, fault: Fault) {
        let now = self.now();
        if self.judge.fault(now, peer, fault) {
            warn!(%peer, "a peer sends what is not worth having, and is blocked for a while");
            self.swarm.behaviour_mut().blocked.block_peer(peer);
        }
    }
}

/// What the node says next that others should know soon; never, if it holds no registry.
async fn said(registry: &mut Option<Registry>) -> bytes::Bytes {
    let Some(Registry { hurry, replication, .. }) = registry else { return std::future::pending().await };
    loop {
        match hurry.recv().await {
            Ok(record) if *replication != Replication::WithoutGossip => return record,
            // What does not fit is synchronised.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn parsed(addresses: &[String]) -> Vec<Multiaddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}
