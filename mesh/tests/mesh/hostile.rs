//! Peers that mean no good: what they send is neither kept nor passed on, and honest coordinators go on as if they were
//! not there.

use std::time::Duration;

use futures_util::StreamExt;
use hedgerow_mesh::host::{peer_id, protocol_version, topic};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::peer::{self, PeerRequest, PeerResponse};
use hedgerow_proto::record::{Body, Home, Lease, Roles, Signed, Version};
use hedgerow_proto::registry::Registry;
use libp2p::identity::Keypair;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify, noise, request_response, tcp, yamux};

use crate::common::{Coordinator, FEDERATION, PATIENCE, record, until_equal};

/// Bytes as they come: what a hostile peer writes needs no codec.
#[derive(Clone, Default)]
struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: futures_util::AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> std::io::Result<Vec<u8>> {
        self.read_response(&StreamProtocol::new("/"), io).await
    }
    async fn read_response<T: futures_util::AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        futures_util::AsyncReadExt::read_to_end(io, &mut bytes).await?;
        Ok(bytes)
    }
    async fn write_request<T: futures_util::AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        futures_util::AsyncWriteExt::write_all(io, &bytes).await
    }
    async fn write_response<T: futures_util::AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        futures_util::AsyncWriteExt::write_all(io, &bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Evil {
    identify: identify::Behaviour,
    gossip: gossipsub::Behaviour,
    peers: request_response::Behaviour<Raw>,
}

/// A peer that knows all names and keeps no rule.
pub(crate) struct Adversary {
    swarm: Swarm<Evil>,
    pub(crate) secret: SecretKey,
    victim: libp2p::PeerId,
}

impl Adversary {
    fn unconnected(to: &Coordinator, seed: u8) -> Self {
        let secret = SecretKey::from_seed([seed; 32]);
        let key = Keypair::ed25519_from_bytes(secret.seed()).unwrap();
        let name = |what: &str| format!("/hedgerow/{FEDERATION}/{what}");
        let mut swarm = SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key: &Keypair| {
                let config = gossipsub::ConfigBuilder::default()
                    .protocol_id_prefix(name("gossip"))
                    .heartbeat_interval(Duration::from_millis(100))
                    .heartbeat_initial_delay(Duration::from_millis(100))
                    .build()
                    .unwrap();
                let protocol = StreamProtocol::try_from_owned(name("peer/1")).unwrap();
                Evil {
                    identify: identify::Behaviour::new(identify::Config::new(
                        protocol_version(FEDERATION),
                        key.public(),
                    )),
                    gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Signed(key.clone()), config)
                        .unwrap(),
                    peers: request_response::Behaviour::with_codec(
                        Raw,
                        [(protocol, request_response::ProtocolSupport::Full)],
                        request_response::Config::default(),
                    ),
                }
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
            .build();
        swarm.behaviour_mut().gossip.subscribe(&topic(FEDERATION)).unwrap();
        Self { swarm, secret, victim: peer_id(to.node()).unwrap() }
    }

    /// Connected, subscribed, and admitted: until the victim has heard who this is, it refuses every request.
    async fn connect(to: &Coordinator) -> Self {
        Self::connect_as(to, 66).await
    }

    /// The same with a key of its own.
    pub(crate) async fn connect_as(to: &Coordinator, seed: u8) -> Self {
        let mut it = Self::dialling_as(to, seed);
        it.until(|event| {
            matches!(event, SwarmEvent::Behaviour(EvilEvent::Gossip(gossipsub::Event::Subscribed { .. })))
        })
        .await;
        while it.push(Vec::new()).await == Some(PeerResponse::Refused) {}
        it
    }

    async fn until(&mut self, wanted: impl Fn(&SwarmEvent<EvilEvent>) -> bool) {
        let seen = async { while !wanted(&self.swarm.select_next_some().await) {} };
        tokio::time::timeout(PATIENCE, seen).await.expect("never happened");
    }

    pub(crate) fn gossip(&mut self, bytes: Vec<u8>) {
        // A full queue is as good: it is a flood.
        let _ = self.swarm.behaviour_mut().gossip.publish(topic(FEDERATION), bytes);
    }

    /// Sends a request and waits for its answer, or for the end of the connection (`None`).
    pub(crate) async fn request(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let id = self.swarm.behaviour_mut().peers.send_request(&self.victim, bytes);
        let answered = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::Behaviour(EvilEvent::Peers(request_response::Event::Message {
                        message: request_response::Message::Response { request_id, response },
                        ..
                    })) if request_id == id => return Some(response),
                    SwarmEvent::Behaviour(EvilEvent::Peers(request_response::Event::OutboundFailure {
                        request_id,
                        ..
                    })) if request_id == id => return None,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("neither an answer nor an end")
    }

    pub(crate) async fn push(&mut self, records: Vec<Vec<u8>>) -> Option<PeerResponse> {
        let answer = self.request(peer::encode(&PeerRequest::Push(records))).await?;
        Some(peer::decode(&answer).unwrap())
    }

    async fn until_cut_off(&mut self) {
        self.until(|event| matches!(event, SwarmEvent::ConnectionClosed { .. })).await;
    }
}

pub(crate) fn sign(key: &SecretKey, seq: u64, body: &Body) -> Signed {
    Signed::sign(key, FEDERATION, 7, Version { epoch: 1, seq }, body).unwrap()
}

pub(crate) fn made_up(n: u32) -> SecretKey {
    let mut seed = [0xaa; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_seed(seed)
}

/// Two honest coordinators that agree, and what they hold.
pub(crate) async fn honest() -> (Coordinator, Coordinator, usize) {
    let one = Coordinator::start(&[]).await;
    let two = Coordinator::start(&[&one]).await;
    until_equal(&[&one, &two], 4).await;
    let held = one.replica.read(Registry::len);
    (one, two, held)
}

/// The honest ones still agree on what is new among them, and hold nothing else.
async fn nothing_has_happened(one: &Coordinator, two: &Coordinator, held: usize) {
    one.say_guest("honest");
    two.until("the honest change is here", |registry| registry.len() > held).await;
    until_equal(&[one, two], held + 1).await;
    assert_eq!(one.replica.read(Registry::len), held + 1);
    assert_eq!(two.replica.read(Registry::len), held + 1);
}

#[tokio::test]
async fn a_peer_that_sends_garbage_is_cut_off() {
    let (one, two, held) = honest().await;
    let mut evil = Adversary::connect(&one).await;
    for n in 0..64_u32 {
        evil.gossip([b"garbage ".as_slice(), &n.to_be_bytes()].concat());
    }
    evil.until_cut_off().await;
    let mut again = Adversary::dialling(&one).await;
    again
        .until(|event| {
            matches!(event, SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. })
        })
        .await;
    nothing_has_happened(&one, &two, held).await;
}

#[tokio::test]
async fn a_peer_that_asks_for_garbage_is_cut_off() {
    let (one, two, held) = honest().await;
    let mut evil = Adversary::connect(&one).await;
    // Until it is cut off.
    while let Some(answer) = evil.request(b"GET / HTTP/1.1\r\n\r\n".to_vec()).await {
        assert!(answer.is_empty() || peer::decode(&answer) == Ok(PeerResponse::Refused), "{answer:?}");
    }
    nothing_has_happened(&one, &two, held).await;
}

#[tokio::test]
async fn a_flood_of_good_records_of_made_up_nodes_is_neither_kept_nor_passed_on() {
    let (one, two, held) = honest().await;
    let mut evil = Adversary::connect(&one).await;
    let worker = Body::Node(record(Roles::Worker, &[]));
    let homed = |home| {
        let home = Some(Home { coordinator: home, home_seq: 1 });
        Body::Node(hedgerow_proto::record::NodeRecord { home, ..record(Roles::Worker, &[]) })
    };
    let (of_honest, of_evil) = (homed(one.node()), homed(evil.secret.id()));
    for n in 0..300 {
        let body = [&worker, &of_honest, &of_evil][n as usize % 3];
        evil.gossip(sign(&made_up(n), 1, body).bytes().to_vec());
        let pushed = evil.push(vec![sign(&made_up(1000 + n), 1, body).bytes().to_vec()]).await;
        assert!(matches!(pushed, None | Some(PeerResponse::Taken(0) | PeerResponse::Refused)), "{pushed:?}");
    }
    nothing_has_happened(&one, &two, held).await;
}

#[tokio::test]
async fn old_records_that_are_played_again_change_nothing() {
    let (one, two, held) = honest().await;
    let old: Vec<Vec<u8>> = two.replica.introduction().iter().map(|record| record.to_vec()).collect();
    two.replica.announce(record(Roles::Coordinator, &two.addresses)).unwrap();
    until_equal(&[&one, &two], held).await;
    let newest = one.digest();
    let mut evil = Adversary::connect(&one).await;
    for record in &old {
        evil.gossip(record.clone());
    }
    assert_eq!(evil.push(old).await, Some(PeerResponse::Taken(0)));
    assert_eq!(one.digest(), newest);
    nothing_has_happened(&one, &two, held).await;
}

#[tokio::test]
async fn a_coordinator_that_floods_fills_no_more_than_its_own_share_and_others_are_served() {
    let (one, two, held) = honest().await;
    let mut evil = Adversary::connect(&one).await;
    // In an open federation it can become a coordinator: it has a standing then, and a quota.
    let own = vec![
        sign(&evil.secret, 1, &Body::Node(record(Roles::Coordinator, &[]))).bytes().to_vec(),
        sign(&evil.secret, 2, &Body::Lease(Lease { ttl: Duration::from_secs(60) })).bytes().to_vec(),
    ];
    assert_eq!(evil.push(own).await, Some(PeerResponse::Taken(2)));
    let home = Some(Home { coordinator: evil.secret.id(), home_seq: 1 });
    let body = Body::Node(hedgerow_proto::record::NodeRecord { home, ..record(Roles::Worker, &[]) });
    let mut taken = 0;
    for batch in 0..16 {
        let records = (0..256).map(|n| sign(&made_up(batch * 256 + n), 1, &body).bytes().to_vec()).collect();
        match evil.push(records).await {
            Some(PeerResponse::Taken(n)) => taken += n,
            // It has been cut off.
            _ => break,
        }
    }
    // What one publisher may hurry along at once, and a little for the time that it took.
    assert!((1..2000).contains(&taken), "{taken}");
    one.say_guest("honest");
    two.until("the honest change is here", |registry| {
        registry.guest_records(two.replica.now(), "honest").next().is_some()
    })
    .await;
    assert!(one.replica.read(Registry::len) < held + 2048);
}

impl Adversary {
    /// Dials once more, and does not wait for more than the outcome.
    async fn dialling(to: &Coordinator) -> Self {
        Self::dialling_as(to, 66)
    }

    fn dialling_as(to: &Coordinator, seed: u8) -> Self {
        let mut it = Self::unconnected(to, seed);
        let address = to.addresses[0].clone().with_p2p(it.victim).unwrap();
        it.swarm.dial(address).unwrap();
        it
    }
}
