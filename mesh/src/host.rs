//! A coordinator's libp2p host: where other coordinators of its federation can dial it.
//!
//! Transport, executor and key are passed in, so that the simulation runs this code over its own. Strangers are cut off:
//! the identify exchange names the federation, and who names another one, or none in time, is disconnected. What coordinators
//! say to each other over it (gossip, sync, Kademlia) is added here as behaviours.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
pub use libp2p::Multiaddr;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::swarm::{Config, Executor, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, Swarm, Transport, connection_limits, identify, noise, ping, quic, tcp, yamux};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// A connection of a peer that has said nothing for so long is closed: long enough for identify over a slow path.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that strangers may be opening at once.
const PENDING_INCOMING_MAX: u32 = 64;
/// Connections in all: some hundreds of coordinators, with room.
const ESTABLISHED_MAX: u32 = 1024;
/// Connections of one peer: identities are free, so each gets few.
const ESTABLISHED_PER_PEER_MAX: u32 = 4;

/// Why a host does not come up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The noise handshake cannot use this key: a fault of this program.
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

/// What identify calls the federation: who says otherwise is a stranger.
pub fn protocol_version(federation: FederationId) -> String {
    format!("/hedgerow/{federation}/1")
}

/// The transport of the binaries: QUIC, and TCP with noise and yamux.
pub fn transport(key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, HostError> {
    let noise = noise::Config::new(key).map_err(|error| HostError::Setup(error.to_string()))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let quic =
        quic::tokio::Transport::new(quic::Config::new(key)).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
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

#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// What the host is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostStatus {
    /// The addresses that it is bound to.
    pub listening: Vec<Multiaddr>,
    /// Peers of its federation that are connected.
    pub peers: BTreeSet<PeerId>,
}

/// A host that is to be run.
pub struct Host {
    swarm: Swarm<Behaviour>,
    federation: FederationId,
    status: watch::Sender<HostStatus>,
}

impl Host {
    /// Binds the addresses. `transport` and `executor` are the seams for the simulation.
    pub fn new(
        key: &Keypair,
        federation: FederationId,
        transport: Boxed<(PeerId, StreamMuxerBox)>,
        executor: impl Executor + Send + 'static,
        listen: &[Multiaddr],
    ) -> Result<Self, HostError> {
        let limits = connection_limits::ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_INCOMING_MAX))
            .with_max_established(Some(ESTABLISHED_MAX))
            .with_max_established_per_peer(Some(ESTABLISHED_PER_PEER_MAX));
        let identify = identify::Config::new(protocol_version(federation), key.public())
            .with_agent_version(concat!("hedgerow/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_hide_listen_addrs(true);
        let behaviour = Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(5))),
        };
        let config = Config::with_executor(executor).with_idle_connection_timeout(IDLE_TIMEOUT);
        let mut swarm = Swarm::new(transport, behaviour, key.public().to_peer_id(), config);
        for address in listen {
            let listening = swarm.listen_on(address.clone());
            listening.map_err(|error| HostError::Listen { address: address.clone(), reason: error.to_string() })?;
        }
        Ok(Self { swarm, federation, status: watch::Sender::new(HostStatus::default()) })
    }

    /// What it is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<HostStatus> {
        self.status.subscribe()
    }

    /// Puts a host of the binaries up and runs it in a task of its own for as long as somebody holds its status.
    pub fn spawn(
        key: &SecretKey,
        federation: FederationId,
        listen: &[Multiaddr],
    ) -> Result<watch::Receiver<HostStatus>, HostError> {
        let key = keypair(key)?;
        let host = Self::new(&key, federation, transport(&key)?, TokioExecutor, listen)?;
        let status = host.status();
        tokio::spawn(host.run());
        Ok(status)
    }

    /// Waits until an address is bound: the first of `--mesh-listen`, with its port where 0 was asked for.
    pub async fn bound(&mut self) -> Multiaddr {
        loop {
            if let Some(address) = self.status.borrow().listening.first() {
                return address.clone();
            }
            let event = self.swarm.select_next_some().await;
            self.on_event(event);
        }
    }

    /// Runs for as long as somebody holds its status.
    pub async fn run(mut self) {
        loop {
            let event = tokio::select! {
                event = self.swarm.select_next_some() => event,
                () = self.status.closed() => return,
            };
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                info!(%address, "listening for coordinators");
                self.status.send_modify(|status| status.listening.push(address));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.status.send_modify(|status| status.listening.retain(|bound| *bound != address));
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "a libp2p listener failed"),
            SwarmEvent::ListenerClosed { reason, .. } => warn!(?reason, "a libp2p listener has closed"),
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.status.send_if_modified(|status| status.peers.remove(&peer_id));
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                if info.protocol_version == protocol_version(self.federation) {
                    self.status.send_if_modified(|status| status.peers.insert(peer_id));
                } else {
                    debug!(%peer_id, said = info.protocol_version, "not of this federation");
                    // An error says that it has gone already.
                    let _ = self.swarm.disconnect_peer_id(peer_id);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Error { peer_id, error, .. })) => {
                debug!(%peer_id, %error, "does not say who it is");
                let _ = self.swarm.disconnect_peer_id(peer_id);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(error) })) => {
                debug!(%peer, %error, "does not answer pings");
                self.swarm.close_connection(connection);
            }
            other => debug!(event = ?other, "libp2p"),
        }
    }
}
