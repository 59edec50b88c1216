//! `hedgerow-sim replay FILE`: a run that failed, once more.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use hedgerow_process::exit::Failure;
use hedgerow_sim_model::plan::Plan;
use hedgerow_sim_model::regression::Regression;

use super::commit::commit;
use super::engine::Job;
use super::run::{Leaves, perform};
use super::{files, on_a_thread, report};
use crate::terminal::say;

/// Arguments of `hedgerow-sim replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// What a failed run has written: regression-….toml
    file: PathBuf,
    #[command(flatten)]
    leaves: Leaves,
}

/// Runs it; an error if something is still wrong.
pub async fn run(args: ReplayArgs) -> Result<()> {
    let regression = files::read_regression(&args.file)?;
    let job = args.leaves.traced(job(&regression))?;
    on_a_thread(move |shutdown| {
        let engine = super::engine_of(job.level)?;
        if !args.leaves.json {
            say(format!("found at commit {}, this is {}: {}", regression.commit, commit(), regression.found));
            report::schedule(&job.plan.incidents).into_iter().for_each(say);
        }
        let done = perform(&*engine, &job, &args.leaves, shutdown)?;
        match done.summary.is_good() {
            true => Ok(()),
            false => Err(Failure::runtime(format!("{} still", report::count(&done.summary.violations))).into()),
        }
    })
    .await
}

/// The run that is written there: its faults, and the nodes that the whole plan had.
pub(super) fn job(regression: &Regression) -> Job {
    let (_, layout) = Plan::draw(&regression.scenario, regression.seed);
    Job {
        name: regression.name.clone(),
        scenario: regression.scenario.clone(),
        level: regression.level,
        seed: regression.seed,
        plan: regression.plan.clone(),
        layout,
        trace_node: None,
    }
}
