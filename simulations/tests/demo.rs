//! The demo does what the README says of it, and leaves no process behind however it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hedgerow_sim::agent::Step;
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
    let said = [
        "curl http://",
        "--allow-private-urls",
        "SIGKILL to worker-2",
        "paused, and so cut off from everybody",
        "an agent of the existing contract registers",
        "it has caught up",
        "which is home to worker-",
        "its workers are at home with others",
        "SIGTERM to the agent",
        "all 4 who hold the registry agree",
        "What was promised",
        "p99",
    ];
    for word in said {
        assert!(text.contains(word), "the demo does not say {word:?}:\n{text}");
    }
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(summary["failed"], serde_json::json!({}), "{summary}");
    assert!(summary["must_not_fail"].as_u64().unwrap() > 100, "{summary}");
    let (agent, pause, rehoming) = (&summary["agent"], &summary["catching_up"], &summary["rehoming"]);
    assert!(!agent["services"].as_array().unwrap().is_empty(), "{agent}");
    assert!(agent["heartbeats"].as_u64().unwrap() > 0, "{agent}");
    // By its own count, past the federation: those that were measured, and those that waited for it to be there.
    assert!(agent["requests"].as_u64().unwrap() >= summary["agent_answers"].as_u64().unwrap(), "{summary}");
    assert!(pause["missed_something"].as_bool().unwrap() && pause["paused"].as_f64().unwrap() >= 4000.0, "{pause}");
    assert!(rehoming["workers"].as_u64().unwrap() > 0, "{rehoming}");
    assert_ne!(pause["coordinator"], rehoming["coordinator"], "who has just been away is home to the fewest");
    assert_eq!(summary["agreement"]["holders"], 4, "{summary}");
    assert_eq!(summary["agreement"]["digest"].as_str().unwrap().len(), 64, "{summary}");
    wait_until_nothing_is_left(&mark);
}

/// Alone, without a federation that would take it: what it was told is what it says, and it never asks again.
#[test]
fn an_agent_that_is_not_taken_says_why_and_ends() {
    // A port that was free a moment ago, and is closed again.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = Command::new(SIM).args(["agent", "--coordinator", &format!("http://{closed}")]).output().unwrap();
    assert!(!output.status.success());
    let steps = Step::all_in(&String::from_utf8_lossy(&output.stdout));
    let events: Vec<_> = steps.iter().map(|step| step.event.as_str()).collect();
    assert_eq!(events, ["health", "exit"]);
    assert!(steps[0].status.is_none() && steps[0].error.is_some(), "{steps:?}");
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
