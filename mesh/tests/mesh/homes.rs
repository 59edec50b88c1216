//! A worker's one connection to its home: a tunnel over libp2p.

use std::sync::Arc;

use hedgerow_mesh::host::link::{HomeDialer, Homes};
use hedgerow_mesh::host::{Host, HostConfig, HostHandle, LanDiscovery, Part, keypair};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_tunnel::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
