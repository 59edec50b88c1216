//! Nodes whose network lets no UDP out: the entry tells of a UDP port from which nothing comes back, and they are there all the same,
//! over TCP, and move to QUIC when the port comes to life.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::https::{Authority, curl};
use super::{Check, must};
use crate::client::{ask, get, post, until};
use crate::federation::{Lab, Node, NodeSpec, READY_WITHIN};
use crate::service::Kind;
use crate::terminal::human;

/// Longer than the first pause between two attempts at QUIC, on a busy machine.
const MOVES_WITHIN: Duration = Duration::from_secs(40);
/// A request that runs while the tunnel moves.
const RUNS_FOR: Duration = Duration::from_secs(12);

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "udp-blocked",
            "where no UDP comes through a node serves over TCP, says so, and is back soon after its entry was killed",
            &[],
            blocked,
        ),
        Check::new(
            "udp-blocked-https",
            "the same on the port for https alone, with curl as the client",
            &["curl", "openssl"],
            blocked_https,
        ),
        Check::new("udp-opens", "a tunnel moves to QUIC when that comes through, and no request notices", &[], opens),
    ]
}

async fn blocked(lab: Arc<Lab>) -> Result<String> {
    let gate = Gate::shut().await?;
    let mut entry = lab.entry("entry", &["--tunnel-public", &gate.address.to_string()]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let begun = Instant::now();
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 8), &entry).await?;
    let joined = begun.elapsed();
    let why = over_tcp(&worker).await?;
    let body = Bytes::from(vec![b'h'; 3 << 20]);
    let answer = ask(entry.http, post("/service/kit/echo", body.clone())).await?;
    must!(answer.status == 200 && answer.body == body, "a POST came back as {} bytes", answer.body.len());
    for number in 0..100 {
        let answer = entry.get("/service/kit/hello").await?;
        must!(answer.status == 200, "request {number} was answered {}", answer.summary());
    }
    let metrics = ask(entry.admin, get("/metrics")).await?;
    let line = "hedgerow_entry_tunnels{transport=\"tcp\"}";
    let text = String::from_utf8_lossy(&metrics.body);
    must!(
        text.lines().any(|text| text.starts_with(line) && !text.ends_with(" 0")),
        "the metrics show no tunnel over TCP"
    );

    entry.start_again()?;
    let begun = Instant::now();
    let (_, answer) = until(entry.http, "/service/kit/hello", READY_WITHIN, |answer| answer.status == 200)
        .await
        .context("after the entry was killed")?;
    let back = begun.elapsed();
    must!(answer.status == 200, "it was answered {}", answer.summary());
    over_tcp(&worker).await?;
    Ok(format!(
        "joined after {}, since \"{why}\"; 3 MiB posted, 100 GETs; back {} after the entry was killed",
        human(joined),
        human(back)
    ))
}

async fn blocked_https(lab: Arc<Lab>) -> Result<String> {
    let gate = Gate::shut().await?;
    let authority = Authority::new(lab.workdir.path(), "only").await?;
    let entry = authority.entry(&lab, &["--tunnel-public", &gate.address.to_string()]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let _node = authority.node(&lab, entry.port, &format!("kit=http://{}", kit.listen)).await?;
    let url = format!("https://localhost:{}/service/kit/hello", entry.port);
    let retry = ["--retry", "5", "--retry-delay", "1"];
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let answer = curl(&[&["--cacert", &authority.ca, flag, &url], &retry[..]].concat()).await?;
        must!(answer.starts_with(&format!("{version} 200 hello from kit")), "over {flag} it was answered {answer}");
    }
    Ok("joined and served on the port for https, HTTP/2 and HTTP/1.1".to_owned())
}

async fn opens(lab: Arc<Lab>) -> Result<String> {
    let gate = Gate::shut().await?;
    let entry = lab.entry("entry", &["--tunnel-public", &gate.address.to_string()]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 8), &entry).await?;
    over_tcp(&worker).await?;
    // One that must not run twice, and that nobody may cut off.
    let path = format!("/service/kit/slow?ms={}&key=once", RUNS_FOR.as_millis());
    let long = tokio::spawn(ask(entry.http, post(&path, "x")));
    gate.open(entry.tunnel);
    let begun = Instant::now();
    let (mut asked, mut moved) = (0, None);
    while moved.is_none() || !long.is_finished() {
        let answer = entry.get("/service/kit/hello").await?;
        must!(answer.status == 200, "while it moved a GET was answered {}", answer.summary());
        asked += 1;
        if moved.is_none() && transport(&worker).await? == "quic" {
            moved = Some(begun.elapsed());
        }
        must!(moved.is_some() || begun.elapsed() < MOVES_WITHIN, "the tunnel is still over TCP");
    }
    let answer = long.await??;
    must!(answer.status == 200, "what ran when it moved was answered {}", answer.summary());
    let runs = kit.evidence().await?.runs["once"];
    must!(runs == 1, "it ran {runs} times");
    let moved = moved.context("it has moved")?;
    Ok(format!(
        "over QUIC {} after that came through; {asked} GETs meanwhile, and one of {}",
        human(moved),
        human(RUNS_FOR)
    ))
}

async fn transport(node: &Node) -> Result<String> {
    Ok(node.status().await?["entries"][0]["transport"].as_str().unwrap_or_default().to_owned())
}

/// That its tunnel goes over TCP; why, as its status says.
async fn over_tcp(node: &Node) -> Result<String> {
    let begun = Instant::now();
    loop {
        let status = node.status().await?;
        let entry = &status["entries"][0];
        if let (Some("tcp"), Some(why)) = (entry["transport"].as_str(), entry["why_not_quic"].as_str()) {
            return Ok(why.to_owned());
        }
        must!(begun.elapsed() < READY_WITHIN, "the node's tunnel is {entry}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A UDP port that swallows what comes, until it is opened: then it passes packets on, for each node from a port of its own.
struct Gate {
    address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
    task: AbortHandle,
}

impl Gate {
    async fn shut() -> Result<Self> {
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        let address = outside.local_addr()?;
        let (to, towards) = watch::channel(None);
        let task = tokio::spawn(async move {
            let mut inside = std::collections::BTreeMap::new();
            let mut packet = vec![0; 65536];
            while let Ok((length, from)) = outside.recv_from(&mut packet).await {
                let Some(to) = *towards.borrow() else { continue };
                if let std::collections::btree_map::Entry::Vacant(vacant) = inside.entry(from) {
                    let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                    let socket = Arc::new(socket);
                    vacant.insert(socket.clone());
                    tokio::spawn(back(socket, outside.clone(), from));
                }
                // A packet that is lost is what UDP is like.
                let _ = inside[&from].send_to(&packet[..length], to).await;
            }
        });
        Ok(Self { address, to, task: task.abort_handle() })
    }

    fn open(&self, to: SocketAddr) {
        self.to.send_replace(Some(to));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn back(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, to: SocketAddr) {
    let mut packet = vec![0; 65536];
    while let Ok((length, _)) = inside.recv_from(&mut packet).await {
        let _ = outside.send_to(&packet[..length], to).await;
    }
}
