//! The harness leaves nothing behind, and its services keep honest evidence.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hedgerow_sim::client::{ask, begin, get, post};
use hedgerow_sim::process::{Launch, Workdir};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const SIM: &str = env!("CARGO_BIN_EXE_hedgerow-sim");

#[test]
fn a_harness_that_is_killed_leaves_no_process_behind() {
    let mut harness = Command::new("sh")
        .args(["-c", &format!("{SIM} guard --parent $$ -- sleep 600 & echo $!; wait")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(harness.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    // It has become `sleep` once the guard has asked the kernel for its end.
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(format!("/proc/{}/comm", child.as_raw_nonzero())).is_ok_and(|name| name != "sleep\n")
    {
        assert!(Instant::now() < deadline, "the guard never became its command");
        std::thread::yield_now();
    }
    kill_process(Pid::from_raw(harness.id() as i32).unwrap(), Signal::KILL).unwrap();
    harness.wait().unwrap();
    while test_kill_process(child).is_ok() && !is_zombie(child) {
        assert!(Instant::now() < deadline, "the child outlived the harness");
        std::thread::yield_now();
    }
}

/// In a container, nobody may be there to collect an orphan that has ended.
fn is_zombie(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| stat.contains(") Z "))
}

#[tokio::test]
async fn a_process_that_ends_before_it_is_ready_is_reported_with_its_log() {
    let workdir = Workdir::new(SIM.as_ref()).unwrap();
    let process = Launch::new("broken", SIM)
        .args(["service", "--kind", "nonsense"])
        .ready_file(&workdir)
        .start(&workdir)
        .unwrap();
    let error = process.ready(Duration::from_secs(20)).await.unwrap_err().to_string();
    assert!(error.contains("before it was ready") && error.contains("nonsense"), "{error}");
}

#[tokio::test]
async fn a_service_tells_what_ran_what_was_cut_off_and_how_many_at_once() {
    let workdir = Workdir::new(SIM.as_ref()).unwrap();
    let process = Launch::new("kit", SIM).args(["service"]).ready_file(&workdir).start(&workdir).unwrap();
    let ready = process.ready(Duration::from_secs(20)).await.unwrap();
    let address = ready["listen"].as_str().unwrap().parse().unwrap();

    let digest = ask(address, post("/digest?key=k", "abc")).await.unwrap().json();
    assert_eq!(digest["sha256"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(ask(address, post("/echo", vec![0, 255, 10])).await.unwrap().body.as_ref(), [0, 255, 10]);
    assert_eq!(ask(address, get("/bytes?n=200000")).await.unwrap().body.len(), 200_000);
    assert_eq!(ask(address, get("/status/500")).await.unwrap().status, 500);
    assert_eq!(ask(address, get("/events?every=1&count=3")).await.unwrap().text().matches("data: tick").count(), 3);

    let stream = begin(address, get("/events")).await.unwrap();
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let evidence = ask(address, get("/evidence")).await.unwrap().json();
        if evidence["cancelled"] == 1 {
            assert_eq!(evidence["completed"], 5, "{evidence}");
            assert_eq!(evidence["running"], 0, "{evidence}");
            assert_eq!(evidence["runs"]["k"], 1, "{evidence}");
            break;
        }
        assert!(Instant::now() < deadline, "the service did not see that its client left: {evidence}");
        tokio::task::yield_now().await;
    }
}
