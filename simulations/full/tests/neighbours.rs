//! A federation that is larger than a few does not become a full mesh.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

use std::process::Command;

use hedgerow_sim_model::results::Summary;

const FORTY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/forty.toml");
/// Each with each.
const FULL_MESH: f64 = 40.0 * 39.0 / 2.0;

#[test]
fn forty_coordinators_agree_and_are_not_all_connected_to_each_other() {
    let output = Command::new(env!("CARGO_BIN_EXE_hedgerow-sim-full")).args(["run", FORTY]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let summary: Summary =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no summary ({error}): {errors}"));
    assert!(summary.is_good(), "{:?}", summary.violations);
    // Over the whole run, closed ones included.
    assert!(summary.figures["connections"] < 0.75 * FULL_MESH, "{:?}", summary.figures);
}
