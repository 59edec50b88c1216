//! One seed, one trace: whatever the process, the folder, the time zone and the date. And the test can fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

use std::path::Path;
use std::process::Command;

use hedgerow_sim_model::results::Summary;

mod program;

fn run(seed: u64, change: impl FnOnce(&mut Command)) -> Summary {
    program::run(program::scenario!("every-fault"), seed, change)
}

#[test]
fn one_seed_gives_one_trace_with_every_fault_in_another_folder_time_zone_and_year() {
    let here = run(1, |_| {});
    assert!(here.is_good(), "{:?}", here.violations);
    assert!(here.events > 10_000);
    let elsewhere = run(1, |command| {
        command.current_dir(Path::new("/")).env("TZ", "Pacific/Auckland").env("LANG", "C");
        command.args(["--machine-date-offset-s", "100000000"]);
    });
    assert_eq!(here.trace_hash, elsewhere.trace_hash);
    assert_eq!((here.events, &here.figures), (elsewhere.events, &elsewhere.figures));
    assert_ne!(here.trace_hash, run(2, |_| {}).trace_hash, "another seed is another run");
}

#[test]
fn a_clock_that_leaks_in_is_noticed() {
    let leaks = |command: &mut Command| _ = command.arg("--leak-clock");
    assert_ne!(run(1, leaks).trace_hash, run(1, leaks).trace_hash);
}

#[test]
fn twenty_nodes_come_together_again_after_every_fault() {
    for seed in 10..15 {
        let summary = run(seed, |_| {});
        assert!(summary.is_good(), "seed {seed}: {:?}", summary.violations);
    }
}
