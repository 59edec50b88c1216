//! The node's part on the mesh of one federation: its libp2p host, and what it does there as a coordinator or as a worker.
//!
//! ```text
//!   coordinator: listens, gossips, synchronises (hedgerow_mesh::host); holds workers (workers)
//!   worker:      dials only; keeps one connection to its home (home), whom to ask comes from entries and homes (hints)
//!   either:      says what it is whenever that changes (membership); one that may be elected moves between the two (election)
//! ```

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_mesh::host::link::Homes;
use hedgerow_mesh::host::relay::RelayStreams;
use hedgerow_mesh::host::{HostConfig, HostError, HostHandle, HostStatus, IncomingCall, Multiaddr, Part, keypair};
use hedgerow_mesh::replica::Replica;
use hedgerow_process::exit::Failure;
use hedgerow_proto::clock::Time;
use hedgerow_proto::election::{self, Election, Move};
use hedgerow_proto::frame::Census;
use hedgerow_proto::home::seeker::moves_before;
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::record::{Candidacy, Home, Roles};
use hedgerow_proto::registry::{Reach, Registry};
use hedgerow_proto::scope::Scope;
use hedgerow_tunnel::DialConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::platform::SpawnHost;
use crate::settings::MeshListen;

pub mod addresses;
pub mod by_entry;
pub mod discovery;
pub mod hints;
pub mod home;
mod relays;
pub mod workers;

use addresses::worth_telling;
use hints::Hints;
use home::Seeker;
use workers::Workers;

/// Where a coordinator listens if its operator says nothing: on any free port, over both transports.
const LISTEN_BY_DEFAULT: [&str; 2] = ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0"];
/// Calls of the existing contract that neighbours have passed on and that wait to be answered.
const CALLS: usize = 64;
/// How long changes are gathered before Kademlia is told of them.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How long a host may take to stop, so that its port is free again.
const STOPS_WITHIN: Duration = Duration::from_secs(5);
/// How often a host that does not come up is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What the parts of the node know of its part on the mesh.
pub struct Mesh {
    /// The federation.
    pub federation: FederationId,
    /// The registry, or a worker's own records.
    pub replica: Replica,
    /// What the node is now.
    pub roles: watch::Sender<Roles>,
    /// The home that it names, while it is a worker.
    pub home: watch::Sender<Option<Home>>,
    /// The home that has taken it in.
    pub attached: watch::Sender<Option<NodeId>>,
    /// Its host, while there is one.
    pub host: watch::Sender<Option<HostHandle>>,
    /// Whom it has heard of.
    pub hints: Arc<Hints>,
    /// What an entry last said of how many coordinators there are, and when.
    pub census: watch::Sender<Option<(Time, Census)>>,
    /// Workers that are at home here.
    pub workers: Arc<Workers>,
    /// Calls that neighbours pass on go here.
    pub calls: mpsc::Sender<IncomingCall>,
    /// How far the most distant entry is.
    entry_scope: watch::Sender<Scope>,
    /// Where others reach it by way of entries.
    at_entries: watch::Sender<Vec<Multiaddr>>,
    /// The entries that can say from where its datagrams come.
    observers: watch::Sender<Vec<SocketAddr>>,
    /// How often an entry's tunnel has come up.
    came_up: watch::Sender<u64>,
    key: SecretKey,
    listen: MeshListen,
    candidacy: Candidacy,
    spawn_host: Arc<SpawnHost>,
    random: Mutex<fastrand::Rng>,
}

/// Sees what changes that a node's record says: nothing is missed between two looks.
pub struct Watch {
    roles: watch::Receiver<Roles>,
    home: watch::Receiver<Option<Home>>,
    host: watch::Receiver<Option<HostHandle>>,
    scope: watch::Receiver<Scope>,
    at_entries: watch::Receiver<Vec<Multiaddr>>,
    status: Option<watch::Receiver<HostStatus>>,
    /// Where the host listened when that was looked at last.
    listening: Vec<Multiaddr>,
}

impl Watch {
    /// Ready when something has changed, or may have.
    pub async fn changed(&mut self) {
        let Self { roles, home, host, scope, at_entries, status, listening } = self;
        let listens_elsewhere = async {
            let Some(status) = status else { return std::future::pending().await };
            loop {
                let now = status.borrow_and_update().listening.clone();
                if now != *listening {
                    *listening = now;
                    return;
                }
                // A host that has ended says nothing more; its successor does.
                if status.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut next = None;
        // The senders are this node's own: none of them goes before it.
        tokio::select! {
            _ = roles.changed() => {}
            _ = home.changed() => {}
            _ = scope.changed() => {}
            _ = at_entries.changed() => {}
            () = listens_elsewhere => {}
            _ = host.changed() => next = Some(host.borrow_and_update().as_ref().map(HostHandle::status)),
        }
        if let Some(next) = next {
            self.status = next;
        }
    }
}

/// What a part on the mesh begins with.
pub struct MeshConfig {
    /// The federation.
    pub federation: FederationId,
    /// The registry.
    pub replica: Replica,
    /// The node's key.
    pub key: SecretKey,
    /// Random for this run.
    pub incarnation: u64,
    /// What it is at first.
    pub roles: Roles,
    /// Whether that may change.
    pub candidacy: Candidacy,
    /// Where it listens as a coordinator.
    pub listen: MeshListen,
    /// Puts its host up.
    pub spawn_host: Arc<SpawnHost>,
    /// For jitter.
    pub seed: u64,
}

/// Says anew what the node is, at once.
pub type Say = dyn Fn() + Send + Sync;

impl Mesh {
    /// Nothing runs yet. What comes out of the receiver are calls that neighbours pass on.
    pub fn new(config: MeshConfig) -> (Arc<Self>, mpsc::Receiver<IncomingCall>) {
        let MeshConfig { federation, replica, key, incarnation, roles, candidacy, listen, spawn_host, seed } = config;
        let (calls, incoming) = mpsc::channel(CALLS);
        let mesh = Self {
            federation,
            workers: Arc::new(Workers::new(federation, incarnation, replica.clone())),
            hints: Arc::new(Hints::new(federation, replica.limits())),
            replica,
            roles: watch::Sender::new(roles),
            home: watch::Sender::new(None),
            attached: watch::Sender::new(None),
            host: watch::Sender::new(None),
            census: watch::Sender::new(None),
            calls,
            entry_scope: watch::Sender::new(Scope::Machine),
            at_entries: watch::Sender::new(Vec::new()),
            observers: watch::Sender::new(Vec::new()),
            came_up: watch::Sender::new(0),
            key,
            listen,
            candidacy,
            spawn_host,
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        };
        (Arc::new(mesh), incoming)
    }

    /// What the node is now.
    pub fn roles(&self) -> Roles {
        *self.roles.borrow()
    }

    /// An entry of this federation is so far away: addresses that mean something to others there are told from now on.
    pub fn has_entry(&self, scope: Scope) {
        self.entry_scope.send_if_modified(|farthest| std::mem::replace(farthest, scope.max(*farthest)) < scope);
    }

    /// Others reach it by way of entries at these addresses, and at no others.
    pub fn has_addresses_at_entries(&self, addresses: Vec<Multiaddr>) {
        self.at_entries.send_if_modified(|known| {
            let news = *known != addresses;
            *known = addresses;
            news
        });
    }

    /// These entries, and no others, can say from where its datagrams come.
    pub fn has_observers(&self, entries: Vec<SocketAddr>) {
        self.observers.send_if_modified(|known| {
            let news = *known != entries;
            *known = entries;
            news
        });
    }

    /// A tunnel to an entry has come up: what failed without it may succeed now.
    pub fn entry_came_up(&self) {
        self.came_up.send_modify(|times| *times += 1);
    }

    /// How the host is.
    pub fn host_status(&self) -> HostStatus {
        self.host.borrow().as_ref().map(|host| host.status().borrow().clone()).unwrap_or_default()
    }

    /// The addresses that others are told of.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        if !self.roles().coordinates() {
            return Vec::new();
        }
        // First those at entries, which always mean something, and which those need who have no other.
        let mut told = self.at_entries.borrow().clone();
        told.extend(worth_telling(&self.host_status().listening, *self.entry_scope.borrow()));
        told.truncate(self.replica.limits().multiaddrs_per_node_max);
        told
    }

    /// What the node's record says of its part here, as it changes from now on.
    pub fn watch(&self) -> Watch {
        Watch {
            roles: self.roles.subscribe(),
            home: self.home.subscribe(),
            host: self.host.subscribe(),
            scope: self.entry_scope.subscribe(),
            at_entries: self.at_entries.subscribe(),
            status: self.host.borrow().as_ref().map(HostHandle::status),
            listening: Vec::new(),
        }
    }

    /// Is on the mesh, in whatever role, for as long as it is polled. `config` is what its tunnels share.
    /// A host that cannot listen where its operator has said is a failure of the node.
    pub async fn run(self: Arc<Self>, config: DialConfig, say: Arc<Say>, failures: mpsc::Sender<Failure>) {
        let mut roles = self.roles.subscribe();
        let mut moves = moves_before(self.replica.epoch());
        loop {
            let role = *roles.borrow_and_update();
            let host = match self.spawn_host(role) {
                Ok(host) => host,
                Err(error @ HostError::Listen { .. }) if matches!(self.listen, MeshListen::At(_)) => {
                    let failure = Failure::runtime(&error)
                        .means("other coordinators could not dial this node there, so it stops")
                        .advice("give --mesh-listen another port (0 takes any that is free), or leave it out");
                    // One reason to stop is enough, if another one is on its way already.
                    let _ = failures.try_send(failure);
                    return;
                }
                Err(error) => {
                    warn!(%error, "this node is not on the mesh; it is tried again");
                    sleep(RETRY).await;
                    continue;
                }
            };
            let mut status = host.status();
            self.host.send_replace(Some(host.clone()));
            tokio::select! {
                () = self.be(role, &host, &config, &*say, &mut moves) => {}
                Ok(()) = roles.changed() => {}
            }
            if role.coordinates() {
                self.workers.let_go();
            }
            self.host.send_replace(None);
            drop(host);
            // Its port must be free before the next one binds it.
            let stopped = async { while status.changed().await.is_ok() {} };
            if timeout(STOPS_WITHIN, stopped).await.is_err() {
                debug!("the host of the former role has not stopped yet");
            }
        }
    }

    fn spawn_host(&self, role: Roles) -> Result<HostHandle, HostError> {
        let (part, listen) = if role.coordinates() {
            let part = Part::Coordinator {
                replica: self.replica.clone(),
                calls: self.calls.clone(),
                replication: Default::default(),
            };
            (part, self.listen_addresses())
        } else {
            (Part::Worker, Vec::new())
        };
        let seed = self.seed();
        let config = HostConfig {
            key: keypair(&self.key)?,
            federation: self.federation,
            limits: self.replica.limits(),
            part,
            listen,
            seed,
        };
        (self.spawn_host)(config)
    }

    fn seed(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u64(..)
    }

    /// Where it listens as a coordinator.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        match &self.listen {
            MeshListen::Off => Vec::new(),
            MeshListen::At(addresses) => addresses.clone(),
            MeshListen::Default => LISTEN_BY_DEFAULT.iter().filter_map(|address| address.parse().ok()).collect(),
        }
    }

    async fn be(&self, role: Roles, host: &HostHandle, config: &DialConfig, say: &Say, moves: &mut u64) {
        if !role.coordinates() {
            let seeker = Seeker {
                replica: &self.replica,
                federation: self.federation,
                config: config.clone(),
                hints: &self.hints,
                settle: &|home| {
                    self.home.send_replace(Some(home));
                    // The home takes in who names it: the record must say so before it is handed over.
                    say();
                },
                moves,
                attached: &self.attached,
                seed: self.seed(),
            };
            return tokio::select! {
                () = seeker.keep(host) => {}
                () = self.look_around(host) => {}
            };
        }
        self.home.send_if_modified(|home| home.take().is_some());
        let (Ok(homes), Ok(streams)) = (Homes::listen(host), RelayStreams::listen(host)) else { return };
        let passing_on = relays::serve(streams, &self.replica, &config.services, &config.drain);
        tokio::join!(
            self.workers.take_in(homes),
            self.workers.keep_time(),
            passing_on,
            self.tell(host),
            self.tell_of_entries(host)
        );
    }

    /// Takes in who was found on the LAN, for as long as the host runs.
    async fn look_around(&self, host: &HostHandle) {
        let mut status = host.status();
        status.mark_changed();
        while status.changed().await.is_ok() {
            let found = status.borrow_and_update().on_lan.clone();
            self.hints.find_on_lan(&found);
        }
    }

    /// Tells the host where it is reached by way of entries, and when one of them is there again.
    async fn tell_of_entries(&self, host: &HostHandle) {
        let (mut at_entries, mut came_up) = (self.at_entries.subscribe(), self.came_up.subscribe());
        let mut observers = self.observers.subscribe();
        at_entries.mark_changed();
        observers.mark_changed();
        loop {
            // The senders are this node's own: none goes before it.
            tokio::select! {
                _ = at_entries.changed() => {
                    let addresses = at_entries.borrow_and_update().clone();
                    host.announce(addresses).await;
                }
                _ = observers.changed() => {
                    let entries = observers.borrow_and_update().clone();
                    host.observe_by(entries).await;
                }
                _ = came_up.changed() => host.try_again().await,
            }
        }
    }

    /// Tells Kademlia of services, when they have changed.
    async fn tell(&self, host: &HostHandle) {
        let mut changes = self.replica.changes();
        changes.mark_changed();
        let mut services = Vec::new();
        while changes.changed().await.is_ok() {
            sleep(TELL_AFTER).await;
            changes.mark_unchanged();
            let now_offered = self.replica.read(offered);
            if services != now_offered {
                services.clone_from(&now_offered);
                host.provide(now_offered).await;
            }
        }
    }

    /// Becomes a coordinator when there are too few, and steps down when there are too many, if its operator lets it.
    pub async fn stand_for_election(&self) {
        if self.candidacy == Candidacy::Fixed {
            return std::future::pending().await;
        }
        let mut election = Election::default();
        let jitter = fastrand::Rng::with_seed(self.seed()).f32();
        let mut tick = interval(election::LOOK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (now, me) = (self.replica.now(), self.replica.node());
            let decision = if self.roles().coordinates() {
                self.replica.read(|registry| election.look_down(now, me, registry, jitter))
            } else {
                election.look_up(now, *self.census.borrow(), jitter)
            };
            match decision {
                Move::Stay => {}
                Move::Promote => {
                    info!("there are too few coordinators: this node becomes one as well");
                    self.roles.send_replace(Roles::Both);
                }
                Move::StepDown => {
                    info!("there are enough coordinators without this node: it steps down");
                    self.roles.send_replace(Roles::Worker);
                }
            }
        }
    }

    /// Takes in what an entry says of how many coordinators there are.
    pub async fn listen_to_census(&self, mut said: watch::Receiver<Option<Census>>) {
        while said.changed().await.is_ok() {
            let census = *said.borrow_and_update();
            self.census.send_replace(census.map(|census| (self.replica.now(), census)));
        }
    }

    /// Takes in the coordinators that an entry tells of: a coordinator into its registry, a worker as hints.
    pub fn hear_of_coordinators(&self, records: Vec<Vec<u8>>) {
        self.hints.hear(&records);
        if self.roles().coordinates() {
            for record in records {
                let source = hedgerow_proto::registry::Source::Passed(Duration::ZERO);
                if let Err(refused) = self.replica.insert(Bytes::from(record), source) {
                    debug!(%refused, "a coordinator's record that an entry passed on is not taken");
                }
            }
        }
    }
}

/// The services for which this coordinator knows a worker that can be reached from here.
fn offered(registry: &Registry) -> Vec<ServiceName> {
    let here = registry.workers().filter(|worker| worker.reach == Reach::Tunnel);
    let mut names: Vec<ServiceName> =
        here.flat_map(|worker| worker.node.services.iter().map(|offer| offer.name.clone())).collect();
    names.sort_unstable();
    names.dedup();
    names
}
