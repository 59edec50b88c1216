//! One node: what the product calls a membership, with all that belongs to it, over the simulation's clock, disk and network.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hedgerow_mesh::clock::Clock;
use hedgerow_mesh::data_dir::{DataDir, Waiting};
use hedgerow_mesh::host::paths::{self, EntryTransport};
use hedgerow_mesh::host::{Host, HostConfig, HostError};
use hedgerow_mesh::replica::Replica;
use hedgerow_node::entries::UpEntry;
use hedgerow_node::identity::Identity;
use hedgerow_node::membership::{self, Member, Membership, Profile};
use hedgerow_node::mesh::{Mesh, by_entry};
use hedgerow_node::platform::{Connect, Platform};
use hedgerow_node::probe;
use hedgerow_node::service_spec::{ServiceAddress, ServiceSpec};
use hedgerow_node::services::LocalServices;
use hedgerow_node::settings::MeshListen;
use hedgerow_process::exit::Failure;
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Candidacy, Roles};
use hedgerow_proto::registry::{Digest, Registry};
use hedgerow_proto::scope::Scope;
use hedgerow_sim_core::version;
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::{BoxIo, DrainState, TunnelState, TunnelStatus, maintain};
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, info, warn};

use super::clock::MachineClock;
use super::entry::{Entry, WayTo};
use super::process::Process;
use crate::net::transport::{Security, to_entries, upgraded};
use crate::net::{Network, address};

/// Where coordinators listen.
pub(super) const MESH_PORT: u16 = 4001;
/// Where the first service of a node listens, on its own machine.
pub(super) const SERVICE_PORT: u16 = 8000;
/// What agents of the existing contract are given, as the binary does by default.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long what a node was doing may take to end with it.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Why a node does not start, or does not end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The product says so.
    #[error("node {node} does not start: {reason}")]
    Start {
        /// Which.
        node: u32,
        /// In the product's words.
        reason: String,
    },
    /// Something of it still holds its data directory.
    #[error("node {node} was killed and something of it lives on: a task that nothing ends")]
    LivesOn {
        /// Which.
        node: u32,
    },
    /// The simulation's own disk does not do what it must.
    #[error("the data directory of node {node} cannot be prepared: {error}")]
    Disk {
        /// Which.
        node: u32,
        /// What the system says.
        error: std::io::Error,
    },
}

/// What a node is, whatever happens to it.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) node: u32,
    pub(super) federation: FederationId,
    pub(super) directory: PathBuf,
    pub(super) roles: Roles,
    pub(super) candidacy: Candidacy,
    pub(super) services: Vec<(ServiceName, u32)>,
    pub(super) limits: Limits,
    /// It says things that this version cannot read.
    pub(super) later_version: bool,
    pub(super) security: Security,
    pub(super) seed: u64,
}

/// A node that runs.
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) membership: Membership,
    pub(super) failed: mpsc::Receiver<Failure>,
    drain: watch::Sender<DrainState>,
    /// How its tunnels are: they are kept up for as long as somebody wants to know.
    _tunnels: Vec<watch::Receiver<TunnelStatus>>,
    data_dir: Arc<DataDir>,
}

impl Plan {
    /// Starts the node with what is in its directory.
    pub(super) fn start(
        &self,
        network: &Network,
        clock: Arc<MachineClock>,
        entries: &[Entry],
    ) -> Result<Running, NodeError> {
        let process = Process::of(self.node);
        process.clone().within(|| {
            let started = self.start_within(network, clock, entries, process);
            started
                .inspect(|running| info!(id = %running.id(), "starts"))
                .inspect_err(|error| warn!(%error, "cannot start"))
        })
    }

    fn start_within(
        &self,
        network: &Network,
        clock: Arc<MachineClock>,
        entries: &[Entry],
        process: Process,
    ) -> Result<Running, NodeError> {
        let start = |reason: &dyn std::fmt::Display| NodeError::Start { node: self.node, reason: reason.to_string() };
        let data_dir = DataDir::open_with(&self.directory, Waiting::InPlace).map_err(|error| start(&error))?;
        let identity = Identity::of(data_dir).map_err(|failure| start(&failure))?;
        let listen = address::multiaddr(address::of(self.node, MESH_PORT));
        let profile = Profile {
            roles: self.roles,
            candidacy: self.candidacy,
            location: String::new(),
            version: if self.later_version { version::LATER } else { membership::VERSION }.to_owned(),
            hardware: Default::default(),
            mesh_listen: MeshListen::At(vec![listen]),
            heartbeat_timeout: AGENT_TIMEOUT,
            worker_timeout: AGENT_TIMEOUT,
            urls: Default::default(),
        };
        let services = Arc::new(LocalServices::over(self.specs(), || {
            Box::new(OwnMachine { network: network.clone(), node: self.node })
        }));
        let platform = self.platform(network, clock, process.clone());
        let drain = watch::Sender::new(DrainState::Running);
        let (failures, failed) = mpsc::channel(1);
        let member = Member {
            identity: &identity,
            profile: &profile,
            services: &services,
            drain: &drain,
            seed: self.seed,
            platform: &platform,
            failures: &failures,
            outward: None,
        };
        let membership = Membership::join(self.federation, &member).map_err(|failure| start(&failure))?;
        // The addresses of the simulation are those of a private network, and so are those of its entries.
        let config = membership.dial_config(Scope::Network);
        let me = membership.replica.node();
        let tunnels = entries.iter().map(|entry| {
            let status = TunnelStatus { entry: None, state: TunnelState::Connecting, failures: 0 };
            let (sender, status) = watch::channel(status);
            let way = WayTo { entry: entry.clone(), network: network.clone(), from: self.node, me };
            process.spawn(maintain(config.clone(), Arc::new(way), sender));
            status
        });
        let tunnels: Vec<_> = tunnels.collect();
        process.spawn(follow_entries(entries.to_vec(), tunnels.clone(), membership.mesh.clone()));
        for service in services.iter() {
            let (services, service) = (services.clone(), service.clone());
            process.spawn(async move { probe::watch(&services, &service, || {}).await });
        }
        process.spawn(async move { services.sweep().await });
        if self.later_version {
            process.spawn(speak_of_later(membership.replica.clone(), membership.mesh.roles.subscribe()));
        }
        let data_dir = identity.data_dir().clone();
        Ok(Running { process, membership, failed, drain, _tunnels: tunnels, data_dir })
    }

    fn platform(&self, network: &Network, clock: Arc<dyn Clock>, process: Process) -> Platform {
        let (network, node, security) = (network.clone(), self.node, self.security);
        let spawn_host = move |config: HostConfig| {
            let (arrivals, arriving) = paths::arrivals();
            let by_entry = EntryTransport::new(to_entries(&network, node), arriving);
            let transport = upgraded(&network, node, &config.key, security, Some(by_entry));
            let transport = transport.map_err(|error| HostError::Setup(error.to_string()))?;
            let (mut host, handle) = Host::new(config, transport, process.clone())?;
            let handle = host.listen_for_entries(handle, arrivals)?;
            process.spawn(host.run());
            Ok(handle)
        };
        Platform { clock, limits: self.limits.clone(), spawn_host: Arc::new(spawn_host) }
    }

    fn specs(&self) -> Vec<ServiceSpec> {
        let spec = |(port, (name, capacity)): (u16, &(ServiceName, u32))| ServiceSpec {
            name: name.clone(),
            address: ServiceAddress { host: address::of(self.node, port).ip().to_string(), port },
            capacity: *capacity,
            health: None,
        };
        (SERVICE_PORT..).zip(&self.services).map(spec).collect()
    }
}

impl Running {
    pub(super) fn id(&self) -> NodeId {
        self.membership.replica.node()
    }

    pub(super) fn digest(&self) -> Digest {
        self.membership.replica.read(Registry::digest)
    }

    pub(super) fn coordinates(&self) -> bool {
        self.membership.mesh.roles().coordinates()
    }

    /// Says that it goes.
    pub(super) async fn say_leave(&self) {
        let last_words = async {
            info!("leaves");
            self.membership.contract.hand_over().await;
            self.membership.leave();
            self.drain.send_replace(DrainState::Draining);
        };
        last_words.instrument(self.process.span()).await;
    }

    /// Kills it. What it would have written in an orderly end is not written.
    pub(super) async fn kill(self, plan: &Plan, network: &Network) -> Result<(), NodeError> {
        let node = plan.node;
        self.process.within(|| info!("is killed"));
        network.silence_links(node);
        let before = Files::read(&plan.directory).map_err(|error| NodeError::Disk { node, error })?;
        let Self { process, membership, data_dir, drain, _tunnels: tunnels, .. } = self;
        process.kill().await;
        drop((membership, drain, tunnels));
        let ended = async {
            while Arc::strong_count(&data_dir) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::time::timeout(ENDS_WITHIN, ended).await;
        drop(data_dir);
        ended.map_err(|_| NodeError::LivesOn { node })?;
        before.restore(&plan.directory).map_err(|error| NodeError::Disk { node, error })
    }
}

/// Tells the node's part on the mesh where it is reached by way of entries, as the binary does.
async fn follow_entries(entries: Vec<Entry>, tunnels: Vec<watch::Receiver<TunnelStatus>>, mesh: Arc<Mesh>) {
    let changed = watch::Sender::new(0);
    let mut each: Vec<_> = tunnels.clone();
    let up = || {
        let up = entries.iter().zip(&tunnels).filter_map(|(entry, tunnel)| {
            let known = (entry.key.id(), &entry.url(), entry.federation);
            UpEntry::of(known, [entry.clients().ip()], &tunnel.borrow())
        });
        up.collect()
    };
    let telling = by_entry::follow(changed.subscribe(), up, || Some(vec![mesh.clone()]));
    let noticing = each.iter_mut().map(async |tunnel| {
        while tunnel.changed().await.is_ok() {
            changed.send_modify(|times| *times += 1);
        }
    });
    tokio::join!(telling, join_all(noticing));
}

/// Says what this version cannot read, whenever the node begins to coordinate: what a worker says beside its own record goes nowhere.
async fn speak_of_later(replica: Replica, mut roles: watch::Receiver<Roles>) {
    let mut coordinated = false;
    loop {
        let coordinates = roles.borrow_and_update().coordinates();
        if coordinates && !coordinated {
            // What finds no room is not said.
            drop(replica.say(version::unknown()));
        }
        coordinated = coordinates;
        if roles.changed().await.is_err() {
            return;
        }
    }
}

/// What was in a data directory at some moment: some of a killed node's tasks end in an orderly way, which a killed process would
/// not have done.
struct Files(Vec<(PathBuf, Vec<u8>)>);

impl Files {
    fn read(directory: &Path) -> std::io::Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            files.push((path.clone(), std::fs::read(path)?));
        }
        Ok(Self(files))
    }

    fn restore(self, directory: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            std::fs::remove_file(entry?.path())?;
        }
        let mut made = std::fs::OpenOptions::new();
        made.write(true).create_new(true).mode(0o600);
        // Also on a disk that is full: it is there already.
        self.0.into_iter().try_for_each(|(path, content)| made.open(path)?.write_all(&content))
    }
}

/// Connects to services on the node's own machine.
struct OwnMachine {
    network: Network,
    node: u32,
}

impl Connect for OwnMachine {
    fn connect<'a>(&'a self, service: &'a ServiceAddress) -> BoxFuture<'a, std::io::Result<BoxIo>> {
        Box::pin(async move {
            let stream = self.network.dial(self.node, address::of(self.node, service.port)).await?;
            Ok(Box::new(stream) as BoxIo)
        })
    }
}
