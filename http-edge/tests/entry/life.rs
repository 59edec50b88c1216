//! From the first tunnel to the last request.

use hedgerow_proto::frame::RejectReason;
use hedgerow_tunnel::TunnelState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Answer, Entry, command, in_time, timed, until};
use crate::node::{Node, Says, Service};

/// Asks for what the service holds back, on a connection of its own.
pub(crate) async fn ask_for_hold(entry: &Entry, service: &Service) -> TcpStream {
    let mut stream = TcpStream::connect(entry.http).await.unwrap();
    stream.write_all(b"GET /service/web/hold HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    in_time("the request is at the service", service.holding.notified()).await;
    stream
}

#[tokio::test]
async fn a_stopped_entry_finishes_what_runs_and_takes_nothing_new() {
    let mut entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    let mut stream = ask_for_hold(&entry, &service).await;
    let mut idle = TcpStream::connect(entry.http).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_ne!(idle.read(&mut [0; 4096]).await.unwrap(), 0);

    entry.signal("TERM");
    in_time("the idle connection is closed", idle.read_to_end(&mut Vec::new())).await.unwrap();
    let http = entry.http;
    until("nothing new is taken", async || TcpStream::connect(http).await.err()).await;
    assert_eq!(entry.admin("/readyz").await.status, 503, "the operator can watch it drain");

    service.release.notify_one();
    let mut all = Vec::new();
    in_time("the answer", stream.read_to_end(&mut all)).await.unwrap();
    let answer = Answer::parse(&all);
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("GET /hold "), "{answer:?}");
    assert!(entry.ended().await.success());
    assert!(entry.log().contains("drained"), "{}", entry.log());
}

#[tokio::test]
async fn a_drain_is_bounded_and_a_second_signal_ends_it_at_once() {
    for (extra, signals) in [(["--drain-timeout", "200ms"], 1), (["--drain-timeout", "1h"], 2)] {
        let mut entry = Entry::start(&extra).await;
        let service = Service::start().await;
        let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
        let mut stream = ask_for_hold(&entry, &service).await;
        entry.signal("TERM");
        if signals == 2 {
            let log = || entry.log();
            until("the first signal was heard", async || log().contains("draining").then_some(())).await;
            entry.signal("INT");
        }
        assert!(entry.ended().await.success());
        in_time("the connection is cut off", async { stream.read_to_end(&mut Vec::new()).await.ok() }).await;
    }
}

#[tokio::test]
async fn a_killed_entry_routes_again_as_soon_as_it_is_back() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    assert_eq!(entry.get("/service/web/").await.status, 200);
    let (directory, at) = entry.kill();
    let again = Entry::start_in(directory, at.each_ref().map(String::as_str), &[]).await;
    let (took, ()) =
        timed(until("the node is back", async || (again.get("/service/web/").await.status == 200).then_some(()))).await;
    // The issue asks for 2 s on a quiet machine; reset keys make it one ping. This is what no time-out could reach.
    assert!(took.as_secs() < 10, "{took:?}");
}

#[tokio::test]
async fn ready_means_that_a_node_is_here() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    assert_eq!(entry.admin("/healthz").await.status, 200);
    assert_eq!(entry.admin("/readyz").await.status, 503);
    let node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    until("ready", async || (entry.admin("/readyz").await.status == 200).then_some(())).await;
    drop(node);
    until("not ready", async || (entry.admin("/readyz").await.status == 503).then_some(())).await;
}

#[tokio::test]
async fn a_second_process_with_the_same_key_takes_over_and_the_first_is_told() {
    let entry = Entry::start(&[]).await;
    let (one, two) = (Service::start().await, Service::start().await);
    let mut first = Node::join(&entry, one.address, Says::worker(1, &["web"])).await;
    let newer = Says { epoch: 2, ..Says::worker(1, &["web"]) };
    let mut second = Node::join(&entry, two.address, newer).await;
    let told =
        |state: &TunnelState| matches!(state, TunnelState::Rejected(reject) if reject.reason == RejectReason::KeyInUse);
    first.until("the first is told that its key is in use", told).await;
    second.until("the second stays", |state| matches!(state, TunnelState::Up(_))).await;
    until("the second answers", async || {
        let answer = entry.get("/service/web/").await;
        answer.text().contains(&format!("host: {}", two.address)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request_at_the_service() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    let stream = ask_for_hold(&entry, &service).await;
    drop(stream);
    in_time("the service sees it", service.cancelled.notified()).await;
}

#[tokio::test]
async fn many_nodes_that_come_at_once_all_get_in() {
    // More than may shake hands before the entry asks them to prove their addresses first.
    const NODES: u8 = 200;
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let mut nodes: Vec<_> =
        (0..NODES).map(|seed| Node::start(&entry, service.address, Says::worker(seed, &["web"]))).collect();
    for node in &mut nodes {
        node.until("every tunnel is up", |state| matches!(state, TunnelState::Up(_))).await;
    }
    until("all are routed to", async || {
        let registry = entry.get("/mesh/registry").await.json();
        (registry["services"]["web"]["routable"] == NODES).then_some(())
    })
    .await;
    for _ in 0..50 {
        assert_eq!(entry.get("/service/web/").await.status, 200);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_log_on_a_full_disk_does_not_end_the_entry() {
    let directory = tempfile::tempdir().unwrap();
    // Writing to this device fails as on a full disk.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut entry = command(directory.path())
        .args(["--listen", "127.0.0.1:0", "--key-file", "entry.key", "--ready-file", "ready.json"])
        .stderr(full)
        .spawn()
        .unwrap();
    let ready = directory.path().join("ready.json");
    let listens = until("the entry listens or ends", async || match entry.try_wait().unwrap() {
        Some(_) => Some(false),
        None => ready.exists().then_some(true),
    })
    .await;
    entry.kill().unwrap();
    entry.wait().unwrap();
    assert!(listens);
}
