//! Whatever is said to the entry gets a clear answer, or the end of the connection, and nobody else notices.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::common::{Answer, Entry, in_time, say};
use crate::node::{Node, Says, Service};

/// Heads that are refused: what is said, and the status and the code of the answer.
const HEADS: [(&str, u16, &str); 22] = [
    ("\u{17}\u{3}\u{1}\u{0}garbage\r\n\r\n", 400, "malformed"),
    ("GET / HTTP/1.1\r\nhost: a\r\nbad name: x\r\n\r\n", 400, "malformed"),
    ("GET / HTTP/3.0\r\nhost: a\r\n\r\n", 400, "malformed"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", 400, "malformed"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400, "malformed"),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400, "malformed"),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed"),
    ("GET / HTTP/1.1\r\n\r\n", 400, "host"),
    ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "host"),
    ("GET http://example.org/service/web/ HTTP/1.1\r\nhost: a\r\n\r\n", 400, "absolute-form"),
    ("GET http://example.org/health HTTP/1.1\r\nhost: a\r\n\r\n", 400, "absolute-form"),
    ("CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n", 405, "connect"),
    ("TRACE /health HTTP/1.1\r\nhost: a\r\n\r\n", 405, "trace"),
    ("GET /service/../health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "bad-service-name"),
    ("GET /service/%2e%2e/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "bad-service-name"),
    ("GET /service/a%2fb/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "bad-service-name"),
    ("GET /service/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "bad-service-name"),
    ("GET /service/~ab/web/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "bad-node-id"),
    ("GET /worker/../web/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "bad-worker-id"),
    ("GET /api/anything HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404, "not-found"),
    ("GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404, "not-found"),
    ("POST /health HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", 405, "method"),
];

#[tokio::test]
async fn every_bad_head_gets_a_clear_answer_and_the_end_of_the_connection() {
    let entry = Entry::start(&[]).await;
    for (head, status, code) in HEADS {
        let said = say(entry.http, head.as_bytes()).await;
        let answer = Answer::parse(&said);
        answer.is_problem(status, code);
        assert_eq!(said.windows(10).filter(|w| w == b"HTTP/1.1 4").count(), 1, "one answer to {head:?}");
    }
    assert_eq!(entry.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_head_over_the_limit_is_431() {
    let entry = Entry::start(&["--header-max", "16KiB"]).await;
    let long = "x".repeat(20_000);
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {long}\r\n\r\n");
    Answer::parse(&say(entry.http, head.as_bytes()).await).is_problem(431, "head-too-large");
    let target = format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n");
    Answer::parse(&say(entry.http, target.as_bytes()).await).is_problem(431, "head-too-large");
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a: b\r\n".repeat(200));
    Answer::parse(&say(entry.http, many.as_bytes()).await).is_problem(431, "head-too-large");
    let fits =
        format!("GET /health HTTP/1.1\r\nhost: a\r\ncookie: {}\r\nconnection: close\r\n\r\n", "x".repeat(12_000));
    assert_eq!(Answer::parse(&say(entry.http, fits.as_bytes()).await).status, 200);
}

#[tokio::test]
async fn two_lengths_are_refused_and_nothing_behind_them_is_answered() {
    let entry = Entry::start(&[]).await;
    let (length, chunked) = ("content-length: 6\r\n", "transfer-encoding: chunked\r\n");
    for fields in [format!("{length}{chunked}"), format!("{chunked}{length}")] {
        for path in ["/health", "/service/web/"] {
            let smuggled = "GET /mesh/registry HTTP/1.1\r\nhost: a\r\n\r\n";
            let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n0\r\n\r\n{smuggled}");
            let said = say(entry.http, request.as_bytes()).await;
            let answer = Answer::parse(&said);
            answer.is_problem(400, "ambiguous-length");
            assert_eq!(answer.header("connection"), Some("close"));
            assert_eq!(String::from_utf8_lossy(&said).matches("HTTP/1.1 4").count(), 1, "{path} {fields:?}");
        }
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let entry = Entry::start(&["--body-max", "1KiB"]).await;
    let service = Service::start().await;
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    let request = format!(
        "POST /service/web/ HTTP/1.1\r\nhost: a\r\ncontent-length: 2000\r\nconnection: close\r\n\r\n{}",
        "x".repeat(2000)
    );
    Answer::parse(&say(entry.http, request.as_bytes()).await).is_problem(413, "body-too-large");
}

#[tokio::test]
async fn a_client_that_says_nothing_or_half_a_head_is_let_go_of() {
    let entry = Entry::start(&["--header-timeout", "300ms"]).await;
    for half in ["", "P", "PRI", "GET / HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(entry.http).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // The connection ends, with or without a reset.
        let _ = in_time(half, stream.read_to_end(&mut rest)).await;
    }
    assert_eq!(entry.get("/health").await.status, 200);
}

#[tokio::test]
async fn garbage_on_the_tunnels_port_disturbs_nobody() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..300 {
        let mut datagram = vec![0; random.usize(1..1400)];
        random.fill(&mut datagram);
        if round % 2 == 0 {
            // As the first packet of a QUIC connection begins.
            datagram[0] |= 0xc0;
            datagram.splice(1..datagram.len().min(5), [0, 0, 0, 1]);
        }
        stranger.send_to(&datagram, entry.tunnel).await.unwrap();
    }
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    assert_eq!(entry.get("/service/web/a").await.status, 200);
}

#[tokio::test]
async fn a_flood_of_resets_ends_an_http2_connection_and_no_other() {
    let entry = Entry::start(&[]).await;
    let mut stream = TcpStream::connect(entry.http).await.unwrap();
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // `GET /health` (RFC 7541 §6.1, with a literal path), at once taken back: CVE-2023-44487.
    let head = [0x82, 0x86, 0x04, 0x07, b'/', b'h', b'e', b'a', b'l', b't', b'h', 0x41, 0x01, b'a'];
    for stream in (1_u32..20_001).step_by(2) {
        flood.extend([0, 0, head.len() as u8, 1, 0x05]);
        flood.extend(stream.to_be_bytes());
        flood.extend(head);
        flood.extend([0, 0, 4, 3, 0]);
        flood.extend(stream.to_be_bytes());
        flood.extend(8_u32.to_be_bytes());
    }
    let (mut read, mut write) = stream.split();
    let mut said = Vec::new();
    // Either half may fail once the entry has hung up.
    let ended = async {
        tokio::join!(async { write.write_all(&flood).await.ok() }, async { read.read_to_end(&mut said).await.ok() })
    };
    in_time("the flood is cut off", ended).await;
    assert_eq!(entry.get("/health").await.status, 200);
}

#[tokio::test]
async fn connections_over_the_limit_wait_their_turn() {
    let entry = Entry::start(&["--connections-max", "2"]).await;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(entry.http).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        waiting.push(stream);
    }
    for mut stream in waiting {
        let mut all = Vec::new();
        in_time("its turn", stream.read_to_end(&mut all)).await.unwrap();
        assert_eq!(Answer::parse(&all).status, 200);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let entry = Entry::start(&[]).await;
    let one = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
    let sized = "POST /nothing HTTP/1.1\r\nhost: a\r\ncontent-length: 23\r\n\r\ntransfer-encoding: x\r\n\r\n";
    let last = "GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let all = [one("/health"), sized.to_owned(), one("/health"), last.to_owned()].concat();
    let said = say(entry.http, all.as_bytes()).await;
    let text = String::from_utf8_lossy(&said);
    let statuses: Vec<_> = text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at + 9..at + 12].to_owned()).collect();
    assert_eq!(statuses, ["200", "404", "200", "404"], "{text}");
}
