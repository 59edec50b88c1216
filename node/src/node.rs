//! The running node, as its control socket and its parts see it: who it is, what it does, how far it is on its way out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::{self, Shutdown};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::record::{Roles, ServiceHealth};
use hedgerow_proto::scope::Scope;
use hedgerow_tunnel::{DialConfig, DrainState, TunnelState};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::contract::Contract;
use crate::control;
use crate::elsewhere::{Elsewhere, Outward};
use crate::entries::{Entries, EntryState, EntryView};
use crate::identity::Identity;
use crate::membership::{Member, Membership, Profile};
use crate::mesh::Mesh;
use crate::platform::Platform;
use crate::registry_view::RegistryView;
use crate::services::{LocalService, LocalServices};
use crate::status::{
    EntryStatus, HardwareStatus, LeaveProgress, MeshStatus, ServiceStatus, Stage, Status, TunnelStage,
};

/// What every part of the node may know.
pub struct Node {
    /// Its key and incarnation.
    pub identity: Identity,
    /// What it says of itself beside its services.
    pub profile: Profile,
    /// What it offers.
    pub services: Arc<LocalServices>,
    /// How far it is on its way out.
    pub shutdown: Shutdown,
    /// Tells its tunnels.
    pub drain: watch::Sender<DrainState>,
    /// Where its key is.
    pub data_dir: PathBuf,
    platform: Platform,
    failures: mpsc::Sender<Failure>,
    started: Instant,
    listen: OnceLock<SocketAddr>,
    entries: OnceLock<Arc<Entries>>,
    outward: OnceLock<Arc<Outward>>,
    memberships: Mutex<HashMap<FederationId, Membership>>,
    progress: watch::Sender<Option<LeaveProgress>>,
    random: Mutex<fastrand::Rng>,
}

impl Node {
    /// One that has no entries yet.
    pub fn new(
        identity: Identity,
        profile: Profile,
        services: Arc<LocalServices>,
        shutdown: Shutdown,
        data_dir: PathBuf,
        platform: Platform,
        failures: mpsc::Sender<Failure>,
    ) -> Arc<Self> {
        Arc::new(Self {
            profile,
            services,
            shutdown,
            drain: watch::Sender::new(DrainState::Running),
            data_dir,
            platform,
            failures,
            started: Instant::now(),
            listen: OnceLock::new(),
            entries: OnceLock::new(),
            outward: OnceLock::new(),
            memberships: Mutex::default(),
            progress: watch::Sender::new(None),
            // For jitter, not for secrets: the incarnation is random, so this is too.
            random: Mutex::new(fastrand::Rng::with_seed(identity.incarnation)),
            identity,
        })
    }

    /// Notes where it serves on the LAN; once.
    pub fn set_listen(&self, address: SocketAddr) {
        // There is one LAN port, opened once at the start.
        let _ = self.listen.set(address);
    }

    /// Notes its entries; once.
    pub fn set_entries(&self, entries: Arc<Entries>) {
        let _ = self.entries.set(entries);
    }

    /// From now on clients of its own port reach others too, while it is a coordinator; once, before it has entries.
    pub fn set_outward(&self, outward: Arc<Outward>) {
        let _ = self.outward.set(outward);
    }

    /// Whom its own port reaches beside this node and those at home here.
    pub fn elsewhere(&self) -> Vec<Arc<Elsewhere>> {
        let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        memberships.values().filter_map(|membership| membership.elsewhere.clone()).collect()
    }

    /// Where it serves on the LAN.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.listen.get().copied()
    }

    /// Its entries as they are now.
    pub fn entries(&self) -> Vec<EntryView> {
        self.entries.get().map(|entries| entries.view()).unwrap_or_default()
    }

    /// The federation of the first entry whose tunnel is up.
    pub fn federation(&self) -> Option<FederationId> {
        self.entries().iter().find(|entry| entry.is_up()).and_then(|entry| entry.federation)
    }

    /// The URL of the first entry whose tunnel is up, without a slash at its end.
    pub fn entry_url(&self) -> Option<String> {
        self.entries().iter().find(|entry| entry.is_up()).map(|entry| entry.url.trim_end_matches('/').to_owned())
    }

    /// A number for jitter and the like, another one each time.
    pub fn seed(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u64(..)
    }

    /// Requests running now, by tunnel or LAN.
    pub fn running(&self) -> u32 {
        self.services.iter().map(|service| service.in_use()).sum()
    }

    /// What the tunnels of one federation share; the node joins it if it has not. What stops it from joining is of its own
    /// making (its disk, its ports), so the node stops.
    pub fn dial_config(&self, federation: FederationId, entry: IpAddr) -> Result<DialConfig, String> {
        self.join(federation, Scope::farthest([entry]))
    }

    /// The same for an entry that is so far away.
    pub fn join(&self, federation: FederationId, scope: Scope) -> Result<DialConfig, String> {
        let mut memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(membership) = memberships.get(&federation) {
            return Ok(membership.dial_config(scope));
        }
        let membership = Membership::join(federation, &self.member()).map_err(|failure| {
            let words = failure.to_string();
            // One reason to stop is enough, if another one is on its way already.
            let _ = self.failures.try_send(failure);
            words
        })?;
        let config = membership.dial_config(scope);
        memberships.insert(federation, membership);
        Ok(config)
    }

    /// The node, as its memberships need it.
    pub fn member(&self) -> Member<'_> {
        Member {
            identity: &self.identity,
            profile: &self.profile,
            services: &self.services,
            drain: &self.drain,
            seed: self.seed(),
            platform: &self.platform,
            failures: &self.failures,
            outward: self.outward.get(),
        }
    }

    /// The registry of its federation, as this node sees it.
    pub fn registry(&self) -> RegistryView {
        let federation = self.federation();
        let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        let membership = federation.and_then(|federation| memberships.get(&federation));
        let membership = membership.or_else(|| memberships.values().next());
        membership.map(|membership| membership.replica.read(RegistryView::of)).unwrap_or_default()
    }

    /// Its parts on the mesh, one in each federation.
    pub fn meshes(&self) -> Vec<Arc<Mesh>> {
        let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        memberships.values().map(|membership| membership.mesh.clone()).collect()
    }

    /// What answers agents of the existing contract, while the node is a coordinator: in the federation of the first entry whose
    /// tunnel is up, or in any.
    pub fn contract(&self) -> Option<Arc<Contract>> {
        let federation = self.federation();
        let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        let first = federation.and_then(|federation| memberships.get(&federation));
        let membership = first.or_else(|| memberships.values().next())?;
        membership.mesh.roles().coordinates().then(|| membership.contract.clone())
    }

    /// What it is now: in one federation it may have been elected.
    fn roles(&self) -> Roles {
        let elected = self.meshes().into_iter().map(|mesh| mesh.roles()).find(|roles| *roles != self.profile.roles);
        elected.unwrap_or(self.profile.roles)
    }

    fn mesh_status(&self) -> Vec<MeshStatus> {
        let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        memberships.values().map(Membership::status).collect()
    }

    /// The addresses at which other coordinators can dial it.
    pub fn mesh_addresses(&self) -> Vec<String> {
        let listening = |mesh: Arc<Mesh>| mesh.host_status().listening;
        self.meshes().into_iter().flat_map(listening).map(|address| address.to_string()).collect()
    }

    /// Waits until its libp2p hosts are bound.
    pub async fn mesh_bound(&self) {
        for mesh in self.meshes() {
            let mut host = mesh.host.subscribe();
            // An error says that the host has ended, which its log has told.
            let Ok(Some(host)) = host.wait_for(Option::is_some).await.map(|host| host.clone()) else { continue };
            let _ = host.status().wait_for(|status| status.binding == 0).await;
        }
    }

    /// Hands over what others can look after.
    pub async fn hand_over(&self) {
        let contracts: Vec<Arc<Contract>> = {
            let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
            memberships.values().map(|membership| membership.contract.clone()).collect()
        };
        for contract in contracts {
            contract.hand_over().await;
        }
    }

    /// Says Leave in every federation and takes nothing new.
    pub fn begin_to_leave(&self) {
        self.memberships.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(Membership::leave);
        self.drain.send_replace(DrainState::Draining);
    }

    /// Ends its memberships: what it knows goes on disk.
    pub async fn end(&self) {
        let memberships = std::mem::take(&mut *self.memberships.lock().unwrap_or_else(PoisonError::into_inner));
        for membership in memberships.into_values() {
            membership.end().await;
        }
    }

    /// Ready when whoever asked it to leave has been told of the end.
    pub async fn told(&self) {
        self.progress.closed().await;
    }

    /// Tells whoever asked it to leave.
    pub fn report(&self, progress: LeaveProgress) {
        self.progress.send_if_modified(|now| {
            let news = now.as_ref() != Some(&progress);
            *now = Some(progress);
            news
        });
    }
}

impl control::Node for Node {
    fn status(&self) -> Status {
        let services: Vec<_> = self.services.iter().map(|service| service_status(service)).collect();
        Status {
            node_id: self.identity.key().id().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: role_word(self.roles()).to_owned(),
            location: self.profile.location.clone(),
            hardware: Some(HardwareStatus::of(&self.profile.hardware)),
            pid: std::process::id(),
            data_dir: self.data_dir.display().to_string(),
            uptime_ms: ms(self.started.elapsed()),
            stage: match self.shutdown.stage() {
                shutdown::Stage::Running => Stage::Running,
                shutdown::Stage::Draining | shutdown::Stage::Stopping => Stage::Draining,
            },
            listen: self.listen().map(|address| address.to_string()),
            mesh_listen: self.mesh_addresses(),
            mesh: self.mesh_status(),
            requests: services.iter().map(|service| service.requests).sum(),
            requests_running: services.iter().map(|service| service.in_use).sum(),
            entries: self.entries().into_iter().map(entry_status).collect(),
            services,
        }
    }

    fn leave(&self) -> BoxStream<'static, LeaveProgress> {
        let mut progress = self.progress.subscribe();
        // A second one who asks hears at once how far it is.
        progress.mark_changed();
        self.shutdown.drain();
        // After its end there is nothing more to tell. The stream goes on all the same, so that the connection breaks when the
        // process has ended and whoever asked knows that too.
        stream::unfold(Some(progress), |progress| async move {
            let Some(mut progress) = progress else { return std::future::pending().await };
            let now = loop {
                progress.changed().await.ok()?;
                let now = progress.borrow_and_update().clone();
                if let Some(now) = now {
                    break now;
                }
            };
            let ended = matches!(now, LeaveProgress::Left | LeaveProgress::Cut { .. });
            if !ended {
                return Some((now, Some(progress)));
            }
            Some((now, None))
        })
        .boxed()
    }
}

/// As `--role` takes it.
pub fn role_word(roles: Roles) -> &'static str {
    match roles {
        Roles::Worker => "worker",
        Roles::Coordinator => "coordinator",
        Roles::Both => "both",
    }
}

fn service_status(service: &LocalService) -> ServiceStatus {
    let (health, counts) = (service.health(), service.counts());
    ServiceStatus {
        name: service.spec.name.to_string(),
        url: service.spec.address.to_string(),
        up: health.state == ServiceHealth::Up,
        for_ms: ms(health.since.elapsed()),
        error: health.error,
        capacity: service.spec.capacity,
        in_use: service.in_use(),
        requests: counts.taken,
        refused_full: counts.refused_full,
        refused_down: counts.refused_down,
    }
}

fn entry_status(view: EntryView) -> EntryStatus {
    let mut status = EntryStatus {
        url: view.url,
        addresses: view.addresses.iter().map(ToString::to_string).collect(),
        entry_id: None,
        federation: view.federation.map(|federation| federation.to_string()),
        state: TunnelStage::Unreachable,
        for_ms: ms(view.since.elapsed()),
        rtt_ms: None,
        connections: None,
        observed: None,
        transport: None,
        why_not_quic: None,
        error: None,
        retry_in_ms: None,
        failures: 0,
    };
    match view.state {
        EntryState::Unreachable { error } => status.error = Some(error),
        EntryState::Known(known) => {
            status.entry_id = known.entry.map(|id| id.to_string());
            status.failures = known.failures;
            status.state = match known.state {
                TunnelState::Connecting => TunnelStage::Connecting,
                TunnelState::Up(up) => {
                    status.rtt_ms = Some(up.rtt.as_secs_f64() * 1000.0);
                    status.connections = Some(up.connections);
                    status.observed = Some(up.observed);
                    status.transport = Some(up.transport.as_str().to_owned());
                    status.why_not_quic = up.why_not_quic;
                    TunnelStage::Up
                }
                TunnelState::Waiting { error, until } => {
                    status.error = Some(error);
                    status.retry_in_ms = Some(ms(until.saturating_duration_since(Instant::now())));
                    TunnelStage::Waiting
                }
                TunnelState::Rejected(reject) => {
                    status.error = Some(reject.message);
                    TunnelStage::Rejected
                }
                TunnelState::Drained => TunnelStage::Left,
            };
        }
    }
    status
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
