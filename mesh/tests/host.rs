//! The libp2p host against a stock libp2p swarm.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

use std::time::Duration;

use futures_util::StreamExt;
use hedgerow_mesh::host::{Host, TokioExecutor, keypair, peer_id, protocol_version, transport};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use libp2p::identity::Keypair;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, identify, noise, ping, tcp, yamux};

const PATIENCE: Duration = Duration::from_secs(30);
const FEDERATION: FederationId = FederationId([3; 32]);

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

async fn host(listen: &str) -> (Host, Multiaddr, SecretKey) {
    let secret = SecretKey::from_seed([5; 32]);
    let key = keypair(&secret).unwrap();
    let listen: Multiaddr = listen.parse().unwrap();
    let mut host = Host::new(&key, FEDERATION, transport(&key).unwrap(), TokioExecutor, &[listen]).unwrap();
    let bound = tokio::time::timeout(PATIENCE, host.bound()).await.unwrap();
    (host, bound, secret)
}

#[tokio::test]
async fn a_stock_peer_of_the_federation_is_identified_and_answered() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let (host, address, secret) = host(listen).await;
        let status = host.status();
        let running = tokio::spawn(host.run());
        let mut peer = stock(FEDERATION);
        peer.dial(address.with_p2p(peer_id(secret.id()).unwrap()).unwrap()).unwrap();
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
        running.abort();
    }
}

#[tokio::test]
async fn a_stranger_is_disconnected() {
    let (host, address, _) = host("/ip4/127.0.0.1/tcp/0").await;
    let status = host.status();
    let running = tokio::spawn(host.run());
    let mut stranger = stock(FederationId([4; 32]));
    stranger.dial(address).unwrap();
    let cut_off = async { while !matches!(stranger.select_next_some().await, SwarmEvent::ConnectionClosed { .. }) {} };
    tokio::time::timeout(PATIENCE, cut_off).await.unwrap();
    assert!(status.borrow().peers.is_empty());
    running.abort();
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let (_first, address, _) = host("/ip4/127.0.0.1/tcp/0").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let key = keypair(&SecretKey::from_seed([6; 32])).unwrap();
    let error = Host::new(&key, FEDERATION, transport(&key).unwrap(), TokioExecutor, &[listen]).err().unwrap();
    assert!(error.to_string().contains("--mesh-listen"), "{error} {address}");
}
