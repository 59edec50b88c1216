//! One simulation by the program, in a process of its own.

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
    let output = output(scenario, |command| {
        command.args(["--seed", &seed.to_string()]);
        change(command);
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no summary ({error}): {errors}"))
}
