//! The node's part in one federation: its replica of the registry, what it says of itself there, its part on the mesh, and what
//! its tunnels to that federation's entries share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_contract::DeskConfig;
use hedgerow_contract::url::UrlPolicy;
use hedgerow_mesh::host::{Multiaddr, Way};
use hedgerow_mesh::replica::{Replica, ReplicaConfig, ReplicaError, SpeakError};
use hedgerow_process::exit::Failure;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::record::{Candidacy, Hardware, Home, NodeRecord, RecordError, Roles};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::scope::Scope;
use hedgerow_tunnel::{DialConfig, DrainState, Services, tuning};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Instrument, debug, error, info};

use crate::contract::Contract;
use crate::elsewhere::{Elsewhere, Outward};
use crate::identity::Identity;
use crate::mesh::{Mesh, MeshConfig};
use crate::node::role_word;
use crate::platform::Platform;
use crate::services::LocalServices;
use crate::settings::MeshListen;
use crate::status::{MeshStatus, PeerStatus};

mod offered;

use offered::Offered;

/// The version of this software, as nodes tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Connections to one entry at most: one for each of its threads.
const LANES_MAX: u16 = tuning::LANES_MAX;
/// Lists of coordinators that wait to be read. A hint that finds no room is dropped: the next one says the same.
const COORDINATOR_HINTS: usize = 4;

/// The part of a node's record that stays the same while it runs.
#[derive(Debug, Clone)]
pub struct Profile {
    /// What it is at first.
    pub roles: Roles,
    /// Whether that may change.
    pub candidacy: Candidacy,
    /// Where it is.
    pub location: String,
    /// The version of its software: [`VERSION`].
    pub version: String,
    /// What it runs on.
    pub hardware: Hardware,
    /// Where other coordinators can dial it.
    pub mesh_listen: MeshListen,
    /// An agent of the existing contract is taken for well for so long after its last heartbeat.
    pub heartbeat_timeout: Duration,
    /// And is forgotten after so long.
    pub worker_timeout: Duration,
    /// Which URLs it may have.
    pub urls: UrlPolicy,
}

impl Profile {
    /// What the node says of itself, in this role, with its services, its addresses and its home as they are now.
    pub fn record(
        &self,
        roles: Roles,
        services: &LocalServices,
        addresses: &[Multiaddr],
        home: Option<Home>,
    ) -> NodeRecord {
        NodeRecord {
            roles,
            location: self.location.clone(),
            version: self.version.clone(),
            services: services.offers(),
            multiaddrs: addresses.iter().map(ToString::to_string).collect(),
            home: home.filter(|_| roles == Roles::Worker),
            candidacy: self.candidacy,
            hardware: self.hardware.clone(),
        }
    }
}

/// What a membership needs of its node.
pub struct Member<'a> {
    /// The key and this run of it.
    pub identity: &'a Identity,
    /// What it says of itself.
    pub profile: &'a Profile,
    /// What it offers.
    pub services: &'a Arc<LocalServices>,
    /// Whether it is leaving.
    pub drain: &'a watch::Sender<DrainState>,
    /// For jitter.
    pub seed: u64,
    /// What it runs on.
    pub platform: &'a Platform,
    /// Told when the membership cannot go on.
    pub failures: &'a mpsc::Sender<Failure>,
    /// For asking others on behalf of clients of the node's own port, if it has one.
    pub outward: Option<&'a Arc<Outward>>,
}

/// The node's part in one federation.
pub struct Membership {
    /// Its replica of the registry.
    pub replica: Replica,
    /// Its part on the mesh.
    pub mesh: Arc<Mesh>,
    /// What it answers agents of the existing contract.
    pub contract: Arc<Contract>,
    /// Whom else the node's own port reaches, if there is such a port.
    pub elsewhere: Option<Arc<Elsewhere>>,
    config: DialConfig,
    stop: watch::Sender<bool>,
    replicating: JoinHandle<()>,
    /// Ends with the membership.
    _running: JoinSet<()>,
}

impl Membership {
    /// Joins: opens the replica, says what the node is, and goes onto the mesh.
    pub fn join(federation: FederationId, member: &Member<'_>) -> Result<Self, Failure> {
        let Member { identity, profile, services, platform, failures, .. } = member;
        let replica = Replica::open(ReplicaConfig {
            data_dir: identity.data_dir().clone(),
            federation,
            limits: platform.limits.clone(),
            incarnation: identity.incarnation,
            clock: platform.clock.clone(),
        })
        .map_err(|error| cannot_go_on(&error))?;
        let (mesh, calls) = Mesh::new(MeshConfig {
            federation,
            replica: replica.clone(),
            key: identity.key().clone(),
            incarnation: identity.incarnation,
            roles: profile.roles,
            candidacy: profile.candidacy,
            listen: profile.mesh_listen.clone(),
            spawn_host: platform.spawn_host.clone(),
            seed: member.seed,
        });
        let publisher = Arc::new(Publisher {
            mesh: mesh.clone(),
            profile: (*profile).clone(),
            services: (*services).clone(),
            drain: member.drain.subscribe(),
        });
        publisher.say().map_err(|error| cannot_go_on(&error))?;
        let desk = DeskConfig {
            heartbeat_timeout: profile.heartbeat_timeout,
            worker_timeout: profile.worker_timeout,
            url_policy: profile.urls.clone(),
            ..DeskConfig::default()
        };
        let contract = Contract::new(mesh.clone(), (*services).clone(), desk, member.seed);
        let offered =
            Arc::new(Offered { services: (*services).clone(), mesh: mesh.clone(), contract: contract.clone() });
        let (config, told) = {
            let (sender, told) = mpsc::channel::<Vec<Vec<u8>>>(COORDINATOR_HINTS);
            let config = DialConfig {
                coordinators: sender,
                newer: listen_to_namesakes(&replica),
                ..tunnel_config(member, offered, replica.record())
            };
            (config, told)
        };
        let stop = watch::Sender::new(false);
        let mut running = JoinSet::new();
        // Here and wherever a node spawns: a task stays in the span of whoever spawned it, which may say whose words these are.
        running.spawn(publisher.clone().run().in_current_span());
        let say = Arc::new(move || publisher.say_or_tell());
        running.spawn(mesh.clone().run(config.clone(), say, (*failures).clone()).in_current_span());
        running.spawn(stand_for_election(mesh.clone()).in_current_span());
        running.spawn(listen(mesh.clone(), told, config.census.subscribe()).in_current_span());
        running.spawn(contract.clone().run().in_current_span());
        running.spawn(contract.clone().answer_neighbours(calls).in_current_span());
        let elsewhere = member.outward.map(|outward| Elsewhere::new(mesh.clone(), outward.clone()));
        if let Some(elsewhere) = &elsewhere {
            // Apart from the other seeds.
            running.spawn(elsewhere.clone().keep(!member.seed).in_current_span());
        }
        let (fails, failures) = (replica.clone(), (*failures).clone());
        let watched = async move {
            let error = fails.failed().await;
            // One reason to stop is enough, if another one is on its way already.
            let _ = failures.try_send(cannot_go_on(&error));
        };
        running.spawn(watched.in_current_span());
        let (runs, mut stopped) = (replica.clone(), stop.subscribe());
        let replicating = async move {
            // The sender goes with the node: then it is time to stop as well.
            runs.run(async { drop(stopped.wait_for(|stop| *stop).await) }).await;
        };
        let replicating = tokio::spawn(replicating.in_current_span());
        Ok(Self { replica, mesh, contract, elsewhere, config, stop, replicating, _running: running })
    }

    /// What the tunnels to this federation's entries share. One of these is at this address.
    pub fn dial_config(&self, entry: Scope) -> DialConfig {
        self.mesh.has_entry(entry);
        self.config.clone()
    }

    /// How it stands on the mesh.
    pub fn status(&self) -> MeshStatus {
        let (mesh, roles) = (&self.mesh, self.mesh.roles());
        let host = mesh.host_status();
        let peer = |(node, way): (&NodeId, &Way)| PeerStatus {
            node_id: node.to_string(),
            part: if host.coordinators.contains(node) || !roles.coordinates() { "coordinator" } else { "worker" }
                .into(),
            path: way.as_str().to_owned(),
            why: match host.outlooks.get(node) {
                Some(outlook) => format!("{}; {outlook}", way.why),
                None => way.why.to_string(),
            },
        };
        let peers = host.ways.iter().map(peer).collect();
        let digest = || mesh.replica.read(Registry::digest).to_string();
        MeshStatus {
            federation: mesh.federation.to_string(),
            role: role_word(roles).to_owned(),
            home: mesh.attached.borrow().map(|home| home.to_string()),
            coordinators: host.coordinators.len(),
            workers: mesh.workers.count(),
            agents: self.contract.agents(),
            digest: roles.coordinates().then(digest),
            peers,
        }
    }

    /// Signs the Leave that the tunnels pass on. One that still speaks for agents does not say it: that would be the end of them
    /// too, and they never register again. Others take them over when its lease has run out.
    pub fn leave(&self) {
        if self.contract.agents() > 0 {
            return info!("this coordinator speaks for agents that nobody took over: it goes without a word");
        }
        match self.replica.leave() {
            // Set once: whoever leaves twice has left.
            Ok(leave) => drop(self.config.leave.set(leave)),
            Err(error) => error!(%error, "the Leave cannot be signed; the entries will notice by themselves"),
        }
    }

    /// Stops the replica; it goes on disk once more.
    pub async fn end(self) {
        self.stop.send_replace(true);
        // A panic in there has been reported by its own thread.
        let _ = self.replicating.await;
    }
}

/// What every tunnel of this node is set up with, for a record of its own.
pub fn tunnel_config(member: &Member<'_>, services: Arc<dyn Services>, record: watch::Receiver<Bytes>) -> DialConfig {
    let authority =
        |service: &Arc<crate::services::LocalService>| (service.spec.name.clone(), service.spec.address.authority());
    DialConfig {
        key: member.identity.key().clone(),
        incarnation: member.identity.incarnation,
        services,
        authorities: member.services.iter().map(authority).collect(),
        record,
        leave: Arc::new(OnceLock::new()),
        drain: member.drain.subscribe(),
        coordinators: mpsc::channel(COORDINATOR_HINTS).0,
        census: watch::Sender::new(None),
        newer: mpsc::channel(1).0,
        pong_timeout: tuning::PONG_TIMEOUT,
        lanes_max: LANES_MAX,
        seed: member.seed,
    }
}

/// Says what the node is, and again whenever that changes: the health of a service, its role, its addresses, its home.
struct Publisher {
    mesh: Arc<Mesh>,
    profile: Profile,
    services: Arc<LocalServices>,
    /// Once it leaves, what it said last is Leave: nothing may come after that.
    drain: watch::Receiver<DrainState>,
}

impl Publisher {
    fn say(&self) -> Result<(), ReplicaError> {
        let mesh = &self.mesh;
        let (home, mut addresses) = (*mesh.home.borrow(), mesh.addresses());
        loop {
            let record = self.profile.record(mesh.roles(), &self.services, &addresses, home);
            match mesh.replica.announce(record) {
                // A node with many services has no room for all of its addresses: the first ones say the most.
                Err(ReplicaError::Speak(SpeakError::Record(RecordError::TooLong { .. })))
                    if addresses.pop().is_some() => {}
                said => return said,
            }
        }
    }

    fn say_or_tell(&self) {
        if *self.drain.borrow() == DrainState::Draining {
            return;
        }
        if let Err(error) = self.say() {
            error!(%error, "what the node has to say of itself cannot be said");
        }
    }

    async fn run(self: Arc<Self>) {
        let mut drain = self.drain.clone();
        let mut health = self.services.health_changes();
        health.mark_unchanged();
        let mut mesh = self.mesh.watch();
        loop {
            tokio::select! {
                changed = health.changed() => if changed.is_err() { return },
                () = mesh.changed() => {}
                _ = drain.wait_for(|drain| *drain == DrainState::Draining) => return,
            }
            self.say_or_tell();
        }
    }
}

async fn stand_for_election(mesh: Arc<Mesh>) {
    mesh.stand_for_election().await;
}

/// Takes in what the entries tell.
async fn listen(
    mesh: Arc<Mesh>,
    mut told: mpsc::Receiver<Vec<Vec<u8>>>,
    census: watch::Receiver<Option<hedgerow_proto::frame::Census>>,
) {
    let coordinators = async {
        while let Some(records) = told.recv().await {
            mesh.hear_of_coordinators(records);
        }
    };
    tokio::join!(coordinators, mesh.listen_to_census(census));
}

/// Takes in what another process with this node's key has said: the replica speaks above it, or stops.
fn listen_to_namesakes(replica: &Replica) -> mpsc::Sender<Vec<u8>> {
    let (sender, mut records) = mpsc::channel::<Vec<u8>>(1);
    let replica = replica.clone();
    let listening = async move {
        while let Some(record) = records.recv().await {
            if let Err(refused) = replica.insert(record.into(), Source::Passed(Duration::ZERO)) {
                debug!(%refused, "an entry's word of another process with this key is not taken");
            }
        }
    };
    tokio::spawn(listening.in_current_span());
    sender
}

fn cannot_go_on(error: &ReplicaError) -> Failure {
    let failure = Failure::runtime(error).means("the node stops: what it says would not count, or not be its own");
    match error {
        ReplicaError::Speak(SpeakError::KeyInUse(_)) => {
            failure.advice("stop the other process, or give one of the two a new --data-dir")
        }
        _ => failure.advice("look at the data directory: is its disk full, or read-only?"),
    }
}
