//! `hedgerow-sim demo`, or `cargo demo`: a federation on this machine, traffic through it, and what becomes of traffic and registry
//! when a worker and a coordinator are killed, another coordinator is cut off for a while, an agent of the existing contract comes
//! and goes, and the entry is restarted.
//!
//! ```text
//! stage    ─ the cast: entry, coordinators, workers, services, all real processes
//! script   ─ what is done to them, and when each thing happened
//! marks    ─ what was measured
//! registry ─ what coordinators, entry and workers say of the registry, asked from outside
//! view     ─ what a person sees meanwhile
//! verdict  ─ which failures the design allows, which it does not, and the summary
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use hedgerow_process::shutdown::Shutdown;

use crate::binaries::Binaries;
use crate::client::load::{Load, Plan, Target};
use crate::terminal::{Style, say};

mod listener;
mod marks;
mod registry;
mod script;
mod stage;
mod verdict;
mod view;

use stage::{AGENT, Stage};

/// Clients that send traffic.
const CLIENTS: usize = 12;
/// How long each rests between two requests: this is a demonstration of failover, not of speed (`bench` is).
const REST: Duration = Duration::from_millis(15);
/// Clients that ask the agent …
const AGENT_CLIENTS: usize = 2;
/// … and how long each of them rests.
const AGENT_REST: Duration = Duration::from_millis(50);
/// Where the requests to the agent stand among the targets: behind those of [`traffic`].
const AGENT_TARGET: usize = 2;
/// What it answers.
const AGENT_SAYS: &str = "hello from agent-1";

/// Arguments of `hedgerow-sim demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leaves it running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// How long the traffic lasts, at least; what is done is spread over it
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(8..=3600))]
    seconds: u64,
    /// Writes the summary there as JSON as well
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs it; an error if a promise was broken or it was interrupted.
pub async fn run(args: DemoArgs) -> Result<()> {
    let shutdown = Shutdown::on_signals().context("signals cannot be listened for")?;
    let interrupted = shutdown.clone();
    tokio::select! {
        result = perform(args, shutdown) => result,
        () = interrupted.stopping() => bail!("stopped; no process is left behind"),
    }
}

async fn perform(args: DemoArgs, shutdown: Shutdown) -> Result<()> {
    let style = Style::detect();
    let binaries = Binaries::beside_this_one()?;
    let board = view::Board::new(style, Duration::from_secs(args.seconds));
    say(style.bold("Hedgerow: one entry, three coordinators, four workers and their services, as real processes"));
    let mut stage = tokio::select! {
        stage = Stage::set(&binaries, &board) => stage?,
        () = shutdown.draining() => bail!("stopped; no process is left behind"),
    };
    board.note(format!("{}  try it:  curl {}/service/hello/", style.green("●"), stage.entry.url()));
    board.note(format!("           curl -N {}/service/events/", stage.entry.url()));

    board.note("           it runs with --allow-private-urls, so that an agent may be asked at a loopback address");

    let load = Load::start(traffic(&stage));
    board.follow(load.view());
    let listener = listener::Listener::start(stage.entry.http);
    let painter = board.paint(listener.seen());
    let witnesses = stage.witnesses.clone();
    let outcome = tokio::select! {
        played = script::play(&mut stage, &board, load.began(), Duration::from_secs(args.seconds)) => played,
        () = shutdown.draining() => Err(anyhow::anyhow!("stopped; no process is left behind")),
        () = witnesses.show(&board) => Err(anyhow::anyhow!("nobody looks at the registry any more")),
    };
    painter.abort();
    board.finish();
    let played = match outcome {
        Ok(played) => played,
        Err(error) => {
            if shutdown.stage() == hedgerow_process::shutdown::Stage::Running {
                say(stage.log_tails());
            }
            return Err(error);
        }
    };
    let mut samples = load.stop().await;
    samples.extend(played.agent_samples);
    let heard = listener.stop();
    let runs = stage.runs_of_posts().await?;
    let verdict = verdict::Verdict::of(&samples, &targets(&stage), &played.marks, runs, &heard);
    say(verdict.to_text(style));
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&verdict).context("the summary as JSON")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !verdict.holds() {
        say(stage.log_tails());
    }
    if args.keep {
        say(format!("\nIt runs on at {} until Ctrl-C.", style.bold(stage.entry.url())));
        say(stage.directions());
        shutdown.draining().await;
        say("stopped; no process is left behind");
    }
    drop(stage);
    match verdict.broken_promises() {
        broken if broken.is_empty() => Ok(()),
        broken => bail!("broken: {}", broken.join("; ")),
    }
}

fn traffic(stage: &Stage) -> Plan {
    Plan {
        to: stage.entry.http,
        targets: vec![
            target("GET", "GET", "/service/hello/", "", "hello from hello-", 5),
            target("POST", "POST", "/service/echo/?key={key}", "once and only once", "once and only once", 1),
        ],
        clients: CLIENTS,
        rest: REST,
        total: None,
    }
}

/// The traffic to the agent, while it is there, at the one service that it was assigned first.
fn agent_traffic(to: SocketAddr, service: &str) -> Plan {
    let targets = vec![target(AGENT, "GET", &format!("/service/{service}/"), "", AGENT_SAYS, 1)];
    Plan { to, targets, clients: AGENT_CLIENTS, rest: AGENT_REST, total: None }
}

/// All that is asked for, so that [`AGENT_TARGET`] is the agent.
fn targets(stage: &Stage) -> Vec<Target> {
    let mut targets = traffic(stage).targets;
    targets.extend(agent_traffic(stage.entry.http, "").targets);
    targets
}

fn target(
    label: &'static str,
    method: &'static str,
    path: &str,
    body: &'static str,
    expected: &'static str,
    weight: usize,
) -> Target {
    let body = Bytes::from_static(body.as_bytes());
    Target { label, method, path: path.to_owned(), body, expected, weight }
}
