//! Who is served, and with what: two hosts on loopback.

use std::time::Duration;

use hedgerow_mesh::clock::SystemClock;
use hedgerow_mesh::data_dir::DataDir;
use hedgerow_mesh::host::relay::RelayLink;
use hedgerow_mesh::host::{Host, HostConfig, HostHandle, LanDiscovery, Multiaddr, Part, keypair};
use hedgerow_mesh::replica::ReplicaConfig;
use hedgerow_proto::frame::WhenFull;
use hedgerow_proto::id::{FederationId, RequestId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{NodeRecord, Roles};
use hedgerow_proto::registry::Source;
use hedgerow_tunnel::streams::{self, NotOpened};
use hedgerow_tunnel::{Tunnel, exchange};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::bootstrap::Bootstrap;

const FEDERATION: FederationId = FederationId([7; 32]);
const PATIENCE: Duration = Duration::from_secs(60);

/// A node's host and replica.
struct Party {
    replica: Replica,
    host: HostHandle,
    addresses: Vec<Multiaddr>,
    _directory: tempfile::TempDir,
}

impl Party {
    async fn start(roles: Roles) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = Arc::new(DataDir::open(directory.path()).unwrap());
        let key = keypair(data_dir.key()).unwrap();
        let (limits, clock) = (Limits::PRODUCTION, Arc::new(SystemClock));
        let config = ReplicaConfig { data_dir, federation: FEDERATION, limits: limits.clone(), incarnation: 1, clock };
        let replica = Replica::open(config).unwrap();
        let (part, listen) = if roles.coordinates() {
            let part = Part::Coordinator {
                replica: replica.clone(),
                calls: mpsc::channel(1).0,
                replication: Default::default(),
            };
            (part, vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()])
        } else {
            (Part::Worker, vec![])
        };
        let config = HostConfig { key, federation: FEDERATION, limits, part, listen, seed: 1 };
        let host = Host::spawn(config, Bootstrap::new(None, vec![]).unwrap().tls(), LanDiscovery::Off).unwrap();
        let mut status = host.status();
        let addresses = status.wait_for(|status| status.binding == 0).await.unwrap().listening.clone();
        replica
            .announce(NodeRecord {
                roles,
                location: String::new(),
                version: "0.1.0".into(),
                services: vec![],
                multiaddrs: addresses.iter().map(ToString::to_string).collect(),
                home: None,
                candidacy: Default::default(),
                hardware: Default::default(),
            })
            .unwrap();
        Self { replica, host, addresses, _directory: directory }
    }

    fn hears_of(&self, other: &Self) {
        for record in other.replica.introduction() {
            self.replica.insert(record, Source::Passed(Duration::ZERO)).unwrap();
        }
    }

    /// The way to another one.
    fn way(&self, to: &Self) -> Tunnel {
        let link = RelayLink::new(&self.host, &self.replica, to.replica.node()).unwrap();
        Tunnel::detached(Arc::new(link), Vec::new())
    }
}

/// Has no room in its service; takes streams of every other kind, and says hello on them.
struct Greeter;

impl Services for Greeter {
    fn open<'a>(&'a self, _: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async { Err(Refusal::Full) })
    }

    fn other(&self, _: &Preface) -> Option<OtherStream> {
        Some(Box::new(|mut stream| {
            Box::pin(async move {
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
            })
        }))
    }
}

/// Runs a scene while this coordinator serves the others.
async fn while_serving(home: &Party, scene: impl Future<Output = ()>) {
    let (services, drain): (Arc<dyn Services>, _) = (Arc::new(Greeter), watch::Sender::new(DrainState::Running));
    let streams = RelayStreams::listen(&home.host).unwrap();
    let (drain, scene) = (drain.subscribe(), tokio::time::timeout(PATIENCE, scene));
    tokio::select! {
        () = serve(streams, &home.replica, &services, &drain) => panic!("the host runs"),
        done = scene => done.expect("in time"),
    }
}

#[tokio::test]
async fn a_coordinator_reaches_workers_and_services_of_another_and_nothing_else_there() {
    let (home, asks) = (Party::start(Roles::Coordinator).await, Party::start(Roles::Coordinator).await);
    asks.hears_of(&home);
    home.hears_of(&asks);
    while_serving(&home, async {
        let (way, worker) = (asks.way(&home), NodeId([9; 32]));
        let mut passed_on = streams::open(&way, StreamKind::Relay, Some(worker), RequestId(1)).await.unwrap();
        let mut greeting = String::new();
        passed_on.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "hello");
        for kind in [StreamKind::Sync, StreamKind::Contract, StreamKind::MeshPeer] {
            let refused = streams::open(&way, kind, None, RequestId(2)).await.err();
            assert!(matches!(refused, Some(NotOpened::Refused(Refusal::Unsupported))), "{kind:?}: {refused:?}");
        }
        // Its own services: the refusal comes from them.
        let (mut io, exchange) = exchange(way.open().await.unwrap());
        exchange.begin(&Preface {
            kind: StreamKind::Http,
            node: None,
            service: None,
            request: RequestId(3),
            hops: 0,
            connection: hedgerow_proto::frame::ServiceConnection::MayReuse,
            when_full: WhenFull::Refuse,
        });
        io.flush().await.unwrap();
        let mut byte = [0];
        let (_, verdict) = tokio::join!(io.read(&mut byte), exchange.verdict());
        assert_eq!(verdict, hedgerow_tunnel::Verdict::Refused(Refusal::Full));
    })
    .await;
}

#[tokio::test]
async fn who_is_no_coordinator_of_the_registry_is_not_served() {
    let (home, stranger) = (Party::start(Roles::Coordinator).await, Party::start(Roles::Worker).await);
    // It may be a worker at home there, and has a connection.
    stranger.hears_of(&home);
    home.hears_of(&stranger);
    while_serving(&home, async {
        stranger.host.connect(home.replica.node(), home.addresses.clone()).await.unwrap();
        let opened = streams::open(&stranger.way(&home), StreamKind::Relay, Some(NodeId([9; 32])), RequestId(1)).await;
        assert!(opened.is_err(), "it was passed on");
    })
    .await;
}

#[test]
fn streams_are_bounded_for_each_coordinator_and_in_all_and_what_has_ended_makes_room() {
    let (mut places, node) = (Places::default(), |n: usize| NodeId([n as u8; 32]));
    let mut held: Vec<Place> =
        (0..STREAMS_PER_COORDINATOR_MAX).map(|_| places.take(node(1)).expect("a place")).collect();
    assert!(places.take(node(1)).is_none());
    for n in held.len()..STREAMS_MAX {
        held.push(places.take(node(2 + n % 100)).expect("a place"));
    }
    assert!(places.take(node(200)).is_none());
    held.truncate(1);
    assert!(places.take(node(1)).is_some() && places.take(node(200)).is_some());
    assert!(places.of.len() <= 2, "who has no stream takes no room");
}
