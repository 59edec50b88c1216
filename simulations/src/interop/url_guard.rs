//! Where agents of the existing contract may not send entries and coordinators: a canary sits there and counts who comes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::contract::all_know;
use super::{Check, must};
use crate::client::{ask, get, post};
use crate::federation::Lab;
use crate::federation::READY_WITHIN;
use crate::federation::mesh::Mesh;
use crate::terminal::human;

pub(super) fn checks() -> Vec<Check> {
    vec![Check::new(
        "url-guard",
        "agents at private addresses are registered, with the reason why nothing is sent there, and nothing is",
        &[],
        guard,
    )]
}

/// Takes connections, counts them and hangs up.
struct Canary {
    address: SocketAddr,
    hits: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Canary {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (address, hits) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let count = hits.clone();
        let task = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { address, hits, task })
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn register(door: SocketAddr, id: &str, tunnel_url: &str) -> Result<serde_json::Value> {
    let said = json!({
        "worker_id": id,
        "worker_type": "cpu",
        "tunnel_url": tunnel_url,
        "services": ["guarded"],
        "capabilities": {},
    });
    let answer = ask(door, post("/api/worker/register", said.to_string())).await?;
    must!(answer.status == 200, "{tunnel_url} was answered {}", answer.summary());
    Ok(answer.json())
}

async fn guard(lab: Arc<Lab>) -> Result<String> {
    let guarded = Mesh::start(&lab, &[], 1, &[]).await?;
    let canary = Canary::start().await?;
    let port = canary.address.port();
    let urls = [
        format!("http://127.0.0.1:{port}"),
        format!("https://127.0.0.1:{port}"),
        format!("http://localhost:{port}"),
        format!("https://localhost:{port}"),
        format!("https://[::1]:{port}"),
        format!("https://[::ffff:127.0.0.1]:{port}"),
        format!("https://2130706433:{port}"),
        format!("https://127.1:{port}"),
        format!("https://anybody@127.0.0.1:{port}"),
        format!("https://127.0.0.1:{port}/.trycloudflare.com"),
        "https://127.0.0.1".to_owned(),
        "http://169.254.169.254".to_owned(),
        "http://10.0.0.1".to_owned(),
    ];
    let mut ids = Vec::new();
    let doors = guarded.doors()?;
    for (number, url) in urls.iter().enumerate() {
        let id = format!("agent-{number}");
        let told = register(doors[number % doors.len()], &id, url).await?;
        must!(told["status"] == "registered" && told["routable"] == false, "{url} was answered {told}");
        must!(told["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{url}: no reason in {told}");
        ids.push(id);
    }
    all_know(&doors, &ids, true, Duration::from_secs(10)).await?;
    // What the guard keeps from happening happens here: the same agent, later, where an operator allows it.
    let unguarded = lab.entry("entry-unguarded", &["--allow-private-urls"]).await?;
    let (asking, allowing) = (lab.entry("entry-asking", &[]).await?, ["--allow-private-urls"]);
    let coordinator = |name: &str| crate::federation::NodeSpec::coordinator(name);
    let _quiet = lab.node(coordinator("coordinator-quiet"), &unguarded).await?;
    let unguarded_coordinator = lab.node(coordinator("coordinator-unguarded").extra(&allowing), &asking).await?;
    let mut asked_after = Duration::ZERO;
    // An entry that may ask beside a coordinator that may not, and the other way round.
    for door in [unguarded.http, unguarded_coordinator.own_port()?] {
        let control = Canary::start().await?;
        let begin = Instant::now();
        let told = register(door, "agent", &format!("http://{}", control.address)).await?;
        must!(told["routable"] == true, "where it is allowed it was answered {told}");
        while control.hits() < 2 {
            must!(begin.elapsed() < READY_WITHIN, "an agent that may be asked is not: the check proves nothing");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        asked_after = asked_after.max(begin.elapsed());
    }
    for door in doors {
        for id in &ids {
            let why = ask(door, get(&format!("/worker/{id}/guarded/x"))).await.context("a request for an agent")?;
            must!(why.status == 503, "{id} was asked for and answered {}", why.summary());
            must!(
                why.text().contains("registered and not routable"),
                "at {door} no reason is given: {}",
                why.summary()
            );
            let answer = ask(door, get("/service/guarded/x")).await.context("a request for a guarded service")?;
            must!(answer.status == 503, "the service was answered {}", answer.summary());
        }
    }
    must!(canary.hits() == 0, "the canary was asked {} times", canary.hits());
    Ok(format!(
        "{} URLs registered with a reason, 0 connections by the entry and by the coordinator; where it is allowed 2 within {}",
        urls.len(),
        human(asked_after)
    ))
}
