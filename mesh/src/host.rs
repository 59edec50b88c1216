//! A node's libp2p host: how coordinators of a federation find each other and agree, and how workers reach their home.
//!
//! ```text
//!  replica ── what this node says ──▶ gossipsub ──▶ every coordinator, within a few hops: a hurry, and no promise
//!          ◀─▶ a neighbour each second: what differs, by digests (request-response) ──▶ they converge, whatever was lost
//!  Kademlia: who may know providers of a service: a hint that is asked, never believed
//! ```
//!
//! Transport, executor, key, clock (by way of the replica) and seed are passed in, so that the simulation runs this code over
//! its own. Strangers are cut off: the identify exchange names the federation, and who names another one, or none in time, is
//! disconnected. What a peer may say, whom to be connected to and what to ask of them is [`hedgerow_proto::peering`]'s matter: here
//! is what carries it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::peer::{Call, PeerResponse};
use hedgerow_proto::peering::{Complaint, Conclusion, Event, Peering, QuestionId};
pub use hedgerow_proto::peering::{Objection, Replication};
pub use libp2p::Multiaddr;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::{Boxed, ListenerId};
use libp2p::core::upgrade::Version;
use libp2p::identity::{Keypair, PublicKey, ed25519};
pub use libp2p::multiaddr::Protocol;
use libp2p::request_response::{OutboundRequestId, ResponseChannel};
use libp2p::swarm::{Config, Executor};
use libp2p::{PeerId, Swarm, Transport, noise, quic, tcp, yamux};
use rustls::ClientConfig;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, trace, warn};

use crate::replica::Replica;

mod behaviour;
mod connections;
mod dials;
mod exchange;
mod frugal;
mod gossip;
mod handle;
mod kademlia;
mod lan;
pub mod link;
pub mod muxer;
pub mod paths;
pub mod relay;
mod requests;
mod shortcuts;
mod ways;

use behaviour::{Behaviour, Listens, Names};
use dials::{Dials, Preference};
use handle::Command;
pub use handle::{AskError, HostHandle};
pub use hedgerow_proto::shortcuts::Outlook;
use lan::Found;
pub use lan::LanDiscovery;
use paths::{Arrivals, EntryTransport};
use requests::Asker;
use shortcuts::Seeking;
use ways::Ways;
pub use ways::{Way, Why};

/// A connection over which nothing has been going on for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The loop turns at least this often: gossipsub's heartbeat does not wake it (libp2p-gossipsub 0.50.1 resets its timer
/// without polling it), so it must be below the heartbeat's interval.
const TICK: Duration = Duration::from_millis(250);
/// How long a connection may take to come up, from the first packet to the multiplexer: without it a stranger who says nothing keeps
/// one of the places for those who are opening connections.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
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

/// The transport of the binaries: QUIC; TCP, and what comes by way of entries, both with noise and yamux.
pub fn transport(key: &Keypair, by_entry: EntryTransport) -> Result<Boxed<(PeerId, StreamMuxerBox)>, HostError> {
    let noise = noise::Config::new(key).map_err(|error| HostError::Setup(error.to_string()))?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(2 * STREAMS_PER_CONNECTION_MAX as usize);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(yamux.clone())
        .map(|(peer, muxer), _| (peer, muxer::ending(muxer)));
    let by_entry = by_entry
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .map(|(peer, muxer), _| (peer, muxer::ending(muxer)));
    let mut config = quic::Config::new(key);
    config.max_concurrent_stream_limit = STREAMS_PER_CONNECTION_MAX;
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // Each takes only addresses of its own.
    let all = by_entry.or_transport(quic.or_transport(tcp).map(|either, _| either.into_inner()));
    Ok(in_time(all.map(|either, _| either.into_inner())))
}

/// A transport whose connections are given up that do not come up in time, with all that a connection needs.
pub fn in_time<T>(transport: T) -> Boxed<(PeerId, StreamMuxerBox)>
where
    T: Transport<Output = (PeerId, StreamMuxerBox), Error: Send + Sync, Dial: Send, ListenerUpgrade: Send>,
    T: Send + Unpin + 'static,
{
    TransportTimeout::new(transport, SETUP_TIMEOUT).boxed()
}

/// The tokio executor, for the binaries.
#[derive(Debug, Clone, Copy)]
pub struct TokioExecutor;

impl Executor for TokioExecutor {
    fn exec(&self, future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
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
    /// By which way each of them is.
    pub ways: BTreeMap<NodeId, Way>,
    /// Who may be on the LAN, and where: hints, of anybody there.
    pub on_lan: BTreeMap<NodeId, Vec<Multiaddr>>,
    /// How it stands with a better way to those coordinators that are connected only by way of an entry.
    pub outlooks: BTreeMap<NodeId, Outlook>,
}

/// What only a coordinator has.
struct Registry {
    replica: Replica,
    peering: Peering,
    seeking: Seeking,
    calls: mpsc::Sender<IncomingCall>,
    /// What this node says, for gossip.
    hurry: broadcast::Receiver<Bytes>,
    /// Who waits for the end of a synchronisation with a neighbour.
    synchronising: HashMap<NodeId, Vec<oneshot::Sender<()>>>,
    /// Who waits for what comes of a question to the neighbours.
    concluding: HashMap<QuestionId, oneshot::Sender<Conclusion>>,
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
    /// Who waits for which answer.
    asked: HashMap<OutboundRequestId, Asker>,
    /// Who waits for a connection.
    connecting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), String>>>>,
    /// Who is being dialled.
    dials: Dials,
    /// How everybody is connected.
    ways: Ways,
    /// Who was found on the LAN.
    lan: Found,
    calls: FuturesUnordered<CallAnswer>,
    queries: kademlia::Queries,
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
        let peer = key.public().to_peer_id();
        let me = node_id(&peer).ok_or_else(|| HostError::Setup("the key is not an Ed25519 key".into()))?;
        let preference = match part {
            Part::Worker => Preference::Tcp,
            Part::Coordinator { .. } => Preference::Direct,
        };
        let (behaviour, registry) = match part {
            Part::Worker => (Behaviour::worker(&key, &names, &limits), None),
            Part::Coordinator { replica, calls, replication } => {
                let behaviour = Behaviour::coordinator(&key, &names, &limits, replication, Listens::at(&listen))?;
                let registry = Registry {
                    peering: Peering::new(replica.now(), me, replication, seed),
                    seeking: Seeking::new(replica.now(), me, seed),
                    hurry: replica.hurry(),
                    replica,
                    calls,
                    synchronising: HashMap::new(),
                    concluding: HashMap::new(),
                };
                (behaviour, Some(registry))
            }
        };
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
        let handle = HostHandle::new(sender, status.subscribe(), streams, names.clone(), seed);
        let host = Self {
            swarm,
            names,
            status,
            commands,
            registry,
            binding,
            asked: HashMap::new(),
            connecting: HashMap::new(),
            dials: Dials::new(preference),
            ways: Ways::default(),
            lan: Found::new(peer),
            calls: FuturesUnordered::new(),
            queries: kademlia::Queries::default(),
        };
        Ok((host, handle))
    }

    /// Puts a host of the binaries up, and runs it in a task of its own for as long as somebody holds a handle. `tls` says which entries
    /// are trusted to be who they are; on the way to peers it is no more than a second lock.
    pub fn spawn(config: HostConfig, tls: Arc<ClientConfig>, lan: LanDiscovery) -> Result<HostHandle, HostError> {
        let (arrivals, arriving) = paths::arrivals();
        let transport = transport(&config.key, EntryTransport::new(paths::system(tls), arriving))?;
        let (mut host, handle) = Self::new(config, transport, TokioExecutor)?;
        let handle = host.listen_for_entries(handle, arrivals)?;
        if lan == LanDiscovery::On {
            host.discover();
        }
        tokio::spawn(host.run());
        Ok(handle)
    }

    /// Takes in who comes by way of entries, by the [`EntryTransport`] that these arrivals are for. Nobody has a reason to come to a
    /// worker: its host listens for none.
    pub fn listen_for_entries(&mut self, handle: HostHandle, arrivals: Arrivals) -> Result<HostHandle, HostError> {
        if self.registry.is_none() {
            return Ok(handle);
        }
        let here = EntryTransport::here();
        let listening = self.swarm.listen_on(here.clone());
        listening.map_err(|error| HostError::Listen { address: here, reason: error.to_string() })?;
        Ok(handle.with_arrivals(arrivals))
    }

    /// Runs for as long as somebody holds a handle.
    pub async fn run(mut self) {
        loop {
            // Not when a timer says so: a flood of events would be there before it each time.
            let pause = self.handle_timeouts();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                said = said(&mut self.registry) => {
                    self.tell(|peering, _, _| peering.hurry(said));
                }
                Some((channel, response)) = self.calls.next(), if !self.calls.is_empty() => self.respond(channel, response),
                () = sleep(pause) => {}
            }
        }
        self.tell(|peering, replica, now| peering.stop(now, replica));
    }

    /// Does what is due; returns how long nothing is, [`TICK`] at most.
    fn handle_timeouts(&mut self) -> Duration {
        self.tell(|peering, replica, now| peering.handle_timeout(now, replica));
        self.look_at_kademlia();
        self.dial_due();
        self.dial_on_lan();
        self.seek_shortcuts();
        self.close_surplus();
        let dial = self.dials.next_at().map_or(TICK, |at| at.saturating_duration_since(Instant::now()));
        let due = self.registry.as_ref().map(|Registry { replica, peering, seeking, .. }| {
            let (at, _) = peering.poll_timeout();
            seeking.next_at().map_or(at, |other| other.min(at)).since(replica.now())
        });
        due.map_or(TICK, |due| due.min(TICK)).min(dial)
    }

    /// Tells the core of something, and does what follows. `None`: this node is a worker, and has none.
    fn tell<T>(&mut self, tell: impl FnOnce(&mut Peering, &mut Replica, Time) -> T) -> Option<T> {
        let Registry { replica, peering, .. } = self.registry.as_mut()?;
        let now = replica.now();
        let told = tell(peering, replica, now);
        self.follow_all();
        Some(told)
    }

    /// Does what the core wants done.
    fn follow_all(&mut self) {
        while let Some(event) = self.registry.as_mut().and_then(|registry| registry.peering.poll_event()) {
            self.follow(event);
        }
    }

    fn follow(&mut self, event: Event) {
        match event {
            Event::Dial { node, addresses } => {
                if let Some(peer) = peer_id(node) {
                    self.dial(peer, parsed(&addresses));
                }
            }
            Event::Request { id, to, request } => {
                if let Some(peer) = peer_id(to) {
                    self.ask(peer, request, Asker::Core(id));
                }
            }
            Event::Publish(record) => self.publish(record),
            Event::Block(node) => {
                warn!(node = %node.short(), "a peer sends what is not worth having, and is blocked for a while");
                if let Some(peer) = peer_id(node) {
                    self.swarm.behaviour_mut().blocked.block_peer(peer);
                }
            }
            Event::Unblock(node) => {
                if let Some(peer) = peer_id(node) {
                    self.swarm.behaviour_mut().blocked.unblock_peer(peer);
                }
            }
            // Dropping the senders tells them.
            Event::SynchronisationEnded(node) => {
                if let Some(registry) = &mut self.registry {
                    registry.synchronising.remove(&node);
                }
            }
            Event::Concluded(id, conclusion) => {
                let waiting = self.registry.as_mut().and_then(|registry| registry.concluding.remove(&id));
                // Whoever asked may have gone.
                drop(waiting.map(|waiting| waiting.send(conclusion)));
            }
            Event::Complaint(node, Complaint::Objection(objection)) => {
                trace!(node = %node.short(), %objection, "a record of a peer is not taken");
            }
            Event::Complaint(node, complaint) => {
                debug!(node = %node.short(), %complaint, "what a peer sends is not taken");
            }
        }
    }
}

/// What the node says next that others should know soon; never, if it holds no registry.
async fn said(registry: &mut Option<Registry>) -> Bytes {
    let Some(Registry { hurry, .. }) = registry else { return std::future::pending().await };
    loop {
        match hurry.recv().await {
            Ok(record) => return record,
            // What does not fit is synchronised.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn parsed(addresses: &[String]) -> Vec<Multiaddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}
