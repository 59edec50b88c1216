//! What is done while traffic goes on, and when each thing happened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::marks::{Agreement, Marks};
use super::registry::short;
use super::stage::{ENTRY, Stage};
use super::view::{Board, State};
use crate::client::load::Sample;
use crate::client::{ask, get, until};
use crate::federation::{READY_WITHIN, nodes_up};
use crate::terminal::human;

mod agent;
mod coordinators;

/// What came of it.
#[derive(Debug)]
pub(super) struct Played {
    /// When things happened.
    pub(super) marks: Marks,
    /// What became of the requests to the agent, in the time of the other traffic.
    pub(super) agent_samples: Vec<Sample>,
}

/// Plays it; returns when the time is over.
pub(super) async fn play(stage: &mut Stage, board: &Board, began: Instant, length: Duration) -> Result<Played> {
    let mut marks = Marks::default();
    let at = |share: f64| tokio::time::sleep_until((began + length.mul_f64(share)).into());

    at(0.08).await;
    stage.workers[1].process.kill();
    marks.worker_killed = began.elapsed();
    stage.gone(board, "worker-2", State::Killed);
    board.act("SIGKILL to worker-2: its requests have to be answered by others");

    at(0.18).await;
    let pause = coordinators::pause(stage, board).await?;
    let visit = agent::comes(stage, board, &mut marks.agent).await?;
    marks.catching_up = pause.end(stage, board).await?;

    at(0.42).await;
    let killed = coordinators::kill_a_home(stage, board, &mut marks.rehoming).await?;

    at(0.54).await;
    restart_entry(stage, board, began, &mut marks).await?;
    visit.until_it_is_back(stage, board, began, &mut marks).await?;

    at(0.70).await;
    start_again(stage, board, killed, &mut marks).await?;

    at(0.88).await;
    let agent_samples = visit.ends(stage, board, began, &mut marks.agent).await?;

    at(1.0).await;
    let ended = Instant::now();
    let (took, look) = stage.witnesses.agree(ended).await.context("at the end")?;
    let digest = look.agreed().unwrap_or_default().to_owned();
    board.act(&format!("all {} who hold the registry agree: {}", look.digests.len(), short(&digest)));
    marks.agreement = Agreement { digest, holders: look.digests.len(), took };
    Ok(Played { marks, agent_samples })
}

async fn start_again(stage: &mut Stage, board: &Board, coordinator: usize, marks: &mut Marks) -> Result<()> {
    let name = stage.coordinators[coordinator].name().to_owned();
    board.act(&format!("worker-2 and {name} are started again"));
    let again = Instant::now();
    board.set("worker-2", State::Starting);
    board.set(&name, State::Starting);
    stage.workers[1].start_again()?;
    stage.coordinators[coordinator].start_again()?;
    stage.workers[1].joined().await?;
    stage.coordinators[coordinator].joined().await?;
    let own = format!("/service/~{}/hello/", stage.workers[1].id);
    until(stage.entry.http, &own, READY_WITHIN, |answer| answer.status == 200)
        .await
        .context("worker-2 serves again")?;
    marks.rejoined = again.elapsed();
    stage.up(board, "worker-2")?;
    stage.up(board, &name)?;
    board.act(&format!("both are in again after {}", human(marks.rejoined)));
    Ok(())
}

async fn restart_entry(stage: &mut Stage, board: &Board, began: Instant, marks: &mut Marks) -> Result<()> {
    marks.entry_killed = began.elapsed();
    stage.gone(board, ENTRY, State::Killed);
    board.act("SIGKILL to the entry, and a new one at once: it knows nothing and nobody");
    stage.entry.process.kill();
    let again = Instant::now();
    stage.entry.start_again()?;
    board.set(ENTRY, State::Starting);
    stage.entry.process.ready(READY_WITHIN).await?;
    marks.entry_listened = began.elapsed();
    stage.up(board, ENTRY)?;

    let to = stage.entry.http;
    until(to, "/service/hello/", READY_WITHIN, |answer| answer.status == 200).await.context("no route came back")?;
    marks.first_route = again.elapsed();
    board.act(&format!("first request routed {} after its start", human(marks.first_route)));

    let living: Vec<_> = stage.workers.iter().filter(|node| node.process.is_running()).collect();
    for worker in &living {
        // A path that only this worker can answer.
        let own = format!("/service/~{}/hello/", worker.id);
        until(to, &own, READY_WITHIN, |answer| answer.status == 200)
            .await
            .with_context(|| format!("{} did not come back", worker.name()))?;
    }
    let coordinators = stage.coordinators.iter().filter(|node| node.process.is_running()).count();
    let expected = living.len() + coordinators;
    let deadline = Instant::now() + READY_WITHIN;
    while nodes_up(&ask(to, get("/mesh/registry")).await?.json()).len() < expected {
        anyhow::ensure!(Instant::now() < deadline, "not all of {expected} nodes came back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    marks.all_back = again.elapsed();
    marks.nodes_were_back = began.elapsed();
    board.act(&format!("all {expected} living nodes back after {}", human(marks.all_back)));
    Ok(())
}
