//! Workers and their homes: they find another one by themselves, and requests come by way of it where there is no tunnel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{Check, must};
use crate::client::load::{Load, Plan, Target, reasons};
use crate::client::{ask, begin, get, post};
use crate::federation::mesh::Mesh;
use crate::federation::{Entry, Lab, Node, NodeSpec, READY_WITHIN, nodes_up};
use crate::service::Kind;
use crate::terminal::human;

/// Two seconds are promised, on a machine that does nothing else.
const NEW_HOME_WITHIN: Duration = Duration::from_secs(15);
/// So long a request is waited for while the way to a worker changes.
const ONE_REQUEST: Duration = Duration::from_millis(500);
/// Requests before and after the death of a home.
const REQUESTS: usize = 200;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "mesh-home",
            "workers whose home is killed under load have another one at once, and no request fails",
            &[],
            home,
        ),
        Check::new(
            "mesh-relay",
            "an entry to which a worker has no tunnel reaches it by way of its home, and by way of the next one",
            &[],
            relay,
        ),
    ]
}

/// The home that has taken a worker in, if one has.
async fn home_of(worker: &Node) -> Result<Option<String>> {
    Ok(worker.on_the_mesh().await?["home"].as_str().map(str::to_owned))
}

/// Waits until a worker has a home other than this one.
pub(super) async fn settled(worker: &Node, but: Option<&str>, within: Duration) -> Result<String> {
    let begin = Instant::now();
    loop {
        let home = home_of(worker).await?;
        if let Some(home) = home.filter(|home| Some(home.as_str()) != but) {
            return Ok(home);
        }
        if begin.elapsed() > within {
            bail!("{} has no home other than {but:?} after {within:?}", worker.name());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) fn killed<'a>(coordinators: &'a [Node], home: &str) -> Result<&'a Node> {
    let coordinator = coordinators.iter().find(|node| node.id == home).context("a home that is no coordinator")?;
    coordinator.process.kill();
    Ok(coordinator)
}

async fn home(lab: Arc<Lab>) -> Result<String> {
    let mesh = Mesh::start(&lab, &[], 3, &[]).await?;
    let (mut services, mut workers) = (Vec::new(), Vec::new());
    for number in 1..=4 {
        let service = lab.service(&format!("kit-{number}"), Kind::Kit).await?;
        let spec = NodeSpec::worker(&format!("worker-{number}")).offers("kit", service.listen, 64);
        workers.push(lab.node(spec, &mesh.entry).await?);
        services.push(service);
    }
    let mut homes = Vec::new();
    for worker in &workers {
        homes.push(settled(worker, None, READY_WITHIN).await?);
    }
    let mut residents: BTreeMap<&str, usize> = BTreeMap::new();
    for home in &homes {
        *residents.entry(home).or_default() += 1;
    }
    let (home, count) = residents.into_iter().max_by_key(|(_, count)| *count).context("no homes")?;
    let target = Target {
        label: "GET",
        method: "GET",
        path: "/service/kit/slow?ms=5".to_owned(),
        body: Bytes::new(),
        expected: "kit-",
        weight: 1,
    };
    let load =
        Load::start(Plan { to: mesh.entry.http, targets: vec![target], clients: 8, rest: Duration::ZERO, total: None });
    load.reaches(REQUESTS, READY_WITHIN).await?;
    killed(&mesh.coordinators, home)?;
    let begin = Instant::now();
    for (worker, _) in workers.iter().zip(&homes).filter(|(_, former)| *former == home) {
        settled(worker, Some(home), NEW_HOME_WITHIN).await?;
    }
    let resettled = begin.elapsed();
    load.reaches(load.done() + REQUESTS, READY_WITHIN).await?;
    let samples = load.stop().await;
    let failed: Vec<_> = reasons(&samples).into_iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
    must!(failed.is_empty(), "of {} requests failed: {}", samples.len(), failed.join("; "));
    for (worker, former) in workers.iter().zip(&homes).filter(|(_, former)| *former != home) {
        let now = home_of(worker).await?;
        must!(now.as_ref() == Some(former), "{} moved from {former} to {now:?} without a reason", worker.name());
    }
    Ok(format!(
        "{count} of 4 workers lost their home, all resettled {}; 0 of {} requests failed",
        human(resettled),
        samples.len()
    ))
}

async fn relay(lab: Arc<Lab>) -> Result<String> {
    let first = lab.entry("entry-1", &[]).await?;
    let key = first.ready["node_id"].as_str().context("an entry without an id")?;
    let second = lab.entry("entry-2", &["--federation-key", key]).await?;
    let mut coordinators = Vec::new();
    for number in 1..=3 {
        let spec = NodeSpec::coordinator(&format!("coordinator-{number}"));
        coordinators.push(lab.start_node(spec, &[&first, &second])?);
    }
    for coordinator in &mut coordinators {
        coordinator.joined().await?;
        for entry in [&first, &second] {
            entry.until_it_routes_to(coordinator).await?;
        }
    }
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 16), &first).await?;
    let home = settled(&worker, None, READY_WITHIN).await?;
    let arrived = serves(&second, &worker, READY_WITHIN).await?;
    let tunnels = ask(second.admin, get("/mesh/why?service=kit")).await?;
    must!(tunnels.json()["candidates"][0]["address"].is_null(), "it has a tunnel of its own: {}", tunnels.summary());

    // Other methods, large bodies, and answers that are written while they are read.
    let body = Bytes::from(vec![b'h'; 1 << 20]);
    let answer = ask(second.http, post("/service/kit/echo", body.clone())).await?;
    must!(answer.status == 200 && answer.body == body, "a POST came back as {} bytes", answer.body.len());
    served_by(&answer, &worker)?;
    let spread = events(second.http).await?;

    killed(&coordinators, &home)?;
    let begin = Instant::now();
    let to = second.http;
    let caught = tokio::spawn(async move { (ask(to, get("/service/kit/hello")).await, begin.elapsed()) });
    settled(&worker, Some(&home), NEW_HOME_WITHIN).await?;
    let resettled = begin.elapsed();
    serves(&second, &worker, NEW_HOME_WITHIN).await.context("after its home was killed")?;
    let reached = begin.elapsed();
    let (answer, took) = caught.await?;
    Ok(format!(
        "reached by way of its home {} after it had one; 1 MiB posted, 10 events over {}; home killed: resettled {}, reached {}; \
         a request that was on the old way: {} after {}",
        human(arrived),
        human(spread),
        human(resettled),
        human(reached),
        answer?.status,
        human(took)
    ))
}

/// Waits until requests at this entry are answered by the worker. How long that took. One that waits for a way that is no more
/// does not hold up the next.
async fn serves(entry: &Entry, worker: &Node, within: Duration) -> Result<Duration> {
    let begin = Instant::now();
    let answer = loop {
        let asked = timeout(ONE_REQUEST, ask(entry.http, get("/service/kit/hello"))).await;
        match asked {
            Ok(Ok(answer)) if answer.status == 200 => break answer,
            _ if begin.elapsed() > within => bail!("it is not reached after {within:?}; last: {asked:?}"),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let took = begin.elapsed();
    served_by(&answer, worker)?;
    must!(nodes_up(&entry.get("/mesh/registry").await?.json()).contains(&*worker.id), "the registry does not show it");
    Ok(took)
}

pub(super) fn served_by(answer: &crate::client::Answer, worker: &Node) -> Result<()> {
    let by = answer.header("x-hedgerow-served-by");
    must!(by == worker.id, "it was served by {by:?}, not by {}", worker.id);
    Ok(())
}

/// Reads ten events that are 100 ms apart; over how long they came.
pub(super) async fn events(door: SocketAddr) -> Result<Duration> {
    let response = begin(door, get("/service/kit/events?every=100&count=10")).await?;
    must!(response.status() == 200, "the events were answered {}", response.status());
    let mut body = response.into_body();
    let (mut first, mut text) = (None, Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the events broke off")?.into_data() {
            first.get_or_insert_with(Instant::now);
            text.extend_from_slice(&data);
        }
    }
    let count = String::from_utf8_lossy(&text).lines().filter(|line| line.starts_with("data: ")).count();
    must!(count == 10, "of 10 events came {count}");
    let spread = first.map_or(Duration::ZERO, |first| first.elapsed());
    must!(spread > Duration::from_millis(500), "ten events 100 ms apart came within {spread:?}: they were held back");
    Ok(spread)
}
