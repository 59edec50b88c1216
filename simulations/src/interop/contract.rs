//! Agents of the existing contract and their coordinators: whoever is asked knows every agent, whoever has died meanwhile.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{Check, must};
use crate::client::{Answer, ask, get, post, request};
use crate::federation::mesh::Mesh;
use crate::federation::{Lab, NodeSpec, READY_WITHIN, Service};
use crate::service::Kind;
use crate::terminal::human;

/// Agents that come and go in one check.
const AGENTS: usize = 60;
/// Agents that are under way while a coordinator dies.
const AGENTS_AT_A_DEATH: usize = 8;
/// How long an agent waits for the answer to its heartbeat.
const AGENTS_PATIENCE: Duration = Duration::from_secs(5);
/// The service that all agents here offer, and a native worker too: so somebody offers it wherever one asks.
const SERVICE: &str = "kit";

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "contract-anywhere",
            "60 agents register, heartbeat and are discovered at doors picked at random: no 404 and no 5xx",
            &[],
            anywhere,
        ),
        Check::new(
            "contract-killed-between",
            "each coordinator is killed between an agent's steps: through the entry no 404 and no 5xx, and all stay known",
            &[],
            killed_between,
        ),
        Check::new(
            "contract-silence",
            "an agent that is silent for a while comes back with its next heartbeat; one silent for too long is gone everywhere",
            &[],
            silence,
        ),
    ]
}

/// A federation in which a native worker offers what the agents offer.
struct World {
    mesh: Mesh,
    service: Service,
    _worker: crate::federation::Node,
}

impl World {
    async fn start(lab: &Arc<Lab>, coordinator: &[&str]) -> Result<Self> {
        let mesh = Mesh::start(lab, &["--allow-private-urls"], 3, coordinator).await?;
        let service = lab.service("kit", Kind::Kit).await?;
        let spec = NodeSpec::worker("worker").offers(SERVICE, service.listen, 64);
        let worker = lab.node(spec, &mesh.entry).await?;
        let world = Self { mesh, service, _worker: worker };
        for door in world.mesh.doors()? {
            let path = format!("/api/services/discover/{SERVICE}");
            crate::client::until(door, &path, READY_WITHIN, |answer| answer.status == 200)
                .await
                .context("the native worker is not found")?;
        }
        Ok(world)
    }

    fn register(&self, worker_id: &str) -> String {
        let said = json!({
            "worker_id": worker_id,
            "worker_type": "cpu",
            "tunnel_url": format!("http://{}", self.service.listen),
            "services": [SERVICE],
            "capabilities": { "cpu_cores": 4, "ram": "8GB" },
        });
        said.to_string()
    }
}

/// One thing that an agent or its client asks, and the door at which it asks.
async fn step(door: SocketAddr, what: &str, question: hyper::Request<crate::client::Sent>) -> Result<Answer> {
    let begin = Instant::now();
    let answer = ask(door, question).await.with_context(|| format!("{what} at {door}"))?;
    must!(begin.elapsed() < AGENTS_PATIENCE, "{what} at {door} was answered after {:?}", begin.elapsed());
    must!(answer.status == 200, "{what} at {door} was answered {}", answer.summary());
    Ok(answer)
}

async fn register(world: &World, door: SocketAddr, id: &str) -> Result<()> {
    let answer = step(door, &format!("{id} registers"), post("/api/worker/register", world.register(id))).await?;
    must!(answer.json()["worker_id"] == id, "{id} was registered as {}", answer.json()["worker_id"]);
    Ok(())
}

pub(super) fn heartbeat_of(id: &str) -> hyper::Request<crate::client::Sent> {
    let said = json!({ "worker_id": id, "status": "healthy", "current_load": 0.25 });
    post("/api/worker/heartbeat", said.to_string())
}

async fn heartbeat(door: SocketAddr, id: &str) -> Result<()> {
    let answer = step(door, &format!("{id} sends a heartbeat"), heartbeat_of(id)).await?;
    must!(answer.json()["status"] == "ok", "a heartbeat was answered {}", answer.summary());
    Ok(())
}

/// Asks who offers the service and who is known. Whether the agent is among the latter.
async fn discover(door: SocketAddr, id: &str) -> Result<bool> {
    let path = format!("/api/services/discover/{SERVICE}");
    let offered = step(door, &format!("{id}'s service is discovered"), get(&path)).await?;
    must!(offered.json()["count"].as_u64() > Some(0), "a discovery without workers: {}", offered.summary());
    Ok(known(door).await?.contains(id))
}

/// The workers that a door knows.
pub(super) async fn known(door: SocketAddr) -> Result<BTreeSet<String>> {
    let listed = step(door, "the list of workers", get("/api/admin/workers")).await?.json();
    let workers = listed["workers"].as_array().context("a list without workers")?;
    Ok(workers.iter().filter_map(|worker| worker["worker_id"].as_str().map(str::to_owned)).collect())
}

/// Waits until every door knows all of these, or none of them. How long it took.
pub(super) async fn all_know(
    doors: &[SocketAddr],
    ids: &[String],
    expected: bool,
    within: Duration,
) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let mut wrong = Vec::new();
        for door in doors {
            let known = known(*door).await?;
            wrong.extend(ids.iter().filter(|id| known.contains(*id) != expected).map(|id| format!("{id} at {door}")));
        }
        if wrong.is_empty() {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > within {
            let word = if expected { "not known" } else { "still known" };
            bail!("after {within:?} {word}: {}", wrong.join(", "));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Picks doors; what it picked can be had again by its seed.
fn chance() -> (u64, fastrand::Rng) {
    let seed = u64::from(std::process::id()) ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
    (seed, fastrand::Rng::with_seed(seed))
}

async fn anywhere(lab: Arc<Lab>) -> Result<String> {
    let world = World::start(&lab, &[]).await?;
    let doors = world.mesh.doors()?;
    let (seed, mut chance) = chance();
    let mut pick = || doors[chance.usize(..doors.len())];
    let (mut late, mut longest, mut ids) = (0, Duration::ZERO, Vec::new());
    for number in 0..AGENTS {
        let id = format!("agent-{number}");
        let (first, second, third) = (pick(), pick(), pick());
        let sequence = async {
            register(&world, first, &id).await?;
            heartbeat(second, &id).await?;
            discover(third, &id).await
        };
        let begin = Instant::now();
        if !sequence.await.with_context(|| format!("seed {seed}"))? {
            late += 1;
        }
        longest = longest.max(begin.elapsed());
        ids.push(id);
    }
    all_know(&doors, &ids, true, Duration::from_secs(10)).await?;
    // And out again, each at one more door.
    for id in &ids {
        step(
            pick(),
            &format!("{id} goes"),
            request("DELETE", &format!("/api/worker/unregister/{id}"), [].as_slice().into()),
        )
        .await
        .with_context(|| format!("seed {seed}"))?;
    }
    let gone = all_know(&doors, &ids, false, Duration::from_secs(10)).await?;
    Ok(format!(
        "{AGENTS} agents at 4 doors (seed {seed}): 0 × 404, 0 × 5xx; {late} not yet listed at the third door; longest {} for \
         all steps; all gone {} after the last word",
        human(longest),
        human(gone)
    ))
}

/// Before which step of the agents a coordinator dies.
#[derive(Debug, Clone, Copy)]
enum Before {
    Heartbeat,
    Discovery,
}

async fn killed_between(lab: Arc<Lab>) -> Result<String> {
    let mut world = World::start(&lab, &[]).await?;
    let entry = world.mesh.entry.http;
    let (mut all, mut longest, mut orphans) = (Vec::new(), Duration::ZERO, 0);
    for index in 0..world.mesh.coordinators.len() {
        for before in [Before::Heartbeat, Before::Discovery] {
            let ids: Vec<_> =
                (0..AGENTS_AT_A_DEATH).map(|number| format!("agent-{index}-{before:?}-{number}")).collect();
            for id in &ids {
                register(&world, entry, id).await?;
            }
            if let Before::Discovery = before {
                for id in &ids {
                    heartbeat(entry, id).await?;
                }
            }
            let coordinator = &world.mesh.coordinators[index];
            orphans += coordinator.on_the_mesh().await?["agents"].as_u64().unwrap_or(0);
            coordinator.process.kill();
            let dead = || format!("{} was killed before the {before:?}", world.mesh.coordinators[index].name());
            for id in &ids {
                let begin = Instant::now();
                if let Before::Heartbeat = before {
                    heartbeat(entry, id).await.with_context(dead)?;
                }
                must!(discover(entry, id).await.with_context(dead)?, "{id} is not listed by the entry; {}", dead());
                longest = longest.max(begin.elapsed());
            }
            all.extend(ids);
            world.mesh.start_again(index).await?;
        }
    }
    must!(orphans > 0, "no agent was with a coordinator that was killed: the check proves nothing");
    let doors = world.mesh.doors()?;
    all_know(&doors, &all, true, Duration::from_secs(10)).await?;
    for (number, id) in all.iter().enumerate() {
        heartbeat(doors[number % doors.len()], id).await?;
    }
    Ok(format!(
        "6 deaths of 3 coordinators, {orphans} agents were with them: 0 × 404, 0 × 5xx, longest step {}; all {} agents known after",
        human(longest),
        all.len()
    ))
}

async fn silence(lab: Arc<Lab>) -> Result<String> {
    let timeouts = ["--heartbeat-timeout", "3s", "--worker-timeout", "8s"];
    let world = World::start(&lab, &timeouts).await?;
    let doors = world.mesh.doors()?;
    let (sleeper, dead) = ("agent-that-loads-a-model".to_owned(), "agent-that-crashed".to_owned());
    register(&world, doors[1], &sleeper).await?;
    register(&world, doors[2], &dead).await?;
    let registered = Instant::now();
    all_know(&doors, &[sleeper.clone(), dead.clone()], true, Duration::from_secs(10)).await?;
    // Overdue is what its coordinator says of it.
    let overdue = loop {
        let listed = step(entry_of(&doors), "the list of workers", get("/api/admin/workers")).await?.json();
        let workers = listed["workers"].as_array().cloned().unwrap_or_default();
        let Some(status) =
            workers.iter().find(|worker| worker["worker_id"] == *sleeper).map(|worker| &worker["status"])
        else {
            bail!("it was forgotten after {:?}", registered.elapsed());
        };
        if status != "healthy" {
            break registered.elapsed();
        }
        must!(registered.elapsed() < Duration::from_secs(8), "after 8 s of silence it is still called healthy");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    must!(overdue > Duration::from_secs(2), "it was overdue after {overdue:?}, and it has 3 s");
    heartbeat(doors[3], &sleeper).await.context("the heartbeat after the silence")?;
    // It lives on; the other one says nothing more.
    let gone = loop {
        heartbeat(entry_of(&doors), &sleeper).await?;
        if all_know(&doors, std::slice::from_ref(&dead), false, Duration::ZERO).await.is_ok() {
            break registered.elapsed();
        }
        must!(registered.elapsed() < Duration::from_secs(40), "it is still known after {:?}", registered.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    must!(gone > Duration::from_secs(7), "it was gone after {gone:?}, and it has 8 s");
    for door in &doors {
        let answer = ask(*door, heartbeat_of(&dead)).await?;
        must!(answer.status == 404, "a heartbeat of one that is gone was answered {} at {door}", answer.summary());
    }
    all_know(&doors, &[sleeper], true, Duration::ZERO).await.context("the one that came back")?;
    Ok(format!(
        "overdue after {} (3 s), back with its heartbeat at another door; the other one gone everywhere after {} (8 s), then 404",
        human(overdue),
        human(gone)
    ))
}

fn entry_of(doors: &[SocketAddr]) -> SocketAddr {
    doors[0]
}
