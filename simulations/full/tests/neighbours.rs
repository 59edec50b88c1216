//! A federation that is larger than a few does not become a full mesh.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod program;

/// Each with each.
const FULL_MESH: f64 = 40.0 * 39.0 / 2.0;

#[test]
fn forty_coordinators_agree_and_are_not_all_connected_to_each_other() {
    let summary = program::run(program::scenario!("forty"), 0, |_| {});
    assert!(summary.is_good(), "{:?}", summary.violations);
    // Over the whole run, closed ones included.
    assert!(summary.figures["connections"] < 0.75 * FULL_MESH, "{:?}", summary.figures);
}
