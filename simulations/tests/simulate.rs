//! The commands of the simulation as somebody calls them.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const SIM: &str = env!("CARGO_BIN_EXE_hedgerow-sim");

fn sim(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(SIM).args(arguments).current_dir(directory).stdin(Stdio::null()).output().expect("it starts")
}

/// Standard output and error, together.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_run_leaves_results_behind_that_can_be_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let run = sim(
        directory.path(),
        &["run", "idle", "--nodes", "5", "--for", "3m", "--seed", "7", "--trace", "1", "--out", "out"],
    );
    assert!(run.status.success(), "{}", text(&run));
    let path = |name: &str| directory.path().join(name);
    for ending in ["json", "csv", "trace.txt"] {
        let written = std::fs::metadata(path(&format!("out/idle-core-n5-s7.{ending}"))).unwrap();
        assert!(written.len() > 100, "{ending}");
    }
    let plot = sim(directory.path(), &["plot", "out/idle-core-n5-s7.json", "--out", "pictures"]);
    assert!(plot.status.success(), "{}", text(&plot));
    let pictures = ["idle-core-n5-s7-convergence", "idle-core-n5-s7-availability", "idle-core-n5-s7-mesh", "cost"];
    for picture in pictures {
        assert!(path(&format!("pictures/{picture}.svg")).exists() && path(&format!("pictures/{picture}.png")).exists());
    }
}

#[test]
fn the_full_level_tells_what_a_node_says() {
    let directory = tempfile::tempdir().unwrap();
    let small = ["run", "idle", "--level", "full", "--nodes", "4", "--for", "150s", "--trace", "1"];
    let run = sim(directory.path(), &small);
    assert!(run.status.success(), "{}", text(&run));
    let first = text(&run).lines().find(|line| line.contains(" s  ")).unwrap_or_default().to_owned();
    assert!(first.starts_with("      0.000000 s") && text(&run).contains("the tunnel is up"), "{}", text(&run));
}

#[test]
fn a_sweep_runs_each_seed_once_and_the_next_one_has_nothing_left_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["sweep", "idle", "--nodes", "4", "--for", "150s", "--seeds", "3..7", "--resume", "finished"];
    let first = sim(directory.path(), &arguments);
    assert!(first.status.success() && text(&first).contains("4 of 4 runs"), "{}", text(&first));
    let second = sim(directory.path(), &arguments);
    assert!(second.status.success() && text(&second).contains("4 of them from before"), "{}", text(&second));
}

#[test]
fn who_asks_for_what_there_is_not_is_told_what_to_do_with_exit_code_2() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (&["run", "chrun"][..], "try: churn"),
        (&["run", "idle", "--for", "1m"], "settle"),
        (&["run", "idle", "--trace", "999"], "coordinators 1 to 10"),
        (&["run", "idle", "--nodes", "0"], "--nodes"),
        (&["sweep"], "SCENARIOS"),
        (&["sweep", "idle", "--seeds", "9..3"], "no seed"),
        (&["replay", "missing.toml"], "regression-"),
        (&["plot", "missing.json", "--out", "x"], "hedgerow-sim run"),
    ] {
        let output = sim(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was left behind");
}

#[test]
fn without_a_scenario_all_of_them_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let output = sim(directory.path(), &["run"]);
    let text = text(&output);
    assert!(output.status.success() && ["idle", "everything", "partition-ring"].iter().all(|name| text.contains(name)));
}

#[test]
fn ctrl_c_ends_a_run_and_says_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    // More than anybody would wait for.
    let mut child = Command::new(SIM)
        .args(["run", "thousand", "--nodes", "50", "--for", "30days"])
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut title = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut title).unwrap();
    assert!(title.contains("thousand"), "{title}");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(said.contains("stopped") && said.contains("30days"), "{said}");
}
