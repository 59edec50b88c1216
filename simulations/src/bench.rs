//! `hedgerow-sim bench proxy|tunnel|gossip`: what a request costs, beside what it costs others, measured in the same minute; and how long
//! news takes among coordinators ([`gossip`]).
//!
//! Two sides are up at once and take turns in slices of a second, in the order ABBA, after a slice each to warm up; so whatever
//! else the machine does meets both. The gate is CPU time per request of a side's own processes (both ends of a tunnel; neither the
//! load nor the service behind), since requests a second on a machine that runs load and service as well say little. CPU of
//! processes that belong to neither is logged, and a comparison under too much of it says so.

use std::path::Path;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::binaries::Binaries;
use crate::federation::Lab;
use crate::interop::peers;
use crate::terminal::say;

mod compare;
mod cpu;
mod gossip;
mod serf;
mod sides;
mod wrk;

use compare::Comparison;
use sides::Side;

/// Arguments of `hedgerow-sim bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Entry and node beside reverse proxies that need no tunnel: nginx, HAProxy
    Proxy(Measure),
    /// Entry and node beside a tunnel: rathole, plain and with noise
    Tunnel(Measure),
    /// How long news takes to reach all coordinators, and one's end to be noticed, beside serf
    Gossip(gossip::Measure),
}

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub struct Measure {
    /// Pairs of slices; the figures are their medians
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pairs: u32,
    /// Connections of the load; may be repeated
    #[arg(long, default_values_t = [32, 256])]
    connections: Vec<u32>,
    /// Size of an answer in bytes
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

/// Measures and prints a table in Markdown.
pub async fn run(args: BenchArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("a debug build measures nothing; run it with: cargo run --profile dist -p hedgerow-sim -- bench proxy");
    }
    let (title, measure) = match &args.what {
        What::Gossip(measure) => return gossip::run(measure).await,
        What::Proxy(measure) => ("proxy", measure),
        What::Tunnel(measure) => ("tunnel", measure),
    };
    for program in ["wrk", "nginx"] {
        if !peers::installed(program) {
            bail!(
                "{program} is needed: it is the {}",
                if program == "wrk" { "load" } else { "service behind all sides" }
            );
        }
    }
    let binaries = Binaries::beside_this_one()?;
    let lab = Lab::new(&binaries)?;
    let origin = sides::origin(&lab, measure.bytes).await?;
    let ours = Side::hedgerow(&lab, origin.listen).await?;
    let others = match &args.what {
        What::Proxy(_) => vec![Side::nginx(&lab, origin.listen).await, Side::haproxy(&lab, origin.listen).await],
        What::Tunnel(_) | What::Gossip(_) => {
            vec![Side::rathole(&lab, origin.listen, false).await, Side::rathole(&lab, origin.listen, true).await]
        }
    };
    let profile = binaries.sim.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    say(format!("### {title}: {} bytes, {} pairs of 1 s slices, profile `{profile}`\n", measure.bytes, measure.pairs));
    say(compare::HEADER);
    let mut warnings = Vec::new();
    for other in others {
        let other = match other? {
            Ok(side) => side,
            Err(missing) => {
                warnings.push(format!("{missing} is not installed and was left out."));
                continue;
            }
        };
        for connections in &measure.connections {
            let comparison = Comparison::measure(&ours, &other, &origin, *connections, measure.pairs).await?;
            say(comparison.row());
            warnings.extend(comparison.warnings());
        }
    }
    if !warnings.is_empty() {
        say(format!("\n{}", warnings.join("\n")));
    }
    Ok(())
}
