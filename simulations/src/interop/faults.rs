//! Nodes and entries that die while traffic goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;

use super::{Check, must};
use crate::client::load::{Load, Plan, Sample, Target, quantile, reasons};
use crate::client::until;
use crate::federation::{Entry, Lab, Node, NodeSpec, READY_WITHIN, Service, nodes_up};
use crate::service::Kind;
use crate::terminal::human;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "kill-under-load",
            "2,000 GETs while a worker and a coordinator are killed: none fails",
            &[],
            kill_under_load,
        ),
        Check::new(
            "entry-restart",
            "an entry that was killed routes within 2 s of its start and has all nodes within 5 s",
            &[],
            entry_restart,
        ),
        Check::new("leave", "a node that leaves finishes what it has and gets nothing new", &[], leave),
        Check::new("pause", "a worker that falls silent is passed over, and used again when it wakes", &[], pause),
    ]
}

/// Workers that offer the same service, and coordinators.
struct Fleet {
    entry: Entry,
    services: Vec<Service>,
    workers: Vec<Node>,
    coordinators: Vec<Node>,
}

async fn fleet(lab: &Arc<Lab>, workers: usize, coordinators: usize) -> Result<Fleet> {
    let entry = lab.entry("entry", &[]).await?;
    let mut fleet = Fleet { entry, services: Vec::new(), workers: Vec::new(), coordinators: Vec::new() };
    for number in 1..=coordinators {
        fleet
            .coordinators
            .push(lab.start_node(NodeSpec::coordinator(&format!("coordinator-{number}")), &[&fleet.entry])?);
    }
    for number in 1..=workers {
        let service = lab.service(&format!("kit-{number}"), Kind::Kit).await?;
        let spec = NodeSpec::worker(&format!("worker-{number}")).offers("kit", service.listen, 64);
        fleet.workers.push(lab.start_node(spec, &[&fleet.entry])?);
        fleet.services.push(service);
    }
    for node in fleet.coordinators.iter_mut().chain(&mut fleet.workers) {
        node.joined().await?;
        fleet.entry.until_it_routes_to(node).await?;
    }
    Ok(fleet)
}

fn gets(entry: &Entry, path: &str, total: Option<usize>) -> Plan {
    let target =
        Target { label: "GET", method: "GET", path: path.to_owned(), body: Bytes::new(), expected: "kit-", weight: 1 };
    Plan { to: entry.http, targets: vec![target], clients: 16, rest: Duration::ZERO, total }
}

fn none_failed(samples: &[Sample]) -> Result<()> {
    let failed: Vec<_> = reasons(samples).into_iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
    must!(failed.is_empty(), "of {} requests failed: {}", samples.len(), failed.join("; "));
    Ok(())
}

async fn kill_under_load(lab: Arc<Lab>) -> Result<String> {
    let fleet = fleet(&lab, 3, 2).await?;
    let load = Load::start(gets(&fleet.entry, "/service/kit/slow?ms=5", Some(2000)));
    load.reaches(500, READY_WITHIN).await?;
    fleet.workers[0].process.kill();
    load.reaches(1200, READY_WITHIN).await?;
    fleet.coordinators[0].process.kill();
    let samples = load.finished().await;
    none_failed(&samples)?;
    must!(samples.len() == 2000, "only {} requests were made", samples.len());
    let mut took: Vec<_> = samples.iter().map(|sample| sample.took).collect();
    let again = samples.iter().filter(|sample| sample.result.as_ref().is_ok_and(|served| served.attempts > 1)).count();
    Ok(format!(
        "2,000 asked, 0 failed, {again} of them tried elsewhere; p50 {}, p99 {}, longest {}",
        human(quantile(&mut took, 0.5)),
        human(quantile(&mut took, 0.99)),
        human(quantile(&mut took, 1.0))
    ))
}

async fn entry_restart(lab: Arc<Lab>) -> Result<String> {
    let mut fleet = fleet(&lab, 4, 3).await?;
    // Each node is seen by a path that only it can answer.
    let own: Vec<String> = fleet.workers.iter().map(|node| format!("/service/~{}/kit/hello", node.id)).collect();
    for path in &own {
        until(fleet.entry.http, path, READY_WITHIN, |answer| answer.status == 200).await?;
    }
    fleet.entry.process.kill();
    let begin = Instant::now();
    fleet.entry.start_again()?;
    until(fleet.entry.http, "/service/kit/hello", READY_WITHIN, |answer| answer.status == 200).await?;
    let first = begin.elapsed();
    for path in &own {
        until(fleet.entry.http, path, READY_WITHIN, |answer| answer.status == 200).await?;
    }
    let expected = fleet.workers.len() + fleet.coordinators.len();
    until(fleet.entry.http, "/mesh/registry", READY_WITHIN, |answer| nodes_up(&answer.json()).len() >= expected)
        .await
        .context("the registry of the entry does not fill")?;
    let all = begin.elapsed();
    must!(first <= Duration::from_secs(2), "the first route took {first:?}");
    must!(all <= Duration::from_secs(5), "all nodes took {all:?}");
    Ok(format!("first route {}, all {expected} nodes {} after the start", human(first), human(all)))
}

async fn leave(lab: Arc<Lab>) -> Result<String> {
    let fleet = fleet(&lab, 2, 0).await?;
    let status = fleet.workers[0].command(&["status", "--json"]).await?;
    must!(status.0 == 0 && status.1.contains(&fleet.workers[0].id), "status said {status:?}");
    let load = Load::start(gets(&fleet.entry, "/service/kit/slow?ms=100", None));
    load.reaches(100, READY_WITHIN).await?;
    let (code, said) = fleet.workers[0].command(&["leave"]).await?;
    must!(code == 0, "leave said {said}");
    fleet.workers[0].process.exited(READY_WITHIN).await.context("the node that left")?;
    let seen = fleet.services[0].evidence().await?;
    let after = load.done();
    load.reaches(after + 100, READY_WITHIN).await?;
    none_failed(&load.stop().await)?;
    let later = fleet.services[0].evidence().await?;
    must!(
        later.started == seen.started,
        "the service got {} requests after its node had left",
        later.started - seen.started
    );
    must!(later.cancelled == 0, "{} requests were cut off", later.cancelled);
    Ok(format!("{} requests under way were finished, 0 failed, 0 came after", later.completed))
}

async fn pause(lab: Arc<Lab>) -> Result<String> {
    let fleet = fleet(&lab, 2, 0).await?;
    let load = Load::start(gets(&fleet.entry, "/service/kit/slow?ms=5", None));
    load.reaches(300, READY_WITHIN).await?;
    fleet.workers[0].process.signal(rustix::process::Signal::STOP)?;
    let paused = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    fleet.workers[0].process.signal(rustix::process::Signal::CONT)?;
    let woken = Instant::now();
    let before = fleet.services[0].evidence().await?.started;
    fleet.services[0]
        .until(Duration::from_secs(15), |evidence| evidence.started > before + 50)
        .await
        .context("the worker that woke is not used again")?;
    let back = woken.elapsed();
    let began = load.began();
    let samples = load.stop().await;
    none_failed(&samples)?;
    let stalled =
        samples.iter().filter(|sample| began + sample.at + sample.took > paused).map(|sample| sample.took).max();
    let stalled = stalled.unwrap_or_default();
    must!(stalled < Duration::from_secs(3), "a request waited {stalled:?} for a worker that was silent");
    Ok(format!("0 of {} failed, longest {}, used again {} after it woke", samples.len(), human(stalled), human(back)))
}
