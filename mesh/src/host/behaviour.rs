//! The libp2p behaviours of a node, and how each is set up. Every protocol's name holds the federation id, so that another
//! federation's nodes have nothing to say to each other even before they have found out.

use std::num::NonZeroUsize;
use std::time::Duration;

use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use libp2p::gossipsub::{self, IdentTopic, MessageId};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, allow_block_list, connection_limits, identify, kad, ping, request_response};

use super::exchange::{AppointmentCodec, PeerCodec};
use super::frugal::Frugal;
use super::lan::Lan;
use super::paths::Path;
use super::{HostError, Multiaddr, Replication};

/// Connections that strangers may be opening at once.
const PENDING_INCOMING_MAX: u32 = 256;
/// Connections of one peer: identities are free, so each gets few. Two peers that dial each other at once have two.
const ESTABLISHED_PER_PEER_MAX: u32 = 4;
/// Connections among coordinators, beside those of workers.
const ESTABLISHED_COORDINATORS_MAX: u32 = 512;
/// A peer is pinged this often, and closed when it does not answer: gossipsub waits for the next ping when a connection was
/// swapped under it.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A worker pings its home down the control stream, and is pinged by it: its own pings of libp2p would say nothing new. They cannot be
/// turned off, so they are seldom.
const PING_INTERVAL_WORKER: Duration = Duration::from_secs(600);
/// How long a peer may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Gossipsub's heartbeat: how long a lost message takes to be asked for again.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// To how many neighbours a message is passed on, and within what bounds: every record arrives about so many times, and each time its
/// signature is verified. Gossipsub's own six are for networks with nothing behind it; here the synchronisation is.
const GOSSIP_DEGREE: usize = 4;
const GOSSIP_DEGREE_LOW: usize = 3;
const GOSSIP_DEGREE_HIGH: usize = 8;
/// Of those at least so many that this node has dialled itself: strangers that dial it cannot be all.
const GOSSIP_OUTBOUND_MIN: usize = 2;
/// How many others are told each heartbeat which messages there are.
const GOSSIP_LAZY: usize = 3;
/// How long the ids of messages are remembered, so that none is handled twice.
const DUPLICATES_REMEMBERED: Duration = Duration::from_secs(120);
/// What the libp2p envelope adds to a record, in bytes: topic, key, sequence number, signature.
const GOSSIP_ENVELOPE_BYTES: usize = 1024;
/// Queries of Kademlia end after this.
const KAD_QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// A provider record is a hint: it is said again every so often, and forgotten soon.
const KAD_PROVIDER_TTL: Duration = Duration::from_secs(30 * 60);
const KAD_PROVIDER_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Services for which providers are remembered.
const KAD_PROVIDED_KEYS_MAX: usize = 4096;
/// How long a request to a peer may take: a turn of a synchronisation over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one connection at once.
const REQUESTS_AT_ONCE_MAX: usize = 32;

/// Where a coordinator listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listens {
    Nowhere,
    /// But not over QUIC.
    Somewhere,
    OverQuic,
}

impl Listens {
    pub(super) fn at(addresses: &[Multiaddr]) -> Self {
        match addresses {
            [] => Self::Nowhere,
            all if all.iter().any(|address| Path::of(address) == Path::DirectQuic) => Self::OverQuic,
            _ => Self::Somewhere,
        }
    }
}

/// The protocols' names.
#[derive(Debug, Clone)]
pub(super) struct Names {
    federation: FederationId,
}

impl Names {
    pub(super) fn of(federation: FederationId) -> Self {
        Self { federation }
    }

    fn name(&self, protocol: &str) -> String {
        format!("/hedgerow/{}/{protocol}", self.federation)
    }

    fn stream(&self, protocol: &str) -> StreamProtocol {
        // It begins with a slash, which is all that is asked of it.
        StreamProtocol::try_from_owned(self.name(protocol)).unwrap_or(StreamProtocol::new("/hedgerow"))
    }

    /// What identify calls the federation: who says otherwise is a stranger.
    pub(super) fn identify(&self) -> String {
        self.name("1")
    }

    /// Whether a peer is of this federation: it says so, or speaks one of these protocols, as other implementations do which cannot
    /// choose what identify says. A stranger's claim either way; whom to believe what is another matter.
    pub(super) fn are_spoken_by(&self, info: &identify::Info) -> bool {
        let prefix = self.name("");
        info.protocol_version == self.identify()
            || info.protocols.iter().any(|protocol| protocol.as_ref().starts_with(&prefix))
    }

    /// The topic of records.
    pub(super) fn topic(&self) -> IdentTopic {
        IdentTopic::new(self.name("registry/1"))
    }

    /// What coordinators ask each other.
    pub(super) fn peer(&self) -> StreamProtocol {
        self.stream("peer/1")
    }

    /// Where and when to punch a hole.
    pub(super) fn punch(&self) -> StreamProtocol {
        self.stream("punch/1")
    }

    /// A worker's control stream to its home.
    pub(super) fn home(&self) -> StreamProtocol {
        self.stream("home/1")
    }

    /// A coordinator's streams to another one.
    pub(super) fn relay(&self) -> StreamProtocol {
        self.stream("relay/1")
    }

    /// A home's streams to its workers.
    pub(super) fn tunnel(&self) -> StreamProtocol {
        self.stream("tunnel/1")
    }
}

/// What a node does on libp2p. A worker has no part in gossip, Kademlia and requests: it keeps one connection to its home.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(super) limits: connection_limits::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) streams: libp2p_stream::Behaviour,
    pub(super) lan: Toggle<Lan>,
    pub(super) gossip: Toggle<gossipsub::Behaviour>,
    pub(super) kad: Toggle<Frugal>,
    pub(super) peers: Toggle<request_response::Behaviour<PeerCodec>>,
    pub(super) appointments: Toggle<request_response::Behaviour<AppointmentCodec>>,
}

impl Behaviour {
    /// What every node does.
    pub(super) fn worker(key: &Keypair, names: &Names, limits: &Limits) -> Self {
        let workers = u32::try_from(limits.attachments_per_sponsor_max).unwrap_or(u32::MAX);
        let limits = connection_limits::ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_INCOMING_MAX))
            .with_max_established(Some(workers.saturating_add(ESTABLISHED_COORDINATORS_MAX)))
            .with_max_established_per_peer(Some(ESTABLISHED_PER_PEER_MAX));
        let identify = identify::Config::new(names.identify(), key.public())
            .with_agent_version(concat!("hedgerow/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_hide_listen_addrs(true);
        Self {
            blocked: allow_block_list::Behaviour::default(),
            limits: connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(identify),
            ping: pings(PING_INTERVAL_WORKER),
            streams: libp2p_stream::Behaviour::new(),
            lan: None.into(),
            gossip: None.into(),
            kad: None.into(),
            peers: None.into(),
            appointments: None.into(),
        }
    }

    /// What a coordinator does beside.
    pub(super) fn coordinator(
        key: &Keypair,
        names: &Names,
        limits: &Limits,
        replication: Replication,
        listens: Listens,
    ) -> Result<Self, HostError> {
        let gossip = replication.gossips().then(|| gossip(key, names, limits)).transpose()?;
        let requests = request_response::Config::default()
            .with_request_timeout(REQUEST_TIMEOUT)
            .with_max_concurrent_streams(REQUESTS_AT_ONCE_MAX);
        let peers = request_response::Behaviour::with_codec(
            PeerCodec::peer(),
            [(names.peer(), request_response::ProtocolSupport::Full)],
            requests.clone(),
        );
        let appointments = || {
            request_response::Behaviour::with_codec(
                AppointmentCodec::appointment(),
                [(names.punch(), request_response::ProtocolSupport::Full)],
                requests,
            )
        };
        Ok(Self {
            gossip: gossip.into(),
            kad: Some(kademlia(key, names, listens != Listens::Nowhere)).into(),
            peers: Some(peers).into(),
            ping: pings(PING_INTERVAL),
            // Holes are punched with QUIC, from where it listens.
            appointments: (listens == Listens::OverQuic).then(appointments).into(),
            ..Self::worker(key, names, limits)
        })
    }
}

fn pings(interval: Duration) -> ping::Behaviour {
    ping::Behaviour::new(ping::Config::new().with_interval(interval).with_timeout(PING_TIMEOUT))
}

/// Gossipsub: records in a hurry. Messages are signed by their publisher, so that a flood has a name; nothing is forwarded
/// before the registry has taken it.
fn gossip(key: &Keypair, names: &Names, limits: &Limits) -> Result<gossipsub::Behaviour, HostError> {
    let setup = |error: &dyn std::fmt::Display| HostError::Setup(error.to_string());
    let topic = names.topic();
    let mut config = gossipsub::ConfigBuilder::default();
    config
        .protocol_id_prefix(names.name("gossip"))
        .heartbeat_interval(HEARTBEAT)
        .heartbeat_initial_delay(HEARTBEAT)
        .mesh_n(GOSSIP_DEGREE)
        .mesh_n_low(GOSSIP_DEGREE_LOW)
        .mesh_n_high(GOSSIP_DEGREE_HIGH)
        .mesh_outbound_min(GOSSIP_OUTBOUND_MIN)
        .gossip_lazy(GOSSIP_LAZY)
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        // The same record is the same message, whoever publishes it.
        .message_id_fn(|message: &gossipsub::Message| {
            use sha2::Digest;
            MessageId::new(&sha2::Sha256::digest(&message.data)[..20])
        })
        .max_transmit_size(limits.record_bytes_max + GOSSIP_ENVELOPE_BYTES)
        .duplicate_cache_time(DUPLICATES_REMEMBERED);
    let config = config.build().map_err(|error| setup(&error))?;
    let authenticity = gossipsub::MessageAuthenticity::Signed(key.clone());
    let mut behaviour: gossipsub::Behaviour =
        gossipsub::Behaviour::new(authenticity, config).map_err(|error| setup(&error))?;
    let (mut scores, thresholds) = (gossipsub::PeerScoreParams::default(), gossipsub::PeerScoreThresholds::default());
    // Volunteers share addresses (a university, a carrier's NAT): that is no fault of theirs.
    scores.ip_colocation_factor_weight = 0.0;
    // Idle is what a good federation is, so nobody is punished for delivering nothing; what is wrong counts fully.
    let scored = gossipsub::TopicScoreParams {
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        ..gossipsub::TopicScoreParams::default()
    };
    scores.topics.insert(topic.hash(), scored);
    behaviour.with_peer_score(scores, thresholds).map_err(|error| setup(&error))?;
    behaviour.subscribe(&topic).map_err(|error| setup(&error))?;
    Ok(behaviour)
}

/// Kademlia: says who may know providers of a service. Nothing that it says is believed, and it keeps no
/// values at all.
fn kademlia(key: &Keypair, names: &Names, dialable: bool) -> Frugal {
    let me = key.public().to_peer_id();
    let store = kad::store::MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: kad::K_VALUE.get(),
        max_provided_keys: KAD_PROVIDED_KEYS_MAX,
    };
    let mut config = kad::Config::new(names.stream("kad/1"));
    config
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_query_timeout(KAD_QUERY_TIMEOUT)
        // Its tables are filled from the registry.
        .set_periodic_bootstrap_interval(None)
        .set_provider_record_ttl(Some(KAD_PROVIDER_TTL))
        .set_provider_publication_interval(Some(KAD_PROVIDER_INTERVAL))
        .set_replication_factor(NonZeroUsize::new(3).unwrap_or(kad::K_VALUE));
    let mut behaviour = kad::Behaviour::with_config(me, kad::store::MemoryStore::with_config(me, store), config);
    // Only who can be dialled is worth knowing to others.
    behaviour.set_mode(Some(if dialable { kad::Mode::Server } else { kad::Mode::Client }));
    Frugal(behaviour)
}
