//! Nodes that let no UDP out: their tunnels come to the ports for clients.

use hedgerow_proto::frame::ALPN_TCP;
use hedgerow_tunnel::{TunnelState, Way};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::common::{Answer, Entry, in_time, say, timed, until};
use crate::life::ask_for_hold;
use crate::node::{Node, Says, Service};
use crate::tls::{FILES, certificate, connect};

fn over_tcp(entry: &Entry) -> Way {
    Way::Tcp { address: entry.http, host: "entry.test".into() }
}

async fn join(entry: &Entry, service: &Service) -> Node {
    let mut node = Node::start_by(over_tcp(entry), entry, service.address, Says::worker(1, &["web"]));
    node.until("the tunnel is up", |state| matches!(state, TunnelState::Up(_))).await;
    node
}

fn is_up(metrics: &Answer, transport: &str) -> bool {
    let line = format!("hedgerow_entry_tunnels{{transport=\"{transport}\"}} ");
    metrics.text().lines().any(|text| text.strip_prefix(&line).is_some_and(|count| count != "0"))
}

#[tokio::test]
async fn a_tunnel_comes_to_the_port_for_clients_and_is_told_apart() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let bootstrap = entry.get("/mesh/bootstrap").await.json();
    assert_eq!(bootstrap["entry"]["tunnel"][0]["transport"], "quic");
    let tcp = &bootstrap["entry"]["tunnel"][1];
    assert_eq!((&tcp["transport"], &tcp["port"]), (&"tcp".into(), &80.into()), "as the Host field says");
    let _node = join(&entry, &service).await;
    let answer = entry.get("/service/web/").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let metrics = entry.admin("/metrics").await;
    assert!(is_up(&metrics, "tcp") && !is_up(&metrics, "quic"), "{}", metrics.text());
    // A client's connection is still counted for a moment after its answer.
    until("a tunnel is no client: only who asks is", async || {
        let metrics = entry.admin("/metrics").await;
        metrics.text().lines().any(|line| line == "hedgerow_entry_connections_open 1").then_some(())
    })
    .await;
    let why = entry.admin("/mesh/why?service=web").await.json();
    assert_eq!(why["candidates"][0]["transport"], "tcp");
}

#[tokio::test]
async fn https_and_tunnels_share_a_port() {
    let directory = tempfile::tempdir().unwrap();
    let trusted = certificate(directory.path());
    let entry = Entry::start_in(directory, ["127.0.0.1:0"; 3], &FILES).await;
    let service = Service::start().await;
    let _node = join(&entry, &service).await;
    let stream = connect(&entry, &trusted, &[b"http/1.1"]).await.unwrap();
    let answer = crate::tls::get(stream, "/service/web/").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // Who asks for a tunnel gets the entry's key and not its certificate.
    assert!(connect(&entry, &trusted, &[ALPN_TCP]).await.is_err());
}

#[tokio::test]
async fn behind_a_proxy_that_ends_tls_tcp_is_told_of_only_where_the_operator_says_so() {
    let entry = Entry::start(&["--trusted-proxy", "127.0.0.0/8"]).await;
    let tunnels = entry.get("/mesh/bootstrap").await.json()["entry"]["tunnel"].clone();
    assert_eq!(tunnels.as_array().unwrap().len(), 1, "{tunnels}");
    let extra = ["--trusted-proxy", "127.0.0.0/8", "--tunnel-tcp-public", "tunnels.example.org:8443"];
    let entry = Entry::start(&extra).await;
    let tcp = entry.get("/mesh/bootstrap").await.json()["entry"]["tunnel"][1].clone();
    assert_eq!((&tcp["host"], &tcp["port"]), (&"tunnels.example.org".into(), &8443.into()));
}

#[tokio::test]
async fn a_killed_entry_has_its_tunnels_over_tcp_back_as_soon_as_it_is_back() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _node = join(&entry, &service).await;
    let (directory, at) = entry.kill();
    let again = Entry::start_in(directory, at.each_ref().map(String::as_str), &[]).await;
    let (took, ()) =
        timed(until("the node is back", async || (again.get("/service/web/").await.status == 200).then_some(()))).await;
    assert!(took.as_secs() < 10, "{took:?}");
}

#[tokio::test]
async fn a_tunnel_over_tcp_does_not_hold_up_a_stop_and_is_told_of_it() {
    let mut entry = Entry::start(&["--drain-timeout", "1h"]).await;
    let service = Service::start().await;
    let mut node = join(&entry, &service).await;
    entry.signal("TERM");
    node.until(
        "the last words",
        |state| matches!(state, TunnelState::Waiting { error, .. } if error.contains("this entry stops")),
    )
    .await;
    assert!(entry.ended().await.success());
}

#[tokio::test]
async fn a_node_that_moves_to_quic_finishes_over_tcp_what_runs_there() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _slow = join(&entry, &service).await;
    let mut held = ask_for_hold(&entry, &service).await;
    // The same process, as it does when QUIC has come up: its connections take the places of those that it has.
    let _quick = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    until("the tunnel goes over QUIC", async || is_up(&entry.admin("/metrics").await, "quic").then_some(())).await;
    service.release.notify_one();
    let mut all = Vec::new();
    in_time("the answer", async {
        let mut byte = [0; 1];
        while !all.ends_with(b"\r\n\r\n") {
            assert_eq!(held.read(&mut byte).await.unwrap(), 1, "{}", String::from_utf8_lossy(&all));
            all.push(byte[0]);
        }
    })
    .await;
    assert_eq!(Answer::parse(&all).status, 200);
    assert_eq!(entry.get("/service/web/").await.status, 200);
}

#[tokio::test]
async fn tls_that_is_no_nodes_is_hung_up_on_where_the_entry_serves_in_the_clear() {
    let entry = Entry::start(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let trusted = certificate(directory.path());
    assert!(connect(&entry, &trusted, &[b"http/1.1"]).await.is_err());
    for garbage in [&[22_u8, 3, 1, 0xff, 0xff, 0][..], &[22; 4096]] {
        let said = say(entry.http, garbage).await;
        assert!(!said.starts_with(b"HTTP/"), "{said:?}");
    }
    assert_eq!(entry.get("/health").await.status, 200);
}

#[tokio::test]
async fn who_asks_for_a_tunnel_and_offers_no_raw_key_is_hung_up_on_and_counted() {
    let entry = Entry::start(&[]).await;
    let stranger = TcpStream::connect(entry.http).await.unwrap();
    let mut stranger = say_hello(stranger).await;
    in_time("it is hung up on", async { stranger.read_to_end(&mut Vec::new()).await.ok() }).await;
    let counted = "hedgerow_entry_tunnel_handshakes_total{outcome=\"failed\"} 1";
    until("it is counted", async || entry.admin("/metrics").await.text().contains(counted).then_some(())).await;
}

/// Asks for a tunnel, with certificates instead of raw keys.
async fn say_hello(mut stream: TcpStream) -> TcpStream {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_TCP.to_vec()];
    let name = "entry.test".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &hello).await.unwrap();
    stream
}
