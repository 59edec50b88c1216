//! `hedgerow-sim parity`: one scenario at the full level, in virtual time, and in the network lab, with real processes; and how their times
//! compare. What a simulation says of time is worth as much as this.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::{Shutdown, Stage};

use crate::binaries::Binaries;
use crate::client::load::quantile;
use crate::lab;
use crate::simulate::once;
use crate::terminal::{Style, human, say};

/// No time of the one is so many times as long as that of the other.
const FACTOR_MAX: f64 = 1.5;
/// What is compared, as the lab and as the full level call it.
const TIMES: [(&str, &str); 3] =
    [("joined", "joined_after_s"), ("change known, p50", "change_p50_s"), ("agreed after the fault", "agreed_after_s")];

/// Arguments of `hedgerow-sim parity`.
#[derive(Debug, Args)]
pub struct ParityArgs {
    /// A scenario that comes with Hedgerow, or the path of a file
    #[arg(default_value = "parity")]
    scenario: String,
    /// So many times each, in turn; the medians are compared
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Keeps the logs of the lab's processes in a folder for each round here
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Runs both; an error if their times are too far apart.
pub async fn run(args: ParityArgs) -> Result<()> {
    let (name, scenario) = once::find(&args.scenario)?;
    lab::can_play(&scenario).map_err(|reason| {
        Failure::usage(format!("the lab cannot play the scenario {name}: {reason}")).advice("parity, which it can")
    })?;
    lab::ready()?;
    let binaries = Binaries::beside_this_one()?;
    let shutdown = Shutdown::on_signals().context("signals cannot be listened for")?;
    let style = Style::detect();
    let mut taken = [const { (Vec::new(), Vec::new()) }; TIMES.len()];
    for round in 1..=args.rounds {
        say(style.bold(format!("round {round}: the full level, with seed {round}")));
        let figures = once::run(&name, &scenario, round, &shutdown).await?;
        say(style.bold(format!("round {round}: the lab")));
        let logs = args.logs.as_ref().map(|folder| folder.join(format!("round-{round}")));
        let times = lab::measure(&name, &scenario, &binaries, logs, &shutdown).await?;
        if shutdown.stage() != Stage::Running {
            anyhow::bail!("stopped");
        }
        for (number, (_, figure)) in TIMES.iter().enumerate() {
            let simulated = figures.get(*figure).with_context(|| format!("the full level does not tell {figure}"))?;
            taken[number].0.push(Duration::from_secs_f64(*simulated));
            taken[number].1.push(times[number].clone().map_err(anyhow::Error::msg)?);
        }
    }
    say(format!("{:24} {:>10} {:>10}   lab / full", "", "full level", "lab"));
    let mut apart = Vec::new();
    for ((name, _), (mut simulated, mut real)) in TIMES.iter().zip(taken) {
        let (simulated, real) = (quantile(&mut simulated, 0.5), quantile(&mut real, 0.5));
        let ratio = real.as_secs_f64() / simulated.as_secs_f64();
        let near = (1.0 / FACTOR_MAX..=FACTOR_MAX).contains(&ratio);
        let told = format!("{name:24} {:>10} {:>10}   {ratio:.2}", human(simulated), human(real));
        say(if near { told } else { style.red(told) });
        if !near {
            apart.push(*name);
        }
    }
    match apart.as_slice() {
        [] => Ok(()),
        names => {
            Err(Failure::runtime(format!("more than a factor of {FACTOR_MAX} apart: {}", names.join(", "))).into())
        }
    }
}
