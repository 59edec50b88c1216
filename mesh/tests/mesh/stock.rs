//! The host against a stock libp2p swarm.

use futures_util::StreamExt;
use hedgerow_mesh::host::{Host, HostConfig, Part, keypair, peer_id, protocol_version};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use libp2p::identity::Keypair;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, identify, noise, ping, tcp, yamux};
use std::time::Duration;

use crate::common::{Coordinator, FEDERATION, PATIENCE, trust};

#[derive(NetworkBehaviour)]
struct Stock {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

fn stock(federation: FederationId) -> Swarm<Stock> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_quic()
        .with_behaviour(|key: &Keypair| Stock {
            identify: identify::Behaviour::new(identify::Config::new(protocol_version(federation), key.public())),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_millis(200))),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

#[tokio::test]
async fn a_stock_peer_of_the_federation_is_identified_and_answered() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let one = Coordinator::start_with(&[], Default::default(), listen).await;
        let status = one.host.status();
        let mut peer = stock(FEDERATION);
        let address: Multiaddr = one.addresses[0].clone();
        peer.dial(address.with_p2p(peer_id(one.node()).unwrap()).unwrap()).unwrap();
        let exchange = async {
            let (mut pinged, mut identified) = (false, false);
            while !(pinged && identified && status.borrow().peers.contains(peer.local_peer_id())) {
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
    let error = Host::spawn(config, trust()).err().unwrap();
    assert!(error.to_string().contains("--mesh-listen"), "{error}");
}
