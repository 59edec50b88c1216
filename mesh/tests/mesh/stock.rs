//! The host against a stock libp2p swarm.

use futures_util::StreamExt;
use hedgerow_mesh::host::paths::Path;
use hedgerow_mesh::host::{Host, HostConfig, LanDiscovery, Part, keypair, node_id, peer_id, protocol_version};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use libp2p::core::Transport;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::swarm::{DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, identify, noise, ping, tcp, yamux};
use std::time::Duration;

use crate::by_entry::{Entry, behind};
use crate::common::{Coordinator, FEDERATION, PATIENCE, trust};
use crate::homes::worker;

#[derive(NetworkBehaviour)]
struct Stock {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

fn behaviour_in(federation: FederationId, key: &Keypair) -> Stock {
    Stock {
        identify: identify::Behaviour::new(identify::Config::new(protocol_version(federation), key.public())),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_millis(200))),
    }
}

fn behaviour(key: &Keypair) -> Stock {
    behaviour_in(FEDERATION, key)
}

fn stock(federation: FederationId) -> Swarm<Stock> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_quic()
        .with_behaviour(|key: &Keypair| behaviour_in(federation, key))
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// One that speaks WebSockets, as libp2p's own transport does.
fn stock_websocket() -> Swarm<Stock> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|key| {
            libp2p_websocket::Config::new(tcp::tokio::Transport::new(tcp::Config::default()))
                .upgrade(Version::V1Lazy)
                .authenticate(noise::Config::new(key).unwrap())
                .multiplex(yamux::Config::default())
        })
        .unwrap()
        .with_behaviour(behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// Runs it until it has heard who the other one is, and has been answered a ping.
async fn until_acquainted(peer: &mut Swarm<Stock>) {
    let exchange = async {
        let (mut pinged, mut identified) = (false, false);
        while !(pinged && identified) {
            match peer.select_next_some().await {
                SwarmEvent::Behaviour(StockEvent::Ping(ping::Event { result: Ok(_), .. })) => pinged = true,
                SwarmEvent::Behaviour(StockEvent::Identify(identify::Event::Received { info, .. })) => {
                    assert_eq!(info.protocol_version, protocol_version(FEDERATION));
                    identified = true;
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap();
}

#[tokio::test]
async fn a_stock_peer_dials_a_coordinator_at_an_entry() {
    let entry = Entry::start().await;
    let one = behind(&entry, &[], &[], &[]).await;
    let mut peer = stock_websocket();
    let id = peer_id(one.node()).unwrap();
    peer.dial(one.addresses[0].clone().with_p2p(id).unwrap()).unwrap();
    until_acquainted(&mut peer).await;
    // And only the one that it means.
    let mut other = stock_websocket();
    other.dial(one.addresses[0].clone().with_p2p(*peer.local_peer_id()).unwrap()).unwrap();
    let refused = async {
        loop {
            match other.select_next_some().await {
                SwarmEvent::OutgoingConnectionError { error, .. } => break error,
                SwarmEvent::ConnectionEstablished { .. } => panic!("connected to somebody else"),
                _ => {}
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert!(matches!(error, DialError::WrongPeerId { .. }), "{error}");
}

#[tokio::test]
async fn a_host_dials_a_stock_peer_that_listens_for_websockets() {
    let mut peer = stock_websocket();
    peer.listen_on("/ip4/127.0.0.1/tcp/0/ws".parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = peer.select_next_some().await {
            break address;
        }
    };
    let (host, _) = worker(8);
    let node = node_id(peer.local_peer_id()).unwrap();
    let connected = host.connect(node, vec![address]);
    let acquainted = until_acquainted(&mut peer);
    let (connected, ()) = tokio::join!(connected, acquainted);
    connected.unwrap();
    assert_eq!(host.status().borrow().ways[&node].path, Path::Entry);
}

#[tokio::test]
async fn a_stock_peer_of_the_federation_is_identified_and_answered() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let one = Coordinator::start_with(&[], Default::default(), listen).await;
        let mut status = one.host.status();
        let mut peer = stock(FEDERATION);
        let address: Multiaddr = one.addresses[0].clone();
        peer.dial(address.with_p2p(peer_id(one.node()).unwrap()).unwrap()).unwrap();
        until_acquainted(&mut peer).await;
        let me = *peer.local_peer_id();
        let known = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.peers.contains(&me)));
        tokio::select! {
            known = known => drop(known.unwrap().unwrap()),
            () = async { loop { peer.select_next_some().await; } } => {}
        }
        assert!(status.borrow().coordinators.is_empty(), "it has not said that it is one");
    }
}

#[tokio::test]
async fn a_stranger_is_disconnected() {
    let one = Coordinator::start(&[]).await;
    let mut stranger = stock(FederationId([4; 32]));
    stranger.dial(one.addresses[0].clone()).unwrap();
    let cut_off = async { while !matches!(stranger.select_next_some().await, SwarmEvent::ConnectionClosed { .. }) {} };
    tokio::time::timeout(PATIENCE, cut_off).await.unwrap();
    assert!(one.host.status().borrow().peers.is_empty());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let key = keypair(&SecretKey::from_seed([6; 32])).unwrap();
    let config = HostConfig {
        key,
        federation: FEDERATION,
        limits: Limits::PRODUCTION,
        part: Part::Worker,
        listen: vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()],
        seed: 1,
    };
    let error = Host::spawn(config, trust(), LanDiscovery::Off).err().unwrap();
    assert!(error.to_string().contains("--mesh-listen"), "{error}");
}
