//! The core level: one seed, one trace, whatever the process, the folder and the time zone. (That such a test can fail:
//! simulations/core/tests/determinism.rs. The full level: simulations/full/tests/determinism.rs.)

use std::process::{Command, Stdio};

use hedgerow_sim_model::results::Summary;

/// Every kind of fault.
fn everything(seed: u64, change: impl FnOnce(&mut Command)) -> Summary {
    // A folder of its own: a run in which something is wrong leaves a file there.
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-sim"));
    command.current_dir(&folder);
    command.args(["run", "everything", "--level", "core", "--json", "--seed", &seed.to_string()]);
    command.stdin(Stdio::null());
    change(&mut command);
    let output = command.output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no summary ({error}): {errors}"))
}

#[test]
fn one_seed_gives_one_trace_with_every_fault_in_another_process_folder_and_time_zone() {
    let here = everything(1, |_| {});
    let elsewhere = everything(1, |command| {
        command.env("TZ", "Pacific/Auckland").env("LANG", "C");
    });
    assert!(here.events > 100_000 && here.plan.incidents.len() > 20, "{} events", here.events);
    assert_eq!(here.trace_hash, elsewhere.trace_hash);
    let decided = |summary: Summary| Summary { commit: String::new(), cpu_s: 0.0, peak_rss_mib: 0.0, ..summary };
    let (here, elsewhere) = (decided(here), decided(elsewhere));
    assert_eq!(here, elsewhere);
    assert_ne!(here.trace_hash, everything(2, |_| {}).trace_hash, "another seed is another run");
}
