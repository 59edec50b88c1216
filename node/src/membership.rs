//! The node's part in one federation: its replica of the registry, what it says of itself there, and what its tunnels to that
//! federation's entries share.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hedgerow_mesh::clock::SystemClock;
use hedgerow_mesh::host::{Host, HostStatus, Multiaddr};
use hedgerow_mesh::replica::{Replica, ReplicaConfig, ReplicaError};
use hedgerow_process::exit::Failure;
use hedgerow_proto::frame::{Preface, Refusal, StreamKind};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Hardware, NodeRecord, Roles};
use hedgerow_proto::registry::Source;
use hedgerow_proto::sync::Session;
use hedgerow_tunnel::link::{BoxFuture, BoxStream};
use hedgerow_tunnel::serve::OtherStream;
use hedgerow_tunnel::{DialConfig, DrainState, OpenService, Services};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error};

use crate::identity::Identity;
use crate::services::LocalServices;
use crate::settings::MeshListen;

/// Connections to one entry at most: one for each of its threads.
const LANES_MAX: u16 = hedgerow_tunnel::tuning::LANES_MAX;
/// Lists of coordinators that wait to be read. A hint that finds no room is dropped: the next one says the same.
const COORDINATOR_HINTS: usize = 4;

/// The part of a node's record that stays the same while it runs.
#[derive(Debug, Clone)]
pub struct Profile {
    /// What it is.
    pub roles: Roles,
    /// Where it is.
    pub location: String,
    /// What it runs on.
    pub hardware: Hardware,
    /// Where other coordinators can dial it.
    pub mesh_listen: MeshListen,
}

impl Profile {
    /// What the node says of itself, with its services and its libp2p addresses as they are now.
    pub fn record(&self, services: &LocalServices, addresses: &[Multiaddr]) -> NodeRecord {
        let addresses = addresses.iter().take(Limits::PRODUCTION.multiaddrs_per_node_max);
        NodeRecord {
            roles: self.roles,
            location: self.location.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: services.offers(),
            multiaddrs: addresses.map(ToString::to_string).collect(),
            home: None,
            candidacy: Default::default(),
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
    /// Told when the membership cannot go on.
    pub failures: &'a mpsc::Sender<Failure>,
}

/// The node's part in one federation.
pub struct Membership {
    /// Its replica of the registry.
    pub replica: Replica,
    /// Its libp2p host, as far as it has one.
    pub host: watch::Receiver<HostStatus>,
    config: DialConfig,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Membership {
    /// Joins: opens the replica, puts the libp2p host up if one is asked for, and says what the node is.
    pub fn join(federation: FederationId, member: &Member<'_>) -> Result<Self, Failure> {
        let host = match member.profile.mesh_listen.addresses() {
            [] => watch::Sender::new(HostStatus::default()).subscribe(),
            addresses => Host::spawn(member.identity.key(), federation, addresses).map_err(|error| {
                Failure::runtime(&error)
                    .means("other coordinators could not dial this node there, so it stops")
                    .advice("give --mesh-listen another port (0 takes any that is free), or leave it out")
            })?,
        };
        let replica = Replica::open(ReplicaConfig {
            data_dir: member.identity.data_dir().clone(),
            federation,
            limits: Limits::PRODUCTION,
            incarnation: member.identity.incarnation,
            clock: Arc::new(SystemClock),
        })
        .map_err(|error| cannot_go_on(&error))?;
        let record = publish(&replica, member, host.clone()).map_err(|error| cannot_go_on(&error))?;
        let services = Arc::new(Offered {
            services: member.services.clone(),
            replica: member.profile.roles.coordinates().then(|| replica.clone()),
        });
        let config = DialConfig {
            coordinators: listen_to_hints(&replica),
            newer: listen_to_namesakes(&replica),
            ..tunnel_config(member, services, record)
        };
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let (runs, fails, failures) = (replica.clone(), replica.clone(), member.failures.clone());
        tokio::spawn(async move {
            let error = fails.failed().await;
            // One reason to stop is enough, if another one is on its way already.
            let _ = failures.try_send(cannot_go_on(&error));
        });
        let running = tokio::spawn(async move {
            // The sender goes with the node: then it is time to stop as well.
            runs.run(async { drop(stopped.wait_for(|stop| *stop).await) }).await;
        });
        Ok(Self { replica, host, config, stop, running })
    }

    /// What the tunnels to this federation's entries share.
    pub fn dial_config(&self) -> DialConfig {
        self.config.clone()
    }

    /// Signs the Leave that the tunnels pass on.
    pub fn leave(&self) {
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
        let _ = self.running.await;
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
        lanes_max: LANES_MAX,
        seed: member.seed,
    }
}

/// Says what the node is, and again whenever the health of a service or an address of the libp2p host changes, until it
/// leaves. Returns the signed record, as it is by now.
fn publish(
    replica: &Replica,
    member: &Member<'_>,
    mut host: watch::Receiver<HostStatus>,
) -> Result<watch::Receiver<Bytes>, ReplicaError> {
    let (replica, profile, services) = (replica.clone(), member.profile.clone(), member.services.clone());
    let mut changes = services.health_changes();
    changes.mark_unchanged();
    let mut drain = member.drain.subscribe();
    let mut addresses = host.borrow_and_update().listening.clone();
    replica.announce(profile.record(&services, &addresses))?;
    let mut signed = replica.record();
    let (sender, record) = watch::channel(signed.borrow_and_update().clone().unwrap_or_default());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = signed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let Some(bytes) = signed.borrow_and_update().clone() {
                        sender.send_replace(bytes);
                    }
                    continue;
                }
                changed = changes.changed() => if changed.is_err() { return },
                Ok(()) = host.changed() => {
                    let now = &host.borrow_and_update().listening;
                    if *now == addresses {
                        continue;
                    }
                    addresses.clone_from(now);
                }
                // What it said last is Leave: nothing may come after that.
                _ = drain.wait_for(|drain| *drain == DrainState::Draining) => return,
            }
            if let Err(error) = replica.announce(profile.record(&services, &addresses)) {
                error!(%error, "what the node has to say of itself cannot be said");
            }
        }
    });
    Ok(record)
}

/// Takes the records of coordinators in that the entries pass on.
fn listen_to_hints(replica: &Replica) -> mpsc::Sender<Vec<Vec<u8>>> {
    let (sender, mut hints) = mpsc::channel::<Vec<Vec<u8>>>(COORDINATOR_HINTS);
    let replica = replica.clone();
    tokio::spawn(async move {
        while let Some(records) = hints.recv().await {
            for record in records {
                if let Err(refused) = replica.insert(record.into(), Source::Passed(std::time::Duration::ZERO)) {
                    debug!(%refused, "a coordinator's record that an entry passed on is not taken");
                }
            }
        }
    });
    sender
}

/// Takes in what another process with this node's key has said: the replica speaks above it, or stops.
fn listen_to_namesakes(replica: &Replica) -> mpsc::Sender<Vec<u8>> {
    let (sender, mut records) = mpsc::channel::<Vec<u8>>(1);
    let replica = replica.clone();
    tokio::spawn(async move {
        while let Some(record) = records.recv().await {
            if let Err(refused) = replica.insert(record.into(), Source::Passed(std::time::Duration::ZERO)) {
                debug!(%refused, "an entry's word of another process with this key is not taken");
            }
        }
    });
    sender
}

fn cannot_go_on(error: &ReplicaError) -> Failure {
    let failure = Failure::runtime(error).means("the node stops: what it says would not count, or not be its own");
    match error {
        ReplicaError::KeyInUse(_) => failure.advice("stop the other process, or give one of the two a new --data-dir"),
        _ => failure.advice("look at the data directory: is its disk full, or read-only?"),
    }
}

/// What the tunnels of a membership can ask for: the services, and of a coordinator the registry.
struct Offered {
    services: Arc<LocalServices>,
    replica: Option<Replica>,
}

impl Services for Offered {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        self.services.open(preface)
    }

    fn other(&self, preface: &Preface) -> Option<OtherStream> {
        let replica = self.replica.clone().filter(|_| preface.kind == StreamKind::Sync)?;
        Some(Box::new(move |stream| Box::pin(synchronise(replica, stream))))
    }
}

async fn synchronise(replica: Replica, mut stream: BoxStream) {
    match replica.sync_over(&mut stream, Session::respond()).await {
        // The other end has all that it wanted: whether it hears that this one is done does not matter.
        Ok(_) => drop(stream.shutdown().await),
        Err(error) => debug!(%error, "a synchronisation broke off"),
    }
}
