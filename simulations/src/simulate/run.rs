//! `hedgerow-sim run SCENARIO`: one run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_sim_model::shipped::SHIPPED;

use super::engine::{Done, Engine, Job, Outcome};
use super::setting::{Overrides, Subject};
use super::watch::{Watch, whole};
use super::{failure, files, on_a_thread, report};
use crate::terminal::{Style, say};

/// The greatest seed: what is written as TOML has no greater numbers.
pub(super) const SEED_MAX: u64 = i64::MAX as u64;

/// Arguments of `hedgerow-sim run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A scenario that comes with Hedgerow, or the path of a file; without it, what there is
    scenario: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Decides everything that is drawn: the same seed does the same again
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=SEED_MAX))]
    seed: u64,
    #[command(flatten)]
    leaves: Leaves,
}

/// What a run leaves behind.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Leaves {
    /// Writes the summary (JSON) and the time series (CSV) into this folder
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Tells what this node (by its number) is told (core level) or says (full level): into the folder, or without one to standard output
    #[arg(long, value_name = "NODE")]
    pub(super) trace: Option<u32>,
    /// Prints the summary as JSON, and nothing else, to standard output
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it; an error if something was wrong.
pub async fn run(args: RunArgs) -> Result<()> {
    let Some(named) = &args.scenario else {
        list();
        return Ok(());
    };
    let subject = Subject::find(named, &args.overrides)?;
    let job = args.leaves.traced(Job::new(&subject, args.seed))?;
    if subject.left_out > 0 && !args.leaves.json {
        let left_out = report::counted(subject.left_out, "fault");
        say(format!("{left_out} of the timeline left out: no room in this time"));
    }
    on_a_thread(move |shutdown| {
        let engine = super::engine_of(job.level)?;
        let done = perform(&*engine, &job, &args.leaves, shutdown)?;
        if done.summary.is_good() {
            return Ok(());
        }
        let directory = args.leaves.out.clone().unwrap_or_else(|| PathBuf::from("."));
        Err(failure::tell(&*engine, &job, &done, &directory, shutdown)?.into())
    })
    .await
}

fn list() {
    let style = Style::detect();
    let width = SHIPPED.iter().map(|shipped| shipped.name.len()).max().unwrap_or(0);
    for shipped in SHIPPED {
        let about = shipped.scenario().map(|scenario| scenario.about).unwrap_or_default();
        say(format!("{}  {about}", style.bold(format!("{:width$}", shipped.name))));
    }
    say(format!("\nrun one with:  {} run churn --seed 7", failure::program()));
}

impl Leaves {
    /// The job, with the node that is to be traced, if there is such a one.
    pub(super) fn traced(&self, mut job: Job) -> Result<Job, Failure> {
        let Some(node) = self.trace else { return Ok(job) };
        let layout = &job.layout;
        if node >= layout.len() {
            return Err(Failure::usage(format!("there is no node {node} to be traced")).advice(format!(
                "entries {}, coordinators {}, workers {}",
                numbers(&layout.entries),
                numbers(&layout.coordinators),
                numbers(&layout.workers)
            )));
        }
        job.trace_node = Some(node);
        Ok(job)
    }
}

/// `2 to 6`; what is empty has none.
fn numbers(range: &std::ops::Range<u32>) -> String {
    match range.len() {
        0 => "none".to_owned(),
        1 => range.start.to_string(),
        _ => format!("{} to {}", range.start, range.end - 1),
    }
}

/// Runs it, and says and writes what came of it.
pub(super) fn perform(engine: &dyn Engine, job: &Job, leaves: &Leaves, shutdown: &Shutdown) -> Result<Done> {
    let style = Style::detect();
    if !leaves.json {
        say(style.bold(report::title(job)));
    }
    let mut watch = Watch::new(job.scenario.duration.0, shutdown);
    let outcome = engine.run(job, &mut |now| watch.at(now));
    drop(watch);
    let done = match outcome? {
        Outcome::Done(done) => *done,
        Outcome::Stopped(at) => {
            let after = if at.is_zero() { String::new() } else { format!(" after {} of virtual time", whole(at)) };
            return Err(Failure::runtime(format!("stopped{after}, of {}", job.scenario.duration))
                .means("nothing was written: half a run says nothing")
                .advice(format!("again, with the same seed ({}): it does the same", job.seed))
                .into());
        }
    };
    let written = leaves.out.as_deref().map(|directory| files::write(directory, job, &done)).transpose()?;
    if leaves.json {
        say(serde_json::to_string_pretty(&done.summary).context("the summary as JSON")?);
        return Ok(done);
    }
    if leaves.out.is_none() {
        done.trace.iter().for_each(say);
    }
    report::run(&done, style).into_iter().for_each(say);
    if let Some(summary) = &written {
        said_where(summary);
    }
    Ok(done)
}

fn said_where(summary: &Path) {
    let directory = summary.parent().unwrap_or(Path::new("."));
    let quoted = |path: &Path| failure::quoted(&path.display().to_string());
    say(format!("  written to {} and {}", summary.display(), summary.with_extension("csv").display()));
    say(format!("  draw it with:  {} plot {} --out {}", failure::program(), quoted(summary), quoted(directory)));
}
