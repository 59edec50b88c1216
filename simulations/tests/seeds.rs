//! What must be right with every seed, with a few: the nightly run takes thousands (CONTRIBUTING.md). And what once was wrong.

use std::path::Path;
use std::process::{Command, Stdio};

use hedgerow_sim_model::scenario::Level;
use hedgerow_sim_model::shipped::SHIPPED;

/// Of each scenario; as many as take a minute or two altogether.
const SEEDS: &str = "3";
/// Larger than that: minutes each without optimisation. One seed of it is the nightly run's.
const TOO_LARGE: &str = "thousand";

/// Runs a command of the simulation; what it says is shown if something was wrong.
fn is_good(arguments: &[&str]) {
    // A failure leaves a file there; what it says is enough to see it again.
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-sim"));
    let output = command.args(arguments).current_dir(&folder).stdin(Stdio::null()).output().expect("it starts");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "hedgerow-sim {}:\n{said}\n{errors}", arguments.join(" "));
}

#[test]
fn every_shipped_scenario_ends_well_at_the_core_level() {
    let mut arguments = vec!["sweep", "--level", "core", "--seeds", SEEDS];
    for shipped in SHIPPED.iter().filter(|shipped| shipped.name != TOO_LARGE) {
        if shipped.scenario().unwrap().levels.contains(&Level::Core) {
            arguments.push(shipped.name);
        }
    }
    assert!(arguments.len() > 15, "{arguments:?}");
    is_good(&arguments);
}

#[test]
fn whatever_failed_once_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    // There is no such folder as long as nothing is in it.
    let entries = std::fs::read_dir(&folder).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        assert!(file.extension().is_some_and(|ending| ending == "toml"), "{} is no regression", file.display());
        is_good(&["replay", file.to_str().unwrap()]);
    }
}
