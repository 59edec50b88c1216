//! A worker's one connection to its home: a tunnel over libp2p.

use std::net::SocketAddrV4;
use std::sync::Arc;

use hedgerow_mesh::host::link::{HomeDialer, Homes, PeerLink};
use hedgerow_mesh::host::{Host, HostConfig, HostHandle, LanDiscovery, Multiaddr, Part, keypair, peer_id};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_tunnel::Link;
use hedgerow_tunnel::link::BoxStream;
use libp2p::multiaddr::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::common::{Coordinator, FEDERATION, PATIENCE, trust};

pub(crate) fn worker(seed: u8) -> (HostHandle, NodeId) {
    let secret = SecretKey::from_seed([seed; 32]);
    let config = HostConfig {
        key: keypair(&secret).unwrap(),
        federation: FEDERATION,
        limits: Limits::PRODUCTION,
        part: Part::Worker,
        listen: vec![],
        seed: seed.into(),
    };
    (Host::spawn(config, trust(), LanDiscovery::Off).unwrap(), secret.id())
}

#[tokio::test]
async fn streams_go_both_ways_between_a_worker_and_its_home_and_end_with_it() {
    let home = Coordinator::start(&[]).await;
    let mut homes = Homes::listen(&home.host).unwrap();
    let (host, id) = worker(9);
    let dialer = HomeDialer::new(&host).unwrap();
    host.connect(home.node(), home.addresses.clone()).await.unwrap();
    let scene = async {
        // The first stream is the one that the worker opened.
        let takes_in = async {
            let at_home = homes.next().await.unwrap();
            let mut control = at_home.open().await.unwrap();
            control.write_all(b"hello").await.unwrap();
            control.flush().await.unwrap();
            (at_home, control)
        };
        let (at_worker, (at_home, mut control)) = tokio::join!(dialer.dial(home.node()), takes_in);
        let (at_worker, at_home) = (Arc::new(at_worker.unwrap()), Arc::new(at_home));
        assert_eq!((at_worker.peer(), at_home.peer()), (home.node(), id));
        let mut accepted = at_worker.accept().await.unwrap();
        let mut five = [0; 5];
        accepted.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"hello");
        // All others are opened by the home.
        for n in 0..3_u8 {
            let ask = async {
                let mut down = at_home.open().await.unwrap();
                down.write_all(&[n; 1000]).await.unwrap();
                down.shutdown().await.unwrap();
                down
            };
            let hear = async {
                let mut up = at_worker.accept().await.unwrap();
                let mut got = Vec::new();
                up.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, [n; 1000]);
                up
            };
            let (mut down, mut up) = tokio::join!(ask, hear);
            up.write_all(b"done").await.unwrap();
            up.shutdown().await.unwrap();
            let mut back = Vec::new();
            down.read_to_end(&mut back).await.unwrap();
            assert_eq!(back, b"done");
        }
        // A stream that is given up is an error at the other end.
        let ask = async {
            let mut down = at_home.open().await.unwrap();
            down.write_all(b"x").await.unwrap();
            down.flush().await.unwrap();
            down
        };
        let hear = async {
            let mut up = at_worker.accept().await.unwrap();
            up.read_exact(&mut [0]).await.unwrap();
            up
        };
        let (down, mut up) = tokio::join!(ask, hear);
        drop(down);
        assert!(up.read_exact(&mut [0]).await.is_err());
        // And so is everything when the worker has gone.
        drop((dialer, host, at_worker, accepted));
        assert!(control.read_exact(&mut [0]).await.is_err());
    };
    tokio::time::timeout(PATIENCE, scene).await.unwrap();
}

#[tokio::test]
async fn workers_that_come_all_at_once_are_all_taken_in() {
    const WORKERS: u8 = 24;
    let home = Coordinator::start(&[]).await;
    let mut homes = Homes::listen(&home.host).unwrap();
    let taking_in = tokio::spawn(async move {
        let mut held = Vec::new();
        while held.len() < usize::from(WORKERS) {
            let link = homes.next().await.unwrap();
            let mut control = link.open().await.unwrap();
            control.write_all(b"hello").await.unwrap();
            control.flush().await.unwrap();
            held.push((link, control));
        }
        held
    });
    // As when another home has died: they are all connected by the time that the first one says anything.
    let workers: Vec<_> = (0..WORKERS).map(|n| worker(100 + n).0).collect();
    for host in &workers {
        host.connect(home.node(), home.addresses.clone()).await.unwrap();
    }
    let coming = workers.iter().map(async |host| {
        let link = HomeDialer::new(host).unwrap().dial(home.node()).await.unwrap();
        let mut five = [0; 5];
        link.accept().await.unwrap().read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"hello");
        link
    });
    let all = futures_util::future::join_all(coming);
    let links = tokio::time::timeout(PATIENCE, all).await.unwrap();
    assert_eq!(links.len(), tokio::time::timeout(PATIENCE, taking_in).await.unwrap().unwrap().len());
}

/// A worker that `home` has taken in over this address.
struct AtHome {
    worker: HostHandle,
    id: NodeId,
    /// The control stream as either end has it, and the links, which would end it.
    at_worker: (PeerLink, BoxStream),
    at_home: (PeerLink, BoxStream),
}

impl AtHome {
    async fn over(home: &Coordinator, address: Multiaddr) -> Self {
        let mut homes = Homes::listen(&home.host).unwrap();
        let (worker, id) = worker(9);
        let dialer = HomeDialer::new(&worker).unwrap();
        worker.connect(home.node(), vec![address]).await.unwrap();
        let takes_in = async {
            let link = homes.next().await.unwrap();
            let mut control = link.open().await.unwrap();
            control.write_u8(1).await.unwrap();
            control.flush().await.unwrap();
            (link, control)
        };
        let (link, at_home) = tokio::join!(dialer.dial(home.node()), takes_in);
        let link = link.unwrap();
        let mut control = link.accept().await.unwrap();
        control.read_u8().await.unwrap();
        Self { worker, id, at_worker: (link, control), at_home }
    }
}

#[tokio::test]
async fn streams_end_at_both_ends_when_either_closes_their_connection() {
    for home_closes in [true, false] {
        let home = Coordinator::start(&[]).await;
        let scene = async {
            let AtHome { worker, id, mut at_worker, at_home } = AtHome::over(&home, home.addresses[0].clone()).await;
            let (mut reading, mut writing) = tokio::io::split(at_home.1);
            let waits_for_room = async { while writing.write_all(&[7; 4096]).await.is_ok() {} };
            let waits_for_words = async { assert!(reading.read_u8().await.is_err()) };
            let closes = async {
                match home_closes {
                    true => home.host.disconnect(id).await,
                    false => worker.disconnect(home.node()).await,
                }
            };
            tokio::join!(waits_for_room, waits_for_words, closes);
            // What had arrived is read, and then it is said that this is not all.
            let end = at_worker.1.read_to_end(&mut Vec::new()).await;
            assert!(end.is_err(), "{end:?}");
        };
        tokio::time::timeout(PATIENCE, scene).await.expect("all have ended");
    }
}

/// A way to a host over which nothing comes back any more from when `dies` becomes true, and nobody is told.
struct DyingPath {
    address: Multiaddr,
    dies: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl DyingPath {
    async fn to(host: &Multiaddr) -> Self {
        let host = socket_address(host);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dies = watch::Sender::new(false);
        let mut dead = dies.subscribe();
        let task = tokio::spawn(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpSocket::new_v4().unwrap();
            // However much the kernel would hold otherwise.
            far.set_recv_buffer_size(4096).unwrap();
            let far = far.connect(host.into()).await.unwrap();
            let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
            let back = async {
                tokio::select! {
                    _ = tokio::io::copy(&mut from_far, &mut to_near) => return,
                    _ = dead.wait_for(|dead| *dead) => {}
                }
                std::future::pending().await
            };
            let _ = tokio::join!(tokio::io::copy(&mut from_near, &mut to_far), back);
        });
        Self { address: format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap(), dies, task }
    }
}

impl Drop for DyingPath {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn socket_address(host: &Multiaddr) -> SocketAddrV4 {
    match host.iter().collect::<Vec<_>>()[..] {
        [Protocol::Ip4(ip), Protocol::Tcp(port), ..] => SocketAddrV4::new(ip, port),
        _ => panic!("{host}"),
    }
}

#[tokio::test]
async fn a_path_that_is_dead_holds_no_close_up() {
    /// Bytes that a stream of yamux takes though nothing goes out: eight of its frames, of ten.
    const WAITING_BYTES: usize = 128 * 1024;
    /// With so many streams that is more than the kernel takes.
    const STREAMS: usize = 64;
    let home = Coordinator::start(&[]).await;
    let path = DyingPath::to(&home.addresses[0]).await;
    let scene = async {
        let AtHome { worker: _worker, id, at_worker, at_home } = AtHome::over(&home, path.address.clone()).await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let accept = async {
                let mut there = at_worker.0.accept().await.unwrap();
                there.write_u8(1).await.unwrap();
                there.flush().await.unwrap();
                there
            };
            let (here, there) = tokio::join!(at_home.0.open(), accept);
            let mut here = here.unwrap();
            here.read_u8().await.unwrap();
            streams.push((here, there));
        }
        path.dies.send_replace(true);
        for (here, _) in &mut streams {
            // An error: the host has noticed by its pings, and closes.
            let _ = here.write_all(&[7; WAITING_BYTES]).await;
        }
        let worker = peer_id(id).unwrap();
        home.host.disconnect(id).await;
        home.host.status().wait_for(|status| !status.peers.contains(&worker)).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, scene).await.expect("it is closed");
}
