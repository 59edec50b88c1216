//! An agent of the existing contract comes, is asked all the while it is there, and goes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::marks::{AgentMarks, Marks};
use super::super::stage::{AGENT, Stage};
use super::super::view::{Board, State};
use super::super::{AGENT_TARGET, agent_traffic};
use crate::client::load::{Load, Sample};
use crate::client::{ask, get, until};
use crate::federation::READY_WITHIN;
use crate::federation::agent::Agent;
use crate::service::evidence::Evidence;
use crate::terminal::human;

/// Seconds between its heartbeats. The contract's 30 would be one in the whole demo.
const HEARTBEAT_SECONDS: &str = "1";
/// Where it says it is.
const PLACE: &str = "Hanoi";

/// The agent while it is there, and those who ask it.
#[derive(Debug)]
pub(super) struct Visit {
    agent: Agent,
    service: String,
    load: Load,
}

/// Starts it, and waits until it is found and answers through the entry.
pub(super) async fn comes(stage: &Stage, board: &Board, marks: &mut AgentMarks) -> Result<Visit> {
    let to = stage.entry.http;
    board.act("an agent of the existing contract registers through the entry: plain HTTP, no key, no tunnel of ours");
    board.add(AGENT, "agent", format!("{PLACE}: at a URL of its own"), State::Starting);
    let start = Instant::now();
    let more = ["--location", PLACE, "--heartbeat-seconds", HEARTBEAT_SECONDS];
    let agent = stage.lab.agent(AGENT, &stage.entry, &more).await?;
    let service = agent.services.first().context("the agent was assigned no service")?.clone();
    let own = format!("/worker/{}/{service}", agent.worker_id);
    until(to, &format!("/api/worker/find/{service}"), READY_WITHIN, |answer| {
        answer.status == 200 && answer.json()["worker_url"].as_str().is_some_and(|url| url.ends_with(&own))
    })
    .await
    .context("the agent is not found")?;
    marks.found = start.elapsed();
    until(to, &format!("/service/{service}/"), READY_WITHIN, |answer| {
        answer.status == 200 && answer.header("x-hedgerow-served-by") == agent.worker_id
    })
    .await
    .context("the agent is not asked")?;
    marks.first_answer = start.elapsed();
    marks.worker_id.clone_from(&agent.worker_id);
    marks.services.clone_from(&agent.services);
    board.identify(AGENT, &agent.worker_id);
    board.describe(AGENT, format!("{PLACE}: {}, at a URL of its own", agent.services.join(", ")));
    board.set(AGENT, State::Up);
    let answered = human(marks.first_answer);
    board
        .act(&format!("it was assigned {}, and answers through the entry after {answered}", agent.services.join(", ")));

    let load = Load::start(agent_traffic(to, &service));
    board.follow(load.view());
    Ok(Visit { agent, service, load })
}

impl Visit {
    /// After the entry's restart, waits until it has learned of the agent from the coordinators.
    pub(super) async fn until_it_is_back(
        &self,
        stage: &Stage,
        board: &Board,
        began: Instant,
        marks: &mut Marks,
    ) -> Result<()> {
        let path = format!("/service/{}/", self.service);
        until(stage.entry.http, &path, READY_WITHIN, |answer| answer.status == 200)
            .await
            .context("the new entry does not find the agent")?;
        marks.agent_was_back = began.elapsed();
        marks.agent.back = marks.agent_was_back.saturating_sub(marks.entry_killed);
        let back = human(marks.agent.back);
        board
            .act(&format!("the agent, which noticed nothing, answers again after {back}: the coordinators knew of it"));
        Ok(())
    }

    /// Asks it to go, and waits until nobody is sent to it any more. What became of the requests to it, in the time of the
    /// other traffic.
    pub(super) async fn ends(
        self,
        stage: &Stage,
        board: &Board,
        began: Instant,
        marks: &mut AgentMarks,
    ) -> Result<Vec<Sample>> {
        let Self { agent, service, load } = self;
        let later = load.began() - began;
        let samples = load.stop().await.into_iter().map(|sample| Sample {
            at: sample.at + later,
            target: AGENT_TARGET,
            ..sample
        });
        let samples = samples.collect();
        let seen: Evidence = serde_json::from_slice(&ask(agent.listen, get("/evidence")).await?.body)
            .context("the agent's evidence is none")?;
        marks.requests = seen.started;

        board.act("SIGTERM to the agent: it unregisters");
        let told = Instant::now();
        agent.leave(READY_WITHIN).await?;
        until_nobody_is_sent_to_it(stage.entry.http, &agent.worker_id, &service).await?;
        marks.gone = told.elapsed();
        board.set(AGENT, State::Left);
        board.act(&format!("it has gone, and nobody is sent to it after {}", human(marks.gone)));

        for step in agent.steps().iter().filter(|step| step.event == "heartbeat") {
            match step.status {
                Some(200) => marks.heartbeats += 1,
                Some(_) => marks.heartbeats_refused += 1,
                // No entry was up.
                None => {}
            }
        }
        Ok(samples)
    }
}

async fn until_nobody_is_sent_to_it(entry: SocketAddr, worker_id: &str, service: &str) -> Result<Duration> {
    let own = format!("/worker/{worker_id}/{service}/");
    let (took, _) = until(entry, &own, READY_WITHIN, |answer| answer.status.is_client_error() || answer.status == 503)
        .await
        .context("the agent has gone and is still asked")?;
    Ok(took)
}
