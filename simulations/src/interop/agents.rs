//! An independent agent of the existing contract, and an independent checker of the contract's page: both in Python.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::contract::{all_know, heartbeat_of};
use super::{Check, must};
use crate::client::{ask, post, until};
use crate::federation::mesh::Mesh;
use crate::federation::{Lab, READY_WITHIN};
use crate::process::{Launch, Process};
use crate::terminal::human;

const AGENT: &str = include_str!("../../peers/agent.py");
const CLIENT: &str = include_str!("../../peers/contract_client.py");
const PAGE: &str = include_str!("../../peers/contract_page.py");
/// A name that is in no catalogue, and that only this agent offers.
const SERVICE: &str = "notebook";
const WORKER_ID: &str = "agent-of-others";
/// All that the checker asks; it waits for some of it.
const CHECKED_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn checks() -> Vec<Check> {
    vec![Check::new(
        "contract-agent",
        "an agent written from the contract's page registers, is found and routed to, and leaves; the page's checker passes",
        &["python3"],
        agent,
    )]
}

/// A script of ours that runs with Python.
fn python(lab: &Lab, name: &str, script: &str, arguments: &[&str]) -> Result<Process> {
    let path = lab.workdir.path().join(format!("{name}.py"));
    std::fs::write(&path, script)?;
    std::fs::write(lab.workdir.path().join("contract_page.py"), PAGE)?;
    Launch::new(name, "python3").arg("-u").arg(&path).args(arguments).start(&lab.workdir)
}

/// The steps of this name that an agent has said so far.
fn said(agent: &Process, event: &str) -> Vec<Value> {
    let log = agent.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == event).collect()
}

/// Waits until the agent has said a step so many times; the last of them.
async fn says(agent: &Process, event: &str, times: usize) -> Result<Value> {
    let begin = Instant::now();
    loop {
        let steps = said(agent, event);
        if steps.len() >= times
            && let Some(step) = steps.into_iter().next_back()
        {
            return Ok(step);
        }
        if begin.elapsed() > READY_WITHIN || !agent.is_running() {
            bail!("the agent did not come to {event} {times} times\n{}", agent.log_tail(20));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn agent(lab: Arc<Lab>) -> Result<String> {
    let mesh = Mesh::start(&lab, &["--allow-private-urls"], 3, &["--allow-private-urls"]).await?;
    let (entry, doors) = (mesh.entry.http, mesh.doors()?);
    let url = mesh.entry.url();

    // One that offers nothing is told what to offer.
    let idle = python(&lab, "agent-idle", AGENT, &["--coordinator", &url, "--heartbeat", "1"])?;
    let registered = says(&idle, "register", 1).await?;
    let assigned = registered["answer"]["assigned_services"].as_array().map_or(0, Vec::len);
    must!(assigned > 0, "it was assigned nothing: {registered}");

    let arguments =
        ["--coordinator", &url, "--worker-id", WORKER_ID, "--services", SERVICE, "--heartbeat", "1", "--type", "cpu"];
    let begin = Instant::now();
    let agent = python(&lab, "agent", AGENT, &arguments)?;
    let registered = says(&agent, "register", 1).await?;
    must!(registered["status"] == 200 && registered["answer"]["routable"] == true, "it was told {registered}");
    all_know(&doors, &[WORKER_ID.to_owned()], true, Duration::from_secs(10)).await?;
    let path = format!("/service/{SERVICE}/some/path?x=1");
    until(entry, &path, READY_WITHIN, |answer| answer.status == 200).await.context("it is not routed to")?;
    let routed_after = begin.elapsed();
    for target in [path, format!("/worker/{WORKER_ID}/{SERVICE}/some/path?x=1")] {
        let answer = mesh.entry.get(&target).await?;
        must!(answer.json()["worker_id"] == WORKER_ID, "{target} was answered {}", answer.summary());
        must!(answer.json()["path"] == "/some/path?x=1", "{target} came as {}", answer.json()["path"]);
        let by = answer.header("x-hedgerow-served-by");
        must!(by == WORKER_ID, "{target} was served by {by:?}");
    }
    let found = mesh.entry.get(&format!("/api/services/discover/{SERVICE}")).await?.json();
    must!(found["recommended"]["worker_id"] == WORKER_ID, "the discovery said {found}");
    let found = mesh.entry.get(&format!("/api/worker/find/{SERVICE}")).await?.json();
    must!(found["worker_url"] == format!("{url}/worker/{WORKER_ID}/{SERVICE}"), "the finding said {found}");
    says(&agent, "heartbeat", 3).await?;
    let missed: Vec<_> = said(&agent, "heartbeat").into_iter().filter(|step| step["status"] != 200).collect();
    must!(missed.is_empty(), "heartbeats were answered {missed:?}");

    let at_entry = checked(&lab, "checker-entry", &["--base", &url, "--service", SERVICE]).await?;
    let own = mesh.coordinators[1].own_port()?;
    let path = format!("/worker/{WORKER_ID}/{SERVICE}/some/path");
    until(own, &path, READY_WITHIN, |answer| answer.status == 200).await.context("a coordinator does not reach it")?;
    let own = format!("http://{own}");
    let at_coordinator = checked(&lab, "checker-coordinator", &["--base", &own, "--service", SERVICE]).await?;

    agent.signal(rustix::process::Signal::TERM)?;
    agent.exited(READY_WITHIN).await?;
    let farewell = said(&agent, "unregister").pop().context("it went without a word")?;
    must!(farewell["status"] == 200, "it was told {farewell}");
    let gone = all_know(&doors, &[WORKER_ID.to_owned()], false, Duration::from_secs(15)).await?;
    for door in &doors {
        let answer = ask(*door, heartbeat_of(WORKER_ID)).await?;
        must!(answer.status == 404, "a heartbeat of one that has left was answered {} at {door}", answer.summary());
    }
    for door in &doors {
        let answer = ask(*door, post(&format!("/service/{SERVICE}/"), "")).await?;
        must!(answer.status == 503, "its service was answered {} at {door}", answer.summary());
    }
    Ok(format!(
        "assigned {assigned} services, routed to {} after its start, gone everywhere {} after its end; {at_entry} at the entry, \
         {at_coordinator} at a coordinator",
        human(routed_after),
        human(gone)
    ))
}

/// Runs the checker at one door; what its last line says.
async fn checked(lab: &Lab, name: &str, arguments: &[&str]) -> Result<String> {
    let checker = python(lab, name, CLIENT, &[arguments, &["--worker-id", WORKER_ID]].concat())?;
    let status = checker.exited(CHECKED_WITHIN).await?;
    let log = checker.log();
    let failed: Vec<&str> = log.lines().filter(|line| !line.starts_with("ok ")).collect();
    must!(status.success(), "the checker ended with {status}: {}", failed.join("; "));
    let passed = log.lines().filter(|line| line.starts_with("ok ")).count();
    Ok(format!("{passed} checks"))
}
