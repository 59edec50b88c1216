//! `hedgerow-sim plot RESULTS…`: pictures.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use hedgerow_process::exit::Failure;
use hedgerow_sim_plots::PlotError;

use crate::terminal::say;

/// Arguments of `hedgerow-sim plot`.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Summaries that runs have written (….json), each with its time series (….csv) beside it
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The folder that the pictures go into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Draws them, and says where they are.
pub fn run(args: PlotArgs) -> Result<()> {
    let written = hedgerow_sim_plots::plot(&args.results, &args.out).map_err(|error| match error {
        PlotError::Draw { .. } | PlotError::Write { .. } => Failure::runtime(error),
        _ => Failure::usage(error),
    })?;
    for path in written {
        say(path.display().to_string());
    }
    Ok(())
}
