//! Tunnels over real QUIC and TCP on loopback: joining, news, restarts, silence and leaving.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{
    Entry, Node, Over, TcpTurnstile, Turnstile, in_time, node_record, over_each, preface, sign, tcp_way,
};
use hedgerow_proto::frame::{Control, FrameHeader, FrameType, RejectReason, close, message};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::record::Body;
use hedgerow_tunnel::{
    DrainState, Link, Liveness, Target, TunnelEvent, TunnelState, Verdict, Way, exchange, quic, tcp,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn loopback() -> std::net::SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn a_node_joins_and_serves_and_tells_news_and_leaves(over: Over) {
    let mut entry = Entry::start(SecretKey::from_seed([9; 32]), 1, loopback());
    let mut node = Node::start(2, entry.target(over));
    let (tunnel, mut events) = entry.tunnel().await;
    assert_eq!(tunnel.node(), node.id());
    assert_eq!(tunnel.authority("echo"), Some("localhost:8000"));
    node.until("up", |state| matches!(state, TunnelState::Up(_))).await;

    let (mut io, handle) = exchange(tunnel.open().await.unwrap());
    let busy = tunnel.in_flight();
    handle.begin(&preface("echo"));
    io.write_all(b"ping").await.unwrap();
    let mut service = in_time("a connection", node.connections.recv()).await.unwrap();
    let mut got = [0; 4];
    service.read_exact(&mut got).await.unwrap();

    node.record.send_replace(node_record(&node.key, 2));
    loop {
        match in_time("news", events.recv()).await.unwrap() {
            TunnelEvent::Record(_, record) if record.version.seq == 2 => break,
            TunnelEvent::Record(..) => {}
            other => panic!("{other:?}"),
        }
    }

    node.leave.set(sign(&node.key, 3, &Body::Leave)).unwrap();
    node.drain.send_replace(DrainState::Draining);
    loop {
        match in_time("Leave", events.recv()).await.unwrap() {
            TunnelEvent::Leave(..) => break,
            TunnelEvent::Record(..) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tunnel.liveness(), Liveness::Draining);
    // What runs may finish.
    service.write_all(b"pong").await.unwrap();
    in_time("the answer", io.read_exact(&mut got)).await.unwrap();
    assert_eq!(handle.verdict_now(), Some(Verdict::Accepted));
    handle.release(hedgerow_proto::frame::Release::Close);
    drop(busy);
    node.until("drained", |state| matches!(state, TunnelState::Drained)).await;
    in_time("the task", node.task).await.unwrap();
}

async fn a_restarted_entry_is_noticed_by_a_reset_and_dialled_again(over: Over) {
    let key = SecretKey::from_seed([9; 32]);
    let mut entry = Entry::start(key.clone(), 1, loopback());
    let (udp, tcp) = (Turnstile::to(entry.address).await, TcpTurnstile::to(entry.tcp).await);
    let way = if over == Over::Tcp { tcp_way(tcp.address) } else { Way::Quic(udp.address) };
    let mut node = Node::start(3, Target { ways: vec![way], ..entry.target(over) });
    entry.tunnel().await;
    node.until("up", |state| matches!(state, TunnelState::Up(_))).await;

    let mut restarted = Entry::start(key, 2, loopback());
    udp.turn(restarted.address);
    tcp.turn(restarted.tcp);
    let words = if over == Over::Tcp { "gone without a word" } else { "restarted" };
    node.until("the reset", |state| match state {
        TunnelState::Waiting { error, .. } => error.contains(words),
        _ => false,
    })
    .await;
    restarted.tunnel().await;
    node.until("up again", |state| matches!(state, TunnelState::Up(_))).await;
}

async fn a_node_has_one_connection_to_each_thread_of_the_entry(over: Over) {
    let mut entry = Entry::start_shards(SecretKey::from_seed([9; 32]), 1, loopback(), 3);
    let mut node = Node::start(8, entry.target(over));
    let mut held = Vec::new();
    let mut lanes = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let (tunnel, events) = entry.tunnel().await;
        assert_eq!(tunnel.node(), node.id());
        assert!(lanes.insert(tunnel.lane()), "{} came twice", tunnel.lane());
        held.push(events);
    }
    node.until("three connections", |state| matches!(state, TunnelState::Up(up) if up.connections == 3)).await;
}

async fn a_busy_tunnel_whose_node_falls_silent_is_suspect_and_then_closed(over: Over) {
    let mut entry = Entry::start(SecretKey::from_seed([9; 32]), 1, loopback());
    // The node lives on a thread of its own that is stopped in the middle of everything, as a frozen process would be.
    let target = entry.target(over);
    let (freeze, frozen) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let node = Node::start(4, target);
            loop {
                if frozen.try_recv().is_ok() {
                    // Until the test lets go of the channel.
                    let _ = frozen.recv();
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(node);
        });
    });
    let (tunnel, mut events) = entry.tunnel().await;
    let (mut io, handle) = exchange(tunnel.open().await.unwrap());
    handle.begin(&preface("echo"));
    let busy = tunnel.in_flight();
    io.write_all(b"x").await.unwrap();
    let reading = tokio::spawn(async move { io.read_u8().await });
    assert_eq!(in_time("a verdict", handle.verdict()).await, Verdict::Accepted);
    freeze.send(()).unwrap();
    in_time("suspicion", tunnel.suspected()).await;
    assert_eq!(tunnel.liveness(), Liveness::Suspect);
    drop(busy);
    assert!(in_time("the break", reading).await.unwrap().is_err());
    while !matches!(in_time("the close", events.recv()).await, Some(TunnelEvent::Closed(_))) {}
    assert_eq!(tunnel.liveness(), Liveness::Closed);
    drop(freeze);
    thread.join().unwrap();
}

#[tokio::test]
async fn a_node_that_is_heard_and_hears_nothing_stays_suspect_until_it_gives_the_tunnel_up() {
    let mut entry = Entry::start(SecretKey::from_seed([9; 32]), 1, loopback());
    let turnstile = Turnstile::to(entry.address).await;
    let _node = Node::start(12, Target { ways: vec![Way::Quic(turnstile.address)], ..entry.target(Over::Quic) });
    let (tunnel, mut events) = entry.tunnel().await;
    turnstile.deafen();
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let mut sent_in_vain = 0;
    let closed = in_time("the close", async {
        loop {
            tokio::select! {
                event = events.recv() => if let Some(TunnelEvent::Closed(_)) = event { return },
                _ = looks.tick() => if tunnel.liveness() == Liveness::Live {
                    // As a request does that gets no verdict.
                    tunnel.suspect();
                    sent_in_vain += 1;
                },
            }
        }
    });
    closed.await;
    // An acknowledgement from before may still have been on its way. The node's pings come on, each second, and are none.
    assert!((1..=2).contains(&sent_in_vain), "{sent_in_vain} requests were sent to it");
}

async fn another_federation_and_another_key_are_refused_with_words(over: Over) {
    let entry = Entry::start(SecretKey::from_seed([9; 32]), 1, loopback());
    let stranger = Target { federation: hedgerow_proto::id::FederationId([5; 32]), ..entry.target(over) };
    let mut node = Node::start(5, stranger);
    node.until("an error", |s| matches!(s, TunnelState::Waiting { error, .. } if error.contains("federation"))).await;

    let impostor = Target { entry: SecretKey::from_seed([8; 32]).id(), ..entry.target(over) };
    let mut node = Node::start(6, impostor);
    node.until("an error", |state| matches!(state, TunnelState::Waiting { .. })).await;
}

async fn a_record_that_another_key_signed_is_rejected(over: Over) {
    let entry = Entry::start(SecretKey::from_seed([9; 32]), 1, loopback());
    let mut node = Node::start(7, entry.target(over));
    node.record.send_replace(node_record(&SecretKey::from_seed([70; 32]), 1));
    node.until("a rejection", |state| match state {
        TunnelState::Rejected(reject) => reject.reason == RejectReason::Record,
        TunnelState::Waiting { error, .. } => error.contains("another node"),
        _ => false,
    })
    .await;
}

async fn a_client_that_talks_nonsense_is_closed_and_a_node_beside_it_notices_nothing(over: Over) {
    let mut entry = Entry::start(SecretKey::from_seed([9; 32]), 1, loopback());
    let mut node = Node::start(10, entry.target(over));
    let (tunnel, mut events) = entry.tunnel().await;
    let stranger = SecretKey::from_seed([90; 32]);
    let half_a_frame = FrameHeader { frame_type: FrameType::Control, payload_bytes: 60 }.encode();
    let wrong_message = message(FrameType::Control, &Control::Pong(1));
    let noise = vec![0xff; 4096];
    let junk = [half_a_frame.as_slice(), &[7; 60]].concat();
    for nonsense in [noise, junk, wrong_message] {
        let id = entry.identity.key.id();
        let link: Arc<dyn Link> = match over {
            Over::Tcp => Arc::new(tcp::dial(&stranger, id, entry.tcp, "localhost").await.unwrap()),
            Over::Quic | Over::Memory => Arc::new(quic::dial(&stranger, id, entry.address).await.unwrap()),
        };
        let mut control = in_time("the control stream", link.accept()).await.unwrap();
        // It may be cut off while it still talks.
        let _ = control.write_all(&nonsense).await;
        let closed = in_time("the close", link.closed()).await;
        assert_eq!(closed.code, Some(close::REFUSED), "{closed}");
    }
    let (mut io, handle) = exchange(tunnel.open().await.unwrap());
    handle.begin(&preface("echo"));
    io.write_all(b"x").await.unwrap();
    let mut service = in_time("a connection", node.connections.recv()).await.unwrap();
    assert_eq!(in_time("the request", service.read_u8()).await.unwrap(), b'x');
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, TunnelEvent::Closed(_)), "{event:?}");
    }
}

#[test]
fn a_port_that_another_process_shares_is_in_use() {
    let (first, _) = quic::bind(loopback(), quic::Sharing::First).unwrap();
    let address = first.local_addr().unwrap();
    let _further = quic::bind(address, quic::Sharing::Further).unwrap();
    assert_eq!(quic::bind(address, quic::Sharing::First).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

over_each!([over_quic: Quic, over_tcp: Tcp] {
    a_node_joins_and_serves_and_tells_news_and_leaves,
    a_restarted_entry_is_noticed_by_a_reset_and_dialled_again,
    a_node_has_one_connection_to_each_thread_of_the_entry,
    a_busy_tunnel_whose_node_falls_silent_is_suspect_and_then_closed,
    another_federation_and_another_key_are_refused_with_words,
    a_record_that_another_key_signed_is_rejected,
    a_client_that_talks_nonsense_is_closed_and_a_node_beside_it_notices_nothing,
});

#[tokio::test]
async fn whoever_wants_something_else_than_a_tunnel_is_told_from_where_it_has_come() {
    let identity = quic::EntryIdentity {
        key: SecretKey::from_seed([9; 32]),
        federation: hedgerow_proto::id::FederationId([1; 32]),
        incarnation: 1,
    };
    let (socket, _) = quic::bind(loopback(), quic::Sharing::Alone).unwrap();
    let address = socket.local_addr().unwrap();
    let endpoint = quic::listen(&identity, socket).unwrap();
    let acceptor = quic::Acceptor::new(&identity).unwrap();
    let accepted = async { acceptor.handshake(endpoint.accept().await.unwrap()).await };

    // As a libp2p host does it, with no name and no key that an entry knows.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let roots = rustls::RootCertStore::empty();
    let mut tls = versions.unwrap().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"libp2p".to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let client = quinn::Endpoint::client(loopback()).unwrap();
    let asked = client.connect_with(quinn::ClientConfig::new(Arc::new(tls)), address, "l").unwrap();

    let (accepted, answered) = in_time("the answer", async { tokio::join!(accepted, asked) }).await;
    assert!(matches!(accepted.err(), Some(hedgerow_tunnel::TunnelError::NoTunnelWanted)));
    let said = answered.unwrap_err().to_string();
    assert_eq!(hedgerow_proto::appointment::seen::hear(&said), Some(client.local_addr().unwrap()), "{said}");
}
