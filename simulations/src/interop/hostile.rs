//! Bytes that no well-behaved peer sends: a clear error, a process that lives, and other requests untouched.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::net::UdpSocket;

use super::{Check, must, raw};
use crate::client::load::{Load, Plan, Target, reasons};
use crate::client::{ask, post};
use crate::federation::{Entry, Lab, Node, NodeSpec, Service};
use crate::service::Kind;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "hostile-requests",
            "smuggled, oversized and misdirected requests are refused, others are untouched",
            &[],
            requests,
        ),
        Check::new("oversized-body", "a body over the operator's limit is 413, announced or not", &[], large_bodies),
        Check::new("hostile-names", "`..`, `%2f` and the like in a service name never leave the route", &[], names),
        Check::new("hostile-tunnel", "garbage at the tunnel's port harms nobody", &[], tunnel),
    ]
}

async fn stage(lab: &Arc<Lab>) -> Result<(Entry, Service, Node, Load)> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 64), &entry).await?;
    let path = "/service/kit/hello".to_owned();
    let target = Target { label: "GET", method: "GET", path, body: Default::default(), expected: "hello", weight: 1 };
    let plan = Plan { to: entry.http, targets: vec![target], clients: 2, rest: Duration::from_millis(5), total: None };
    let bystanders = Load::start(plan);
    Ok((entry, kit, worker, bystanders))
}

async fn untouched(entry: &Entry, worker: &Node, bystanders: Load) -> Result<usize> {
    must!(entry.process.is_running(), "the entry has ended");
    must!(worker.process.is_running(), "the node has ended");
    let samples = bystanders.stop().await;
    let failed = reasons(&samples);
    must!(failed.is_empty(), "other requests failed: {failed:?}");
    Ok(samples.len())
}

async fn requests(lab: Arc<Lab>) -> Result<String> {
    let (entry, kit, worker, bystanders) = stage(&lab).await?;
    let before = kit.evidence().await?.runs.len();
    let long = "x".repeat(200_000);
    let many = (0..2000).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let host = "Host: x\r\n";
    let path = "/service/kit/digest?key=smuggled";
    // Each with the statuses that are right for it.
    let cases: Vec<(&str, String, &[u16])> = vec![
        (
            "CL+TE",
            format!(
                "POST {path} HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /service/kit/hello?key=smuggled HTTP/1.1\r\n{host}\r\n"
            ),
            &[400],
        ),
        (
            "two lengths",
            format!("POST {path} HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
            &[400],
        ),
        ("a length that is none", format!("POST {path} HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\nhello"), &[400]),
        (
            "an unknown coding",
            format!("POST {path} HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            &[400, 501],
        ),
        ("a space before the colon", format!("GET {path} HTTP/1.1\r\n{host}Content-Length : 5\r\n\r\nhello"), &[400]),
        ("a folded header", format!("GET {path} HTTP/1.1\r\n{host}X-A: b\r\n Content-Length: 5\r\n\r\n"), &[400]),
        ("no Host", format!("GET {path} HTTP/1.1\r\n\r\n"), &[400]),
        ("a head of 200 kB", format!("GET {path} HTTP/1.1\r\n{host}X-Long: {long}\r\n\r\n"), &[400, 431]),
        ("a target of 200 kB", format!("GET /service/kit/{long} HTTP/1.1\r\n{host}\r\n"), &[400, 414, 431]),
        ("2,000 headers", format!("GET {path} HTTP/1.1\r\n{host}{many}\r\n"), &[400, 431]),
        ("CONNECT", format!("CONNECT example.org:443 HTTP/1.1\r\n{host}\r\n"), &[400, 405, 501]),
        ("an absolute target elsewhere", format!("GET http://127.0.0.1:1/ HTTP/1.1\r\n{host}\r\n"), &[400, 404, 421]),
        ("no HTTP at all", "\x05\x01\x00\r\n\r\n".to_owned(), &[400]),
        // What begins like TLS may be a node's tunnel, and is answered as TLS is: by an alert.
        ("no TLS either", "\x16\x03\x01\x00\x05hello".to_owned(), &[]),
        ("HTTP/3.7", format!("GET {path} HTTP/3.7\r\n{host}\r\n"), &[400, 505]),
    ];
    let count = cases.len();
    for (name, bytes, allowed) in cases {
        let reply = raw::send(entry.http, bytes.as_bytes()).await?;
        // A connection closed without a word is a refusal as well, if a rude one.
        must!(reply.status == 0 || allowed.contains(&reply.status), "{name} was answered {}", reply.first_line());
        must!(reply.answers() <= 1, "{name} was answered {} times: smuggling works", reply.answers());
        must!(reply.closed || reply.status == 404 || reply.status == 405, "after {name} the connection stays open");
    }
    let runs = kit.evidence().await?.runs.len() - before;
    must!(runs == 0, "{runs} of them reached the service");
    let others = untouched(&entry, &worker, bystanders).await?;
    Ok(format!("{count} kinds refused, none reached the service, {others} other requests untouched"))
}

async fn large_bodies(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &["--body-max", "1000000"]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 64), &entry).await?;
    let fits = ask(entry.http, post("/service/kit/digest", vec![b'x'; 1_000_000])).await?;
    must!(fits.status == 200, "a body of the allowed size was answered {}", fits.summary());
    let announced = "POST /service/kit/digest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n";
    let reply = raw::send(entry.http, announced.as_bytes()).await?;
    must!(reply.status == 413, "a body that is announced too large was answered {}", reply.first_line());
    let mut chunked = b"POST /service/kit/digest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        chunked.extend_from_slice(b"7530\r\n");
        chunked.extend_from_slice(&[b'x'; 0x7530]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let reply = raw::send(entry.http, &chunked).await?;
    // The entry may close while we still write, so that its words are lost on the way.
    must!(matches!(reply.status, 413 | 0), "a body that turns out too large was answered {}", reply.first_line());
    let completed = kit.evidence().await?.completed;
    must!(completed == 1, "{completed} of three bodies were taken as whole");
    let again = entry.get("/service/kit/hello").await?;
    must!(again.status == 200, "afterwards the service was answered {}", again.summary());
    Ok("413 for what is announced too large, and for what turns out so".to_owned())
}

async fn names(lab: Arc<Lab>) -> Result<String> {
    let (entry, _kit, worker, bystanders) = stage(&lab).await?;
    let names =
        ["..", "%2e%2e", "kit%2f..", "%2fkit", "kit%00", "..%2fkit", "KIT%0d%0a", "%ff", "a%20b", "~", "~zz", ""];
    for name in names {
        let reply =
            raw::send(entry.http, format!("GET /service/{name}/hello HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
        must!(matches!(reply.status, 400 | 404 | 503), "the name {name:?} was answered {}", reply.first_line());
        must!(!reply.text.contains("hello from"), "the name {name:?} reached a service");
    }
    let reply = raw::send(entry.http, b"GET /service/kit/../../health HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    must!(!reply.text.contains("coordinators"), "dots after the name left the service: {}", reply.text);
    let others = untouched(&entry, &worker, bystanders).await?;
    Ok(format!("{} names refused, {others} other requests untouched", names.len()))
}

async fn tunnel(lab: Arc<Lab>) -> Result<String> {
    let (entry, _kit, worker, bystanders) = stage(&lab).await?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    // Noise, a QUIC long header with a wrong version, an Initial with nothing in it, and an empty datagram.
    let noise: Vec<u8> = (0..1400_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let mut initial = vec![0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0xb0];
    initial.resize(1200, 7);
    let mut version = vec![0xff, 0xfa, 0xce, 0xb0, 0x0c, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
    version.resize(1200, 0);
    let mut sent = 0;
    for round in 0..200_usize {
        for datagram in [noise.as_slice(), &initial, &version, &[], &noise[..round.min(1400)]] {
            if socket.send_to(datagram, entry.tunnel).await.is_ok() {
                sent += 1;
            }
        }
        if round % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let again = entry.get("/service/kit/hello").await?;
    must!(again.status == 200, "afterwards the service was answered {}", again.summary());
    let others = untouched(&entry, &worker, bystanders).await?;
    Ok(format!("{sent} datagrams of garbage, {others} other requests untouched"))
}
