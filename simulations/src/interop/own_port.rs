//! A coordinator's own port is a door to the whole federation: workers at home at other coordinators, and those coordinators' own
//! services, are reached by it without any entry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::homes::{events, killed, served_by, settled};
use super::{Check, must};
use crate::client::{ask, begin, get, post, until};
use crate::federation::mesh::Mesh;
use crate::federation::{Lab, Node, NodeSpec, READY_WITHIN, Service};
use crate::service::Kind;
use crate::terminal::human;

/// How long what happens at once may take here.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Slots of the worker's service, and more requests than those.
const CAPACITY: usize = 4;
const REQUESTS: usize = 12;

pub(super) fn checks() -> Vec<Check> {
    vec![Check::new(
        "own-port-relay",
        "a worker at home at one coordinator answers at another's own port: streamed, cancelled, within its capacity, and after \
         its home was killed",
        &[],
        relay,
    )]
}

async fn relay(lab: Arc<Lab>) -> Result<String> {
    let mesh = Mesh::start(&lab, &[], 3, &[]).await?;
    let (kit, own) = (lab.service("kit", Kind::Kit).await?, lab.service("own", Kind::Kit).await?);
    let both = lab.node(NodeSpec::both("both").offers("own", own.listen, 4), &mesh.entry).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, CAPACITY), &mesh.entry).await?;
    let home = settled(&worker, None, READY_WITHIN).await?;
    let other = mesh.coordinators.iter().find(|node| node.id != home).context("no other coordinator")?;
    let door = other.own_port()?;

    let begun = Instant::now();
    for path in ["/service/kit/hello", &format!("/worker/{}/kit/hello", worker.id)] {
        let (_, answer) = until(door, path, READY_WITHIN, |answer| answer.status == 200).await?;
        served_by(&answer, &worker)?;
    }
    let (_, answer) = until(door, "/service/own/hello", READY_WITHIN, |answer| answer.status == 200).await?;
    served_by(&answer, &both)?;
    let reached = begun.elapsed();
    // From here on there is no entry that could have a part in it.
    mesh.entry.process.kill();

    let body = Bytes::from(vec![b'h'; 3 << 20]);
    let answer = ask(door, post("/service/kit/echo", body.clone())).await?;
    must!(answer.status == 200 && answer.body == body, "a POST came back as {} bytes", answer.body.len());
    let spread = events(door).await?;
    let cancelled = leave_early(door, &kit).await?;
    within_capacity(door, &kit).await?;
    let outcome = home_dies(&mesh, &home, door, &kit, &worker).await?;
    Ok(format!(
        "reached by way of its home {} after the first question; without an entry: 3 MiB posted, 10 events over {}, a client's leaving \
         seen at the service after {}; {outcome}",
        human(reached),
        human(spread),
        human(cancelled)
    ))
}

/// A client that leaves before the head of the answer, and one that leaves within it. How long the slower one's leaving took to
/// be seen at the service.
async fn leave_early(door: SocketAddr, kit: &Service) -> Result<Duration> {
    let before = kit.evidence().await?.cancelled;
    let mut waiting = TcpStream::connect(door).await?;
    waiting.write_all(b"GET /service/kit/slow?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    kit.until(AT_ONCE, |evidence| evidence.running == 1).await?;
    drop(waiting);
    let (head, _) = kit.until(AT_ONCE, |evidence| evidence.cancelled == before + 1).await.context("before the head")?;
    let mut stream = begin(door, get("/service/kit/events")).await?;
    stream.body_mut().frame().await.context("no event came")??;
    drop(stream);
    let (body, _) =
        kit.until(AT_ONCE, |evidence| evidence.cancelled == before + 2).await.context("in the answer's body")?;
    Ok(head.max(body))
}

/// More requests at once than the service has slots: all are answered, and never more run than it has.
async fn within_capacity(door: SocketAddr, kit: &Service) -> Result<()> {
    let asked = (0..REQUESTS).map(|_| ask(door, get("/service/kit/slow?ms=100")));
    for answer in futures_util::future::join_all(asked).await {
        let answer = answer?;
        must!(answer.status == 200, "one of {REQUESTS} requests at once was answered {}", answer.summary());
    }
    let most = kit.evidence().await?.running_max;
    must!(most <= CAPACITY as u64, "{most} requests ran at once where {CAPACITY} may");
    Ok(())
}

/// The home is killed while a request that may not run twice is under way.
async fn home_dies(mesh: &Mesh, home: &str, door: SocketAddr, kit: &Service, worker: &Node) -> Result<String> {
    let asked = tokio::spawn(ask(door, post("/service/kit/slow?ms=60000&key=once", "x")));
    kit.until(AT_ONCE, |evidence| evidence.runs.get("once") == Some(&1)).await?;
    killed(&mesh.coordinators, home)?;
    let death = Instant::now();
    let answer = asked.await??;
    let told = death.elapsed();
    must!(answer.status == 502, "a POST whose way broke was answered {}", answer.summary());
    must!(answer.json()["outcome"] == "unknown", "its outcome is {}", answer.json()["outcome"]);
    settled(worker, Some(home), READY_WITHIN).await?;
    let (_, answer) = until(door, "/service/kit/hello", READY_WITHIN, |answer| answer.status == 200)
        .await
        .context("after its home was killed")?;
    let again = death.elapsed();
    served_by(&answer, worker)?;
    let runs = kit.evidence().await?.runs["once"];
    must!(runs == 1, "the POST ran {runs} times");
    Ok(format!(
        "home killed: the POST under way 502 unknown after {}, reached again after {}",
        human(told),
        human(again)
    ))
}
