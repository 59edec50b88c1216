//! `--trace`: what one node says, and nothing of others; and the run is the same as without it.

use std::process::Command;

use hedgerow_sim_model::plan::Effect;
use hedgerow_sim_model::results::Summary;

use crate::program;

const SCENARIO: &str = program::scenario!("traced");

/// The run, and what this node said in it.
fn traced(node: u32) -> (Summary, Trace) {
    traced_in(SCENARIO, node)
}

/// The same of another scenario.
pub(super) fn traced_in(scenario: &str, node: u32) -> (Summary, Trace) {
    let folder = tempfile::tempdir().unwrap();
    let trace = |command: &mut Command| _ = command.args(["--trace", &node.to_string()]);
    let summary = program::run_into(folder.path(), scenario, 1, trace);
    let text = std::fs::read_to_string(folder.path().join("trace.txt")).unwrap();
    (summary, Trace(text))
}

pub(super) struct Trace(String);

impl Trace {
    /// How often this was said, and when for the first time.
    pub(super) fn said(&self, words: &str) -> (usize, f64) {
        let said = || self.0.lines().filter(|line| line.contains(words));
        let at = said().next().and_then(|line| line.split_once(" s  ")?.0.trim().parse().ok());
        (said().count(), at.unwrap_or(f64::NAN))
    }

    fn times(&self, words: &str) -> usize {
        self.said(words).0
    }
}

#[test]
fn a_trace_tells_what_its_node_says_and_what_happens_to_it_and_nothing_of_others() {
    let without = program::run(SCENARIO, 1, |_| {});
    assert!(without.is_good(), "{:?}", without.violations);
    let Effect::Crash { node: victim, .. } = without.plan.incidents[0].effect else { panic!("{:?}", without.plan) };
    let (entry, worker) = (0, without.entries + without.coordinators);
    let runs = [entry, victim, worker].map(traced);
    for (summary, trace) in &runs {
        assert_eq!((&summary.trace_hash, summary.events), (&without.trace_hash, without.events));
        let fault = format!("** Crash {{ node: {victim}, silent: false, wipe: false }}");
        assert_eq!(trace.said(&format!("{fault} begins")), (1, 60.0));
        assert_eq!(trace.said(&format!("{fault} is over")), (1, 80.0));
    }
    let [entry, victim, worker] = runs.map(|(_, trace)| trace);

    // A task of the simulation, one of libp2p's host, and one that the product has spawned by itself.
    assert_eq!(victim.times(": starts id="), 2);
    assert_eq!(victim.said("is killed"), (1, 60.0));
    assert!(victim.times("the tunnel is up") >= 2 && victim.times("a coordinator is connected") >= 2);
    assert!(victim.times("a worker is at home here") >= 1);
    assert_eq!(victim.times("the stored registry was read"), 1, "what its disk knew, after the crash");

    assert_eq!((worker.times(": starts id="), worker.times("is killed")), (1, 0));
    assert!(worker.said("at home with a coordinator").1 > worker.said(": starts id=").1);
    assert_eq!((worker.times("a worker is at home here"), victim.times("at home with a coordinator")), (0, 0));

    assert_eq!((entry.times("an entry starts"), entry.said("an entry is killed")), (2, (1, 100.0)));
    assert!(entry.times("a node has joined") >= 2 * 6, "each of them, before its restart and after it");
    assert_eq!(
        entry.times("the tunnel is up") + victim.times("a node has joined") + worker.times("a node has joined"),
        0
    );
}

#[test]
fn a_trace_and_a_log_do_not_disturb_each_other_or_the_run() {
    let (_, trace) = traced(1);
    let folder = tempfile::tempdir().unwrap();
    let logged = program::output(SCENARIO, |command| {
        command.args(["--trace", "1", "--out"]).arg(folder.path()).env("HEDGEROW_LOG", "info").env("NO_COLOR", "1");
    });
    let log = String::from_utf8(logged.stderr).unwrap();
    let started = |node: u32| log.contains(&format!("node{{node={node}}}")) && log.contains("starts id=");
    assert!((1..=6).all(started), "all of them are in the log: {log}");
    assert!(!log.contains("DEBUG"), "only what was asked for");
    assert_eq!(std::fs::read_to_string(folder.path().join("trace.txt")).unwrap(), trace.0);
}

#[test]
fn a_node_that_there_is_not_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = program::output(SCENARIO, |command| _ = command.args(["--trace", "7", "--out"]).arg(folder.path()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors.contains("there is no node 7") && errors.contains("0 to 6"), "{errors}");
}
