//! How fast simulations run here. Each in a process of its own, since memory that was once used stays resident.

use std::process::ExitCode;

use crate::cli::Measure;

pub(crate) fn run(_: &Measure) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
