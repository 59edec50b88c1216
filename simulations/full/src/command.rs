//! What the commands do.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use hedgerow_sim_full::federation::{self, Outcome, Settings};
use hedgerow_sim_full::narrator::Narrator;
use hedgerow_sim_full::time;
use hedgerow_sim_model::plan::Plan;
use hedgerow_sim_model::results::{self, FORMAT, Summary, to_csv};
use hedgerow_sim_model::scenario::{Level, Scenario};
use tracing::Subscriber;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::cli::{Cli, Command, Run};

mod measure;
mod usage;

/// Does what is asked.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let narrator = match &cli.command {
        Command::Run(arguments) => arguments.trace.map(Narrator::new),
        Command::Measure(_) => None,
    };
    let logged = EnvFilter::try_from_env("HEDGEROW_LOG").unwrap_or_else(|_| "off".into());
    listening(logged, narrator.as_ref()).init();
    time::set_machine(time::Machine {
        date_offset_s: cli.machine.machine_date_offset_s,
        clock_leaks: cli.machine.leak_clock,
    });
    match cli.command {
        Command::Run(arguments) => run_once(&arguments, narrator),
        Command::Measure(arguments) => measure::run(&arguments),
    }
}

/// Hears what is logged: for standard error, and for a trace if one is wanted. Where nobody wants anything, nothing is even put into
/// words.
fn listening(logged: EnvFilter, narrator: Option<&Narrator>) -> impl Subscriber + Send + Sync {
    let log = fmt::layer().with_writer(std::io::stderr).with_timer(VirtualTime).with_filter(logged);
    tracing_subscriber::registry().with(log).with(narrator.map(Narrator::layer))
}

/// Log lines say the virtual time.
struct VirtualTime;

impl fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, w: &mut fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:11.6}", time::now().since_origin().as_secs_f64())
    }
}

fn run_once(arguments: &Run, narrator: Option<Narrator>) -> anyhow::Result<ExitCode> {
    let mut scenario = Scenario::load(&arguments.scenario)?;
    if let Some(nodes) = arguments.nodes {
        scenario.population = scenario.population.scaled_to(nodes);
    }
    if let Some(duration) = arguments.duration {
        scenario.duration = duration;
    }
    scenario.check().map_err(anyhow::Error::msg)?;
    let plan = arguments.plan.as_deref().map(read_plan).transpose()?;
    let directory = tempfile::tempdir().context("cannot make a folder for the nodes' data")?;
    let settings = Settings {
        scenario: scenario.clone(),
        seed: arguments.seed,
        plan,
        security: arguments.security.into(),
        directory: directory.path().to_owned(),
        narrator: narrator.clone(),
    };
    if let Some(node) = arguments.trace {
        check_node(&settings, node)?;
    }
    let outcome = simulate(settings)?;
    let name = arguments.scenario.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let summary = summary(name, &scenario, arguments.seed, &outcome);
    for violation in &summary.violations {
        eprintln!("{violation}");
    }
    write(arguments.out.as_deref(), &summary, &outcome.series)?;
    if let Some((folder, narrator)) = arguments.out.as_deref().zip(narrator) {
        put(folder, "trace.txt", &(narrator.finish().join("\n") + "\n"))?;
    }
    Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Whether there is such a node to be traced.
fn check_node(settings: &Settings, node: u32) -> anyhow::Result<()> {
    let (_, layout) = Plan::draw(&settings.scenario, settings.seed);
    anyhow::ensure!(
        node < layout.len(),
        "there is no node {node} to be traced: they are numbered from 0 to {}, entries first, then coordinators, workers, and those \
         that come later",
        layout.len().saturating_sub(1)
    );
    Ok(())
}

fn read_plan(path: &Path) -> anyhow::Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the plan {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no plan", path.display()))
}

/// One simulation, in virtual time. One for each process: libp2p counts in statics.
fn simulate(settings: Settings) -> anyhow::Result<Outcome> {
    let simulation = Arc::new(settings);
    let outcome = time::run(simulation.seed, move || {
        let settings = Arc::unwrap_or_clone(simulation);
        federation::run(settings)
    })??;
    time::check_timers()?;
    Ok(outcome)
}

fn summary(name: String, scenario: &Scenario, seed: u64, outcome: &Outcome) -> Summary {
    let usage = usage::of_this_process();
    Summary {
        format: FORMAT,
        scenario: name,
        level: Level::Full,
        seed,
        commit: option_env!("HEDGEROW_COMMIT").unwrap_or("unknown").to_owned(),
        coordinators: outcome.layout.coordinators.len() as u32,
        workers: outcome.layout.workers.len() as u32,
        entries: outcome.layout.entries.len() as u32,
        virtual_s: scenario.duration.0.as_secs_f64(),
        cpu_s: usage.cpu_s,
        peak_rss_mib: usage.peak_rss_mib,
        trace_hash: outcome.trace_hash.clone(),
        events: outcome.events,
        violations: outcome.violations.clone(),
        figures: outcome.figures.clone(),
        plan: outcome.plan.clone(),
        neighbours: outcome.neighbours.clone(),
    }
}

fn write(folder: Option<&Path>, summary: &Summary, series: &[results::Sample]) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(summary)?;
    let Some(folder) = folder else {
        use std::io::Write;
        writeln!(std::io::stdout(), "{text}").context("cannot write the summary")?;
        return Ok(());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    put(folder, "summary.json", &text)?;
    put(folder, "series.csv", &to_csv(series))
}

fn put(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;

    use super::*;

    #[test]
    fn nothing_is_listened_to_that_nobody_wants() {
        let most = |logged: &str, narrator: Option<&Narrator>| listening(logged.into(), narrator).max_level_hint();
        assert_eq!(most("off", None), Some(LevelFilter::OFF));
        assert_eq!(most("info", None), Some(LevelFilter::INFO));
        assert_eq!(most("off", Some(&Narrator::new(1))), Some(LevelFilter::DEBUG));
    }
}
