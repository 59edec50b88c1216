//! Coordinators and workers on loopback.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_mesh::clock::SystemClock;
use hedgerow_mesh::data_dir::DataDir;
use hedgerow_mesh::host::{
    Host, HostConfig, HostHandle, IncomingCall, LanDiscovery, Multiaddr, Part, Replication, keypair,
};
use hedgerow_mesh::replica::{Replica, ReplicaConfig};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{
    Attachment, AttachmentState, Body, Guest, GuestDetails, GuestStatus, Home, NodeRecord, Roles, Signed, Version,
};
use hedgerow_proto::registry::{Digest, Registry, Source};
use tokio::sync::mpsc;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const FEDERATION: FederationId = FederationId([3; 32]);

/// A coordinator with all that it is made of. Its host stops when it is dropped.
pub(crate) struct Coordinator {
    pub(crate) replica: Replica,
    pub(crate) host: HostHandle,
    pub(crate) addresses: Vec<Multiaddr>,
    pub(crate) calls: mpsc::Receiver<IncomingCall>,
    /// Renews its lease.
    _running: tokio::task::JoinSet<()>,
    _directory: tempfile::TempDir,
}

/// Nobody need be trusted: entries are in the clear here.
pub(crate) fn trust() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(versions.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
}

pub(crate) fn record(roles: Roles, addresses: &[Multiaddr]) -> NodeRecord {
    NodeRecord {
        roles,
        location: "loopback".into(),
        version: "0.1.0".into(),
        services: vec![],
        multiaddrs: addresses.iter().map(ToString::to_string).collect(),
        home: None,
        candidacy: Default::default(),
        hardware: Default::default(),
    }
}

pub(crate) fn open_replica(directory: &std::path::Path, incarnation: u64) -> Replica {
    Replica::open(ReplicaConfig {
        data_dir: Arc::new(DataDir::open(directory).unwrap()),
        federation: FEDERATION,
        limits: Limits::PRODUCTION,
        incarnation,
        clock: Arc::new(SystemClock),
    })
    .unwrap()
}

impl Coordinator {
    /// One that knows of `seeds` what an entry would tell it.
    pub(crate) async fn start(seeds: &[&Self]) -> Self {
        Self::start_with(seeds, Replication::Both, "/ip4/127.0.0.1/tcp/0").await
    }

    pub(crate) async fn start_with(seeds: &[&Self], replication: Replication, listen: &str) -> Self {
        Self::start_at(seeds, replication, &[listen], |_| Vec::new()).await
    }

    /// One that listens there and says nothing of it: it names these addresses alone.
    pub(crate) async fn start_hidden(
        seeds: &[&Self],
        listen: &str,
        named: impl FnOnce(NodeId) -> Vec<Multiaddr>,
    ) -> Self {
        Self::start_naming(seeds, Replication::Both, &[listen], |node, _| named(node)).await
    }

    /// One that names these addresses beside those where it listens.
    pub(crate) async fn start_at(
        seeds: &[&Self],
        replication: Replication,
        listen: &[&str],
        more: impl FnOnce(NodeId) -> Vec<Multiaddr>,
    ) -> Self {
        let all = |node, mut listening: Vec<Multiaddr>| {
            listening.extend(more(node));
            listening
        };
        Self::start_naming(seeds, replication, listen, all).await
    }

    async fn start_naming(
        seeds: &[&Self],
        replication: Replication,
        listen: &[&str],
        named: impl FnOnce(NodeId, Vec<Multiaddr>) -> Vec<Multiaddr>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(directory.path()).unwrap();
        let key = keypair(data_dir.key()).unwrap();
        drop(data_dir);
        let replica = open_replica(directory.path(), 1);
        let (incoming, calls) = mpsc::channel(8);
        let config = HostConfig {
            key,
            federation: FEDERATION,
            limits: Limits::PRODUCTION,
            part: Part::Coordinator { replica: replica.clone(), calls: incoming, replication },
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            seed: u64::from(replica.node().0[0]),
        };
        let host = Host::spawn(config, trust(), LanDiscovery::Off).unwrap();
        let mut status = host.status();
        let bound = status.wait_for(|status| status.binding == 0);
        let listening = tokio::time::timeout(PATIENCE, bound).await.unwrap().unwrap().listening.clone();
        let addresses = named(replica.node(), listening);
        replica.announce(record(Roles::Coordinator, &addresses)).unwrap();
        for seed in seeds {
            for record in seed.replica.introduction() {
                replica.insert(record, Source::Passed(Duration::ZERO)).unwrap();
            }
        }
        let mut running = tokio::task::JoinSet::new();
        let runs = replica.clone();
        running.spawn(async move { runs.run(std::future::pending()).await });
        Self { replica, host, addresses, calls, _running: running, _directory: directory }
    }

    /// `count` of them; each is told of the first.
    pub(crate) async fn start_many(count: usize, replication: Replication) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for _ in 0..count {
            let seeds: Vec<&Self> = all.first().into_iter().collect();
            let next = Self::start_with(&seeds, replication, "/ip4/127.0.0.1/tcp/0").await;
            all.push(next);
        }
        all
    }

    pub(crate) fn node(&self) -> NodeId {
        self.replica.node()
    }

    pub(crate) fn digest(&self) -> Digest {
        self.replica.read(Registry::digest)
    }

    /// Waits until what it sees of the registry is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Registry) -> bool) {
        let mut changes = self.replica.changes();
        let seen = async {
            while !self.replica.read(&wanted) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Waits until it is connected to so many other coordinators.
    pub(crate) async fn until_connected(&self, others: usize) {
        let mut status = self.host.status();
        let connected = status.wait_for(|status| status.coordinators.len() >= others);
        drop(tokio::time::timeout(PATIENCE, connected).await.expect("never connected").unwrap());
    }

    /// Speaks for an agent: something that changes the registry.
    pub(crate) fn say_guest(&self, worker_id: &str) {
        self.replica.say(guest(worker_id)).unwrap();
    }

    /// Takes the n-th worker in, as its home does: the worker's own record, and the attachment.
    pub(crate) fn take_in_worker(&self, n: u32) {
        let mut seed = [0xbb; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let key = SecretKey::from_seed(seed);
        let home = Some(Home { coordinator: self.node(), home_seq: 1 });
        let body = Body::Node(NodeRecord { home, ..record(Roles::Worker, &[]) });
        let signed = Signed::sign(&key, FEDERATION, 1, Version { epoch: 1, seq: 1 }, &body).unwrap();
        self.replica.insert(signed.bytes().clone(), Source::Direct(None)).unwrap();
        let attachment = Attachment { worker: key.id(), home_seq: 1, state: AttachmentState::Attached };
        self.replica.say(Body::Attachment(attachment)).unwrap();
    }

    pub(crate) fn knows_guest(&self, worker_id: &str) -> bool {
        self.replica.read(|registry| registry.guest_records(self.replica.now(), worker_id).next().is_some())
    }
}

pub(crate) fn guest(worker_id: &str) -> Body {
    let details = GuestDetails {
        worker_type: "cpu".into(),
        tunnel_url: "http://:8000".into(),
        location: String::new(),
        services: vec![],
        capabilities: "{}".into(),
        status: GuestStatus::Healthy,
        load_percent: 0,
    };
    Body::Guest(Guest { worker_id: worker_id.into(), details })
}

/// Waits until all have the same digest, and it is one of a registry with at least `records` records. As long as one of them still
/// learns of something, a machine that is busy with other things has its time.
pub(crate) async fn until_equal(all: &[&Coordinator], records: usize) {
    let equal = || {
        let first = all[0].digest();
        all.iter().all(|one| one.digest() == first && one.replica.read(Registry::len) >= records)
    };
    let known = || all.iter().map(|one| one.replica.read(Registry::len)).sum::<usize>();
    let mut changes: Vec<_> = all.iter().map(|one| one.replica.changes()).collect();
    let mut most = 0;
    while !equal() {
        most = known().max(most);
        let next = async {
            // Leases are renewed for ever: a change alone is no progress.
            while !equal() && known() <= most {
                let changed = changes.iter_mut().map(|changes| Box::pin(changes.changed()));
                futures_util::future::select_all(changed).await.0.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, next).await.is_err() {
            let seen: Vec<_> = all.iter().map(|one| (one.digest(), one.replica.read(Registry::len))).collect();
            panic!("never equal: {seen:?}");
        }
    }
}
