//! A coordinator is cut off while the registry changes, and catches up; another is killed, and its workers find another home.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::super::marks::{CatchingUp, Rehoming};
use super::super::registry::{Look, short};
use super::super::stage::Stage;
use super::super::view::{Board, State};
use crate::terminal::human;

/// How long a coordinator hears and says nothing, at least: long enough for others to miss it, and well below its lease.
const PAUSED_FOR: Duration = Duration::from_secs(4);

/// A coordinator that is paused.
#[derive(Debug)]
pub(super) struct Pause {
    index: usize,
    since: Instant,
    /// The digest that all had before.
    before: String,
}

/// Pauses the coordinator that is home to the fewest workers. Without root a process cannot be cut off from some and not from
/// others, but a stopped one hears and says nothing, and its connections stay open: cut off from everybody.
pub(super) async fn pause(stage: &Stage, board: &Board) -> Result<Pause> {
    let (_, look) = stage.witnesses.settled(Instant::now()).await.context("before the pause")?;
    let least = |index: &usize| look.at_home_with(&stage.coordinators[*index].id).len();
    let index = (0..stage.coordinators.len()).min_by_key(least).context("no coordinator")?;
    let coordinator = &stage.coordinators[index];
    coordinator.process.signal(Signal::STOP)?;
    let since = Instant::now();
    stage.gone(board, coordinator.name(), State::Paused);
    board.act(&format!("SIGSTOP to {}: paused, and so cut off from everybody", coordinator.name()));
    Ok(Pause { index, since, before: digest(&look) })
}

impl Pause {
    /// Lets it run on, once it has missed something, and waits until it has the registry of all others.
    pub(super) async fn end(self, stage: &Stage, board: &Board) -> Result<CatchingUp> {
        let changed = |look: &Look| look.coordinators_agreed().is_some_and(|digest| digest != self.before);
        let missed = stage.witnesses.until("the registry did not change", self.since, changed).await;
        let missed_something = missed.is_ok();
        tokio::time::sleep_until((self.since + PAUSED_FOR).into()).await;
        let coordinator = &stage.coordinators[self.index];
        let paused = self.since.elapsed();
        coordinator.process.signal(Signal::CONT)?;
        let runs_on = Instant::now();
        stage.up(board, coordinator.name())?;
        let paused_for = human(paused);
        board.act(&format!("SIGCONT to {} after {paused_for}, in which the registry changed", coordinator.name()));
        let caught_up = |look: &Look| look.coordinators_agreed().is_some();
        let (took, look) = stage.witnesses.until("the paused coordinator did not catch up", runs_on, caught_up).await?;
        let digest = digest(&look);
        board.act(&format!("it has caught up after {}: all coordinators hold {}", human(took), short(&digest)));
        Ok(CatchingUp { coordinator: coordinator.name().to_owned(), paused, missed_something, took })
    }
}

fn digest(look: &Look) -> String {
    look.coordinators_agreed().unwrap_or_default().to_owned()
}

/// Kills the coordinator that is home to the most workers, and waits until each of them has another. Which one it was.
pub(super) async fn kill_a_home(stage: &Stage, board: &Board, marks: &mut Rehoming) -> Result<usize> {
    let (_, look) = stage.witnesses.settled(Instant::now()).await.context("before a coordinator is killed")?;
    let most = |index: &usize| look.at_home_with(&stage.coordinators[*index].id).len();
    let index = (0..stage.coordinators.len()).max_by_key(most).context("no coordinator")?;
    let coordinator = &stage.coordinators[index];
    let workers = look.at_home_with(&coordinator.id);
    let before = digest(&look);
    let killed = Instant::now();
    coordinator.process.kill();
    stage.gone(board, coordinator.name(), State::Killed);
    board.act(&format!("SIGKILL to {}, which is home to {}", coordinator.name(), workers.join(", ")));

    let living = |home: &str| stage.coordinators.iter().any(|node| node.id == home && node.process.is_running());
    let rehomed = |look: &Look| {
        workers.iter().all(|worker| look.homes.get(worker).is_some_and(|home| home.as_deref().is_some_and(living)))
    };
    let (took, _) = stage.witnesses.until("not all of its workers had another home", killed, rehomed).await?;
    board.act(&format!("its workers are at home with others after {}", human(took)));
    let heard = |look: &Look| look.coordinators_agreed().is_some_and(|digest| digest != before);
    let (agreed, _) = stage.witnesses.until("the others did not come to agree", killed, heard).await?;
    *marks = Rehoming { coordinator: coordinator.name().to_owned(), workers: workers.len(), took, agreed };
    Ok(index)
}
