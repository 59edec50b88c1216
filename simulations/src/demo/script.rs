//! What is done while traffic goes on, and when each thing happened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::stage::Stage;
use super::view::{Board, State};
use crate::client::{ask, get, until};
use crate::federation::{READY_WITHIN, nodes_up};
use crate::terminal::human;

/// When things happened, from the beginning of the traffic, and how long it took to recover from them.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    /// A worker was killed.
    pub(super) worker_killed: Duration,
    /// A coordinator was killed.
    pub(super) coordinator_killed: Duration,
    /// The entry was killed.
    pub(super) entry_killed: Duration,
    /// The entry listened again.
    pub(super) entry_listened: Duration,
    /// All living nodes were back at the entry.
    pub(super) nodes_were_back: Duration,
    /// From the entry's second start to the first request that was answered by a service.
    pub(super) first_route: Duration,
    /// From the entry's second start until every living node had dialled back.
    pub(super) all_back: Duration,
    /// From the second start of the killed worker and coordinator until both were in again.
    pub(super) rejoined: Duration,
}

/// Plays it; returns when the time is over.
pub(super) async fn play(stage: &mut Stage, board: &Board, began: Instant, length: Duration) -> Result<Marks> {
    let mut marks = Marks::default();
    let at = |share: f64| tokio::time::sleep_until((began + length.mul_f64(share)).into());

    at(0.17).await;
    stage.workers[1].process.kill();
    marks.worker_killed = began.elapsed();
    board.set("worker-2", State::Killed);
    board.act("SIGKILL to worker-2: its requests have to be answered by others");

    at(0.34).await;
    stage.coordinators[0].process.kill();
    marks.coordinator_killed = began.elapsed();
    board.set("coordinator-1", State::Killed);
    board.act("SIGKILL to coordinator-1: nobody should notice");

    at(0.50).await;
    restart_entry(stage, board, began, &mut marks).await?;

    at(0.72).await;
    board.act("worker-2 and coordinator-1 are started again");
    let again = Instant::now();
    board.set("worker-2", State::Starting);
    board.set("coordinator-1", State::Starting);
    stage.workers[1].start_again()?;
    stage.coordinators[0].start_again()?;
    stage.workers[1].joined().await?;
    stage.coordinators[0].joined().await?;
    let own = format!("/service/~{}/hello/", stage.workers[1].id);
    until(stage.entry.http, &own, READY_WITHIN, |answer| answer.status == 200)
        .await
        .context("worker-2 serves again")?;
    marks.rejoined = again.elapsed();
    board.set("worker-2", State::Up);
    board.set("coordinator-1", State::Up);
    board.act(&format!("both are in again after {}", human(marks.rejoined)));

    at(1.0).await;
    Ok(marks)
}

async fn restart_entry(stage: &mut Stage, board: &Board, began: Instant, marks: &mut Marks) -> Result<()> {
    marks.entry_killed = began.elapsed();
    board.set("entry", State::Killed);
    board.act("SIGKILL to the entry, and a new one at once: it knows nothing and nobody");
    stage.entry.process.kill();
    let again = Instant::now();
    stage.entry.start_again()?;
    board.set("entry", State::Starting);
    stage.entry.process.ready(READY_WITHIN).await?;
    marks.entry_listened = began.elapsed();
    board.set("entry", State::Up);

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
