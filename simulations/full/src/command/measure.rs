//! How fast simulations run here, and what they take. Each in a process of its own, since memory that was once used stays
//! resident, and libp2p counts in statics.

use std::io::Write;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use hedgerow_sim_model::results::Summary;

use crate::cli::{Measure, SecurityName};

/// What is measured.
struct Case {
    name: &'static str,
    entries: u32,
    coordinators: u32,
    workers: u32,
    /// Nothing happens once they have joined.
    duration_s: u32,
    joins_over_s: u32,
}

impl Case {
    /// As many nodes in the mixture of the scenario `thousand`: one coordinator for nineteen workers.
    const fn federation(name: &'static str, duration_s: u32) -> Self {
        Self { name, entries: 1, coordinators: 5, workers: 95, duration_s, joins_over_s: 10 }
    }

    /// Coordinators alone: what a mesh costs.
    const fn mesh(name: &'static str, coordinators: u32, duration_s: u32, joins_over_s: u32) -> Self {
        Self { name, entries: 0, coordinators, workers: 0, duration_s, joins_over_s }
    }
}

/// The storm is all of them within ten seconds; what a long run takes more than the short one before it is what being idle costs.
const CASES: [Case; 5] = [
    Case::federation("a federation of 100: join storm", 60),
    Case::federation("a federation of 100: join storm and 10 min idle", 660),
    Case::mesh("100 coordinators: join storm", 100, 60, 10),
    Case::mesh("100 coordinators: join storm and 10 min idle", 100, 660, 10),
    Case::mesh("200 coordinators", 200, 90, 30),
];

pub(crate) fn run(arguments: &Measure) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    writeln!(out, "security: {}", arguments.security.word())?;
    let mut storm: Option<Summary> = None;
    for case in &CASES {
        let summary = measure(case, arguments.security)?;
        let rate = summary.virtual_s / summary.cpu_s.max(0.01);
        writeln!(
            out,
            "{}: {} virtual s in {:.1} CPU s, {rate:.1} x real time, peak {:.0} MiB, {} messages",
            case.name,
            summary.virtual_s,
            summary.cpu_s,
            summary.peak_rss_mib,
            summary.figures.get("messages").copied().unwrap_or_default(),
        )?;
        if let Some(storm) = storm.filter(|storm| storm.coordinators == summary.coordinators) {
            let (idle_s, cpu_s) = (summary.virtual_s - storm.virtual_s, summary.cpu_s - storm.cpu_s);
            writeln!(out, "  idle alone: {:.0} x real time", idle_s / cpu_s.max(0.01))?;
        }
        storm = Some(summary);
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(case: &Case, security: SecurityName) -> anyhow::Result<Summary> {
    let folder = tempfile::tempdir().context("cannot make a folder for the measurement")?;
    let scenario = folder.path().join("measured.toml");
    let text = format!(
        "about = 'measured'\nlevels = ['full']\nduration = '{}s'\nsettle = '10s'\n[population]\nentries = {}\ncoordinators = {}\n\
         workers = {}\njoins-over = '{}s'\n",
        case.duration_s, case.entries, case.coordinators, case.workers, case.joins_over_s
    );
    std::fs::write(&scenario, text).context("cannot write the scenario")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(program)
        .args(["run", "--security", security.word()])
        .arg(&scenario)
        .output()
        .context("cannot run a simulation")?;
    if !output.status.success() {
        bail!("{} failed: {}", case.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("the simulation said something else than a summary")
}
