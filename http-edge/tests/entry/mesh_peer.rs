//! The way to coordinators for those who speak libp2p: whom it leads to, and whom it does not.

use std::net::SocketAddr;

use hedgerow_proto::id::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Answer, Entry, get, in_time, say, until};
use crate::node::{Node, Says, Service};

/// As many as one coordinator, and one source, may have.
const PER_TARGET_MAX: usize = 64;
const PER_SOURCE_MAX: usize = 8;

fn head(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: entry.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

fn path_to(node: NodeId) -> String {
    format!("/mesh/peer/{node}")
}

/// A peer that was let through.
struct Through {
    stream: TcpStream,
    head: String,
    /// What the coordinator was asked.
    asked: String,
}

/// Reads to the end of a head.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time("a head", stream.read_u8()).await.unwrap_or_else(|_| panic!("it ended: {head:?}")));
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

async fn connect(to: SocketAddr, path: &str, more: &str) -> Through {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(head(path, more).as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let asked = read_head(&mut stream).await;
    Through { stream, head, asked }
}

impl Through {
    async fn echoes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        let mut heard = vec![0; bytes.len()];
        in_time("an echo", self.stream.read_exact(&mut heard)).await.unwrap();
        assert!(heard == bytes);
    }

    async fn ended(mut self) {
        // A reset is an end as well.
        let _ = in_time("the end", self.stream.read_to_end(&mut Vec::new())).await;
    }
}

async fn refused(to: SocketAddr, path: &str, more: &str) -> Answer {
    Answer::parse(&say(to, head(path, &format!("connection: close\r\n{more}")).as_bytes()).await)
}

#[tokio::test]
async fn a_peer_is_let_through_to_the_coordinator_that_it_names() {
    let (entry, service) = (Entry::start(&[]).await, Service::start().await);
    let one = Node::join(&entry, service.address, Says::coordinator(1)).await;
    let other = Node::join(&entry, service.address, Says::coordinator(2)).await;
    for node in [&one, &other] {
        let path = path_to(node.id());
        let mut peer = connect(entry.http, &path, "sec-websocket-extensions: x\r\ncookie: a\r\n").await;
        assert!(peer.head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{}", peer.head);
        assert!(peer.asked.starts_with(&format!("get {path} http/1.1\r\n")), "{}", peer.asked);
        assert!(peer.asked.contains("\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n"), "{}", peer.asked);
        // What only the entry need know stays there.
        assert!(!peer.asked.contains("cookie") && !peer.asked.contains("extensions"), "{}", peer.asked);
        peer.echoes(&vec![7; 300_000]).await;
    }
}

#[tokio::test]
async fn who_does_not_care_whom_it_meets_is_let_through_to_any_coordinator() {
    let (entry, service) = (Entry::start(&[]).await, Service::start().await);
    refused(entry.http, "/mesh/peer/any", "").await.is_problem(503, "no-coordinator");
    let _worker = Node::join(&entry, service.address, Says::worker(2, &["web"])).await;
    refused(entry.http, "/", "").await.is_problem(503, "no-coordinator");
    let node = Node::join(&entry, service.address, Says::coordinator(1)).await;
    for path in ["/mesh/peer/any", "/"] {
        let mut peer = connect(entry.http, path, "").await;
        assert!(peer.asked.starts_with(&format!("get {} ", path_to(node.id()))), "{}", peer.asked);
        peer.echoes(b"ciphertext").await;
    }
    assert_eq!(entry.get("/").await.status, 200, "for whoever asks for a page it is one");
}

#[tokio::test]
async fn whoever_is_no_live_coordinator_is_not_reached() {
    let (entry, service) = (Entry::start(&[]).await, Service::start().await);
    let worker = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    refused(entry.http, &path_to(worker.id()), "").await.is_problem(404, "unknown-peer");
    refused(entry.http, &path_to(NodeId([9; 32])), "").await.is_problem(404, "unknown-peer");
    refused(entry.http, "/mesh/peer/me", "").await.is_problem(404, "bad-node-id");

    let node = Node::join(&entry, service.address, Says::coordinator(2)).await;
    let path = path_to(node.id());
    get(entry.http, &path).await.is_problem(426, "websocket-required");
    let post = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let answer = Answer::parse(&say(entry.http, post.as_bytes()).await);
    answer.is_problem(405, "method");
    assert_eq!(answer.header("allow"), Some("get, options"));

    let peer = connect(entry.http, &path, "").await;
    drop(node);
    peer.ended().await;
    until("its end is known", async || {
        let answer = refused(entry.http, &path, "").await;
        matches!(answer.status, 404 | 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_has_so_many_peers_and_room_again_when_one_goes() {
    let (entry, service) = (Entry::start(&[]).await, Service::start().await);
    let node = Node::join(&entry, service.address, Says::coordinator(1)).await;
    let path = path_to(node.id());
    let mut peers = Vec::new();
    for _ in 0..PER_TARGET_MAX {
        peers.push(connect(entry.http, &path, "").await);
    }
    let full = refused(entry.http, &path, "").await;
    full.is_problem(503, "peers-full");
    assert!(full.header("retry-after").is_some(), "{full:?}");
    refused(entry.http, "/mesh/peer/any", "").await.is_problem(503, "peers-full");
    let metrics = entry.admin("/metrics").await.text();
    assert!(metrics.contains(&format!("hedgerow_entry_mesh_peers_open {PER_TARGET_MAX}\n")), "{metrics}");
    assert!(metrics.contains("mesh_peers_total{outcome=\"refused\"} 2\n"), "{metrics}");

    drop(peers.pop());
    until("there is room", async || {
        let mut stream = TcpStream::connect(entry.http).await.unwrap();
        stream.write_all(head(&path, "").as_bytes()).await.unwrap();
        read_head(&mut stream).await.starts_with("http/1.1 101").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_source_has_few_peers_whatever_it_claims_to_be() {
    let (entry, service) = (Entry::start(&["--trusted-proxy", "127.0.0.1"]).await, Service::start().await);
    let _node = Node::join(&entry, service.address, Says::coordinator(1)).await;
    let from = |address: &str| format!("x-forwarded-for: 198.51.100.1, {address}\r\n");
    let mut peers = Vec::new();
    for last in 1..=PER_SOURCE_MAX {
        peers.push(connect(entry.http, "/mesh/peer/any", &from(&format!("203.0.113.{last}"))).await);
    }
    let answer = refused(entry.http, "/mesh/peer/any", &from("203.0.113.200")).await;
    answer.is_problem(429, "too-many-peers");
    connect(entry.http, "/mesh/peer/any", &from("203.0.114.1")).await.echoes(b"another network").await;
    connect(entry.http, "/mesh/peer/any", "").await.echoes(b"this very machine").await;
}
