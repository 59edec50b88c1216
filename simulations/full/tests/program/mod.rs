//! One simulation by the program, in a process of its own.

use std::path::Path;
use std::process::{Command, Output};

use hedgerow_sim_model::results::Summary;

/// The scenario of this name in `tests/scenarios`.
macro_rules! scenario {
    ($name:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/", $name, ".toml")
    };
}
pub(crate) use scenario;

/// Runs it, with what `change` wants beside.
pub(crate) fn output(scenario: &str, change: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-sim-full"));
    command.args(["run", scenario]);
    change(&mut command);
    command.output().unwrap()
}

/// What came of it.
pub(crate) fn run(scenario: &str, seed: u64, change: impl FnOnce(&mut Command)) -> Summary {
    run_into(tempfile::tempdir().unwrap().path(), scenario, seed, change)
}

/// What came of it, and in this folder all that it left behind.
pub(crate) fn run_into(folder: &Path, scenario: &str, seed: u64, change: impl FnOnce(&mut Command)) -> Summary {
    let output = output(scenario, |command| {
        command.args(["--seed", &seed.to_string(), "--out"]).arg(folder);
        change(command);
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    let summary = std::fs::read(folder.join("summary.json"));
    let summary = summary.unwrap_or_else(|error| panic!("no summary ({error}): {errors}"));
    serde_json::from_slice(&summary).unwrap()
}
