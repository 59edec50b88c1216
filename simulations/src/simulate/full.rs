//! The full level: one process for each run, since a second simulation in a process would differ from the first.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hedgerow_process::durable;
use hedgerow_sim_model::results;

use super::commit::commit;
use super::engine::{Done, Engine, Job, Outcome, Progress};
use crate::binaries::full_level;
use crate::process::{Launch, Process, Workdir};

/// How often whoever watches is asked whether to go on: what the process does cannot wake us.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// More than any result has.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// What is shown of a process that broke.
const LOG_LINES: usize = 12;

/// See the module.
#[derive(Debug)]
pub(super) struct Full {
    program: PathBuf,
    guard: PathBuf,
}

impl Full {
    /// Finds its program, or builds it.
    pub(super) fn new() -> Result<Self> {
        let guard = std::env::current_exe().context("cannot tell which executable this is")?;
        Ok(Self { program: full_level(&guard)?, guard })
    }
}

impl Engine for Full {
    fn run(&self, job: &Job, progress: &mut Progress<'_>) -> Result<Outcome> {
        let workdir = Workdir::new(&self.guard)?;
        // The process calls a scenario by the name of its file.
        let scenario = workdir.path().join(format!("{}.toml", job.name));
        let (plan, out) = (workdir.path().join("plan.json"), workdir.path().join("out"));
        std::fs::write(&scenario, toml::to_string(&job.scenario)?).context("no room for a scenario")?;
        std::fs::write(&plan, serde_json::to_vec(&job.plan)?).context("no room for a plan")?;
        let traced = job.trace_node.map(|node| ["--trace".to_owned(), node.to_string()]);
        let process = Launch::new("full", &self.program)
            .arg("run")
            .arg(&scenario)
            .args(["--seed", &job.seed.to_string()])
            .arg("--plan")
            .arg(&plan)
            .arg("--out")
            .arg(&out)
            .args(traced.into_iter().flatten())
            .piped()
            .start(&workdir)?;
        match wait(&process, progress)? {
            None => Ok(Outcome::Stopped(Duration::ZERO)),
            Some(status) => read(job, &process, status, &out),
        }
    }
}

/// Its status once it has ended; nothing if it was ended since nobody wants it any more.
fn wait(process: &Process, progress: &mut Progress<'_>) -> Result<Option<ExitStatus>> {
    let (ended, end) = mpsc::sync_channel(1);
    if let Some(mut stdout) = process.take_stdout() {
        // Its end closes its output.
        std::thread::spawn(move || {
            let mut discarded = [0; 4096];
            while stdout.read(&mut discarded).is_ok_and(|bytes| bytes > 0) {}
            let _ = ended.send(());
        });
    }
    while end.recv_timeout(ASK_EVERY) == Err(RecvTimeoutError::Timeout) {
        if progress(Duration::ZERO) == ControlFlow::Break(()) {
            process.kill();
            return Ok(None);
        }
    }
    loop {
        if let Some(status) = process.exit_status()? {
            return Ok(Some(status));
        }
        // It has closed its output and is about to be gone.
        std::thread::yield_now();
    }
}

fn read(job: &Job, process: &Process, status: ExitStatus, out: &Path) -> Result<Outcome> {
    match status.code() {
        Some(0 | 1) => {}
        Some(2) => bail!("the full level cannot run this:\n{}", process.log_tail(LOG_LINES)),
        _ => {
            let what = format!("the process of the full level ended ({status})\n{}", process.log_tail(LOG_LINES));
            return Ok(Outcome::Done(Box::new(job.broke("ended", what))));
        }
    }
    let file = |name: &str| {
        let bytes = durable::read(&out.join(name), FILE_BYTES_MAX);
        bytes.with_context(|| format!("the full level left no {name} behind\n{}", process.log_tail(LOG_LINES)))
    };
    let mut summary: results::Summary =
        serde_json::from_slice(&file("summary.json")?).context("the full level wrote a summary that is none")?;
    if summary.format != results::FORMAT {
        bail!("the full level is of another version: it writes format {}. Build it again", summary.format);
    }
    summary.commit = commit().to_owned();
    let series = results::from_csv(&String::from_utf8(file("series.csv")?)?)?;
    let trace = match job.trace_node {
        Some(_) => String::from_utf8(file("trace.txt")?)?.lines().map(str::to_owned).collect(),
        None => Vec::new(),
    };
    Ok(Outcome::Done(Box::new(Done { summary, series, trace })))
}
