//! The core level: in this process, on the thread that asks for it.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::Result;
use hedgerow_sim_core::{Run, RunConfig};

use super::commit::commit;
use super::engine::{Done, Engine, Job, Outcome, Progress};
use super::usage;

/// See the module.
pub(super) struct Core;

impl Engine for Core {
    fn run(&self, job: &Job, progress: &mut Progress<'_>) -> Result<Outcome> {
        let config = RunConfig {
            name: job.name.clone(),
            scenario: job.scenario.clone(),
            seed: job.seed,
            plan: job.plan.clone(),
            layout: job.layout.clone(),
            trace_node: job.trace_node,
            leak: None,
        };
        let before = usage::thread_cpu();
        let mut stopped = None;
        let run = catch_unwind(AssertUnwindSafe(|| {
            hedgerow_sim_core::run(config, &mut |now: Duration| {
                let flow = progress(now);
                if flow == ControlFlow::Break(()) {
                    stopped = Some(now);
                }
                flow
            })
        }));
        let Run { mut summary, series, trace } = match run {
            Ok(run) => run,
            // The code that ships panicked: that is what is looked for here, and belongs to this seed.
            Err(panic) => return Ok(Outcome::Done(Box::new(job.broke("panic", words(&*panic))))),
        };
        if let Some(at) = stopped {
            return Ok(Outcome::Stopped(at));
        }
        summary.commit = commit().to_owned();
        summary.cpu_s = usage::thread_cpu().saturating_sub(before).as_secs_f64();
        summary.peak_rss_mib = usage::peak_rss_mib();
        Ok(Outcome::Done(Box::new(Done { summary, series, trace })))
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}
