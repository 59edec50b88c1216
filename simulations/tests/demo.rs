//! The demo does what the README says of it, and leaves no process behind however it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hedgerow_sim::binaries::Binaries;
use rustix::process::{Pid, Signal, kill_process};

const SIM: &str = env!("CARGO_BIN_EXE_hedgerow-sim");
/// A variable that the demo's processes inherit, so that they can be found.
const MARK: &str = "HEDGEROW_DEMO_TEST";

fn demo(mark: &str, arguments: &[&str]) -> Child {
    Binaries::beside(SIM.as_ref()).expect("entry and node build");
    Command::new(SIM)
        .arg("demo")
        .args(arguments)
        .env(MARK, mark)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demo starts")
}

/// Processes with this mark that still run.
fn left_behind(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}");
    let processes = std::fs::read_dir("/proc").expect("Linux has it").flatten().filter_map(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let marked = environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes());
        marked.then(|| std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default())
    });
    processes.collect()
}

fn wait_until_nothing_is_left(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = left_behind(mark);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::yield_now();
    }
}

#[test]
fn the_demo_keeps_what_it_promises_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("summary.json");
    let mark = format!("whole-{}", std::process::id());
    let output = demo(&mark, &["--seconds", "8", "--json", json.to_str().unwrap()]).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for word in ["curl http://", "SIGKILL to worker-2", "What was promised", "p99"] {
        assert!(text.contains(word), "the demo does not say {word:?}:\n{text}");
    }
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(summary["failed"], serde_json::json!({}), "{summary}");
    assert!(summary["must_not_fail"].as_u64().unwrap() > 100, "{summary}");
    wait_until_nothing_is_left(&mark);
}

#[test]
fn an_interrupted_demo_and_a_killed_one_leave_no_process_behind() {
    for signal in [Signal::INT, Signal::KILL] {
        let mark = format!("cut-{}-{signal:?}", std::process::id());
        let mut demo = demo(&mark, &["--seconds", "600"]);
        let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("curl http://"));
        assert!(ready, "the demo ended before its federation was up");
        assert!(left_behind(&mark).len() > 15, "a whole federation runs");
        // What it says on the way out must not block it.
        let reader = std::thread::spawn(move || lines.for_each(drop));
        kill_process(Pid::from_raw(demo.id() as i32).unwrap(), signal).unwrap();
        assert!(!demo.wait().unwrap().success(), "a demo that was cut short has shown nothing");
        reader.join().unwrap();
        wait_until_nothing_is_left(&mark);
    }
}
