//! `hedgerow-sim run`, `sweep`, `replay` and `plot`: the simulation in virtual time, as a person calls it.
//!
//! ```text
//! setting  ─ which scenario, at which level, how large, for how long
//! engine   ─ one run of one level, whichever that is
//! core, full ─ the levels: in this process, or in one for each run
//! run, sweep, replay, plot ─ the commands
//! once     ─ one run for others who want its figures
//! finished ─ which runs a sweep has behind it, on disk
//! gate     ─ how many runs may go on at once
//! failure  ─ what is told when something was wrong: the faults made fewer, and how to see it again
//! files, report, watch ─ what is written, said at the end, and shown meanwhile
//! ```
//!
//! What is simulated and what is checked is no matter of these: `hedgerow-sim-model`, `hedgerow-sim-core`, `simulations/full`.

use anyhow::{Context, Result, bail};
use hedgerow_process::shutdown::{Shutdown, Stage};
use hedgerow_sim_model::scenario::Level;

mod commit;
mod core;
mod engine;
mod failure;
mod files;
mod finished;
mod full;
mod gate;
pub(crate) mod once;
pub mod plot;
pub mod replay;
mod report;
pub mod run;
mod setting;
pub mod sweep;
#[cfg(test)]
mod tests;
mod usage;
mod watch;

use engine::Engine;

/// Does work that takes long on a thread of its own. The first signal is the work's to see ([`Shutdown::stage`]); the second one
/// ends the program without it.
async fn on_a_thread(work: impl FnOnce(&Shutdown) -> Result<()> + Send + 'static) -> Result<()> {
    let shutdown = Shutdown::on_signals().context("signals cannot be listened for")?;
    let (done, result) = tokio::sync::oneshot::channel();
    let theirs = shutdown.clone();
    std::thread::spawn(move || done.send(work(&theirs)));
    tokio::select! {
        result = result => result.context("a thread of the simulation panicked")?,
        () = shutdown.stopping() => bail!("stopped at once"),
    }
}

/// Whether nobody has asked for an end yet.
fn goes_on(shutdown: &Shutdown) -> bool {
    shutdown.stage() == Stage::Running
}

/// The level, ready to run.
fn engine_of(level: Level) -> Result<Box<dyn Engine>> {
    Ok(match level {
        Level::Core => Box::new(core::Core),
        Level::Full => Box::new(full::Full::new()?),
    })
}
