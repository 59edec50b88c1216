//! `hedgerow-sim interop`: what must hold, tried with real processes and other people's programs.
//!
//! Each [`Check`] stands for one promise, starts a federation of its own, and answers with the figure that it measured or with
//! what was broken. The same checks run under `cargo test` (`tests/promises.rs`) as far as they need no program of others
//! and not several minutes.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure as must;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::binaries::Binaries;
use crate::federation::Lab;
use crate::terminal::{Style, human, say};

mod agents;
mod bodies;
mod by_entry;
mod capacity;
mod command_line;
mod contract;
mod election;
mod faults;
mod files;
mod homes;
mod hostile;
mod https;
mod keeping;
mod keys;
mod mesh;
mod own_port;
pub(crate) mod peers;
mod raw;
mod retries;
mod stock_js;
mod streams;
mod udp_blocked;
mod url_guard;

/// Longer than most checks take; one that hangs is a failure and not a hang of CI.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Arguments of `hedgerow-sim interop`.
#[derive(Debug, Args)]
pub struct InteropArgs {
    /// Only the checks whose name contains this; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Names the checks and runs none
    #[arg(long)]
    list: bool,
    /// Leaves out those that are tests as well: `cargo test` runs them
    #[arg(long)]
    not_tests: bool,
    /// A check whose programs are missing is a failure (for CI)
    #[arg(long)]
    require_all: bool,
    /// Keeps the logs of failed checks in this directory
    #[arg(long)]
    logs: Option<PathBuf>,
}

type Figure = Pin<Box<dyn Future<Output = Result<String>> + Send>>;

/// One promise and how it is tried.
pub struct Check {
    /// What to call it.
    pub name: &'static str,
    /// What it proves, in one line.
    pub promise: &'static str,
    /// Programs of others that it needs.
    pub needs: &'static [&'static str],
    timeout: Duration,
    run: Box<dyn Fn(Arc<Lab>) -> Figure + Send + Sync>,
}

impl Check {
    fn new<F>(
        name: &'static str,
        promise: &'static str,
        needs: &'static [&'static str],
        run: impl Fn(Arc<Lab>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        Self { name, promise, needs, timeout: CHECK_TIMEOUT, run: Box::new(move |lab| Box::pin(run(lab))) }
    }

    /// Gives it more time than checks have.
    fn takes_up_to(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Whether it is a test as well: it needs no program of others, and no more time than checks have.
    pub fn is_test(&self) -> bool {
        self.needs.is_empty() && self.timeout <= CHECK_TIMEOUT
    }

    /// Tries it; the figure that it measured.
    pub async fn run(&self, binaries: &Binaries) -> Result<String, Broken> {
        let lab = Lab::new(binaries).map_err(|why| Broken { why, logs: String::new() })?;
        let result = tokio::time::timeout(self.timeout, (self.run)(lab.clone())).await;
        result
            .unwrap_or_else(|_| Err(anyhow!("not finished after {:?}", self.timeout)))
            .map_err(|why| Broken { why, logs: lab.log_tails(15) })
    }
}

/// A promise that does not hold.
#[derive(Debug)]
pub struct Broken {
    /// What was seen instead.
    pub why: anyhow::Error,
    /// The ends of the processes' logs.
    pub logs: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}\n{}", self.why, self.logs.trim_end())
    }
}

/// All of them.
pub fn checks() -> Vec<Check> {
    let groups = [
        files::checks(),
        bodies::checks(),
        streams::checks(),
        udp_blocked::checks(),
        https::checks(),
        faults::checks(),
        retries::checks(),
        capacity::checks(),
        hostile::checks(),
        command_line::checks(),
        contract::checks(),
        agents::checks(),
        url_guard::checks(),
        mesh::checks(),
        homes::checks(),
        by_entry::checks(),
        stock_js::checks(),
        own_port::checks(),
        keys::checks(),
        keeping::checks(),
        election::checks(),
    ];
    groups.into_iter().flatten().collect()
}

/// Runs those that were asked for; an error if one failed.
pub async fn run(args: InteropArgs) -> Result<()> {
    let style = Style::detect();
    let wanted =
        |check: &Check| args.only.is_empty() || args.only.iter().any(|part| check.name.contains(part.as_str()));
    let left = |check: &Check| !(args.not_tests && check.is_test());
    let checks: Vec<_> = checks().into_iter().filter(wanted).filter(left).collect();
    if args.list {
        for check in checks {
            say(format!("{:24} {}", check.name, check.promise));
        }
        return Ok(());
    }
    let binaries = Binaries::beside_this_one()?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for check in &checks {
        let missing: Vec<_> = check.needs.iter().copied().filter(|program| !peers::installed(program)).collect();
        if !missing.is_empty() {
            skipped += 1;
            say(format!("{} {:24} needs {}", style.yellow("skip"), check.name, missing.join(", ")));
            continue;
        }
        let begin = Instant::now();
        match check.run(&binaries).await {
            Ok(figure) => {
                passed += 1;
                let took = style.dim(format!("({})", human(begin.elapsed())));
                say(format!("{} {:24} {figure} {took}", style.green("  ok"), check.name));
            }
            Err(broken) => {
                failed += 1;
                say(format!("{} {:24} {}", style.red("FAIL"), check.name, style.bold(check.promise)));
                say(format!("     {broken}"));
                if let Some(directory) = &args.logs {
                    std::fs::create_dir_all(directory)?;
                    std::fs::write(directory.join(format!("{}.log", check.name)), broken.to_string())
                        .context("cannot keep the logs")?;
                }
            }
        }
    }
    say(format!("{passed} passed, {failed} failed, {skipped} skipped"));
    if checks.is_empty() {
        bail!("no check has such a name; --list names them");
    }
    if failed > 0 || (args.require_all && skipped > 0) {
        bail!("what must hold does not: {failed} failed, {skipped} skipped");
    }
    Ok(())
}
