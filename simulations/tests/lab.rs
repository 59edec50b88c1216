//! The network lab: some of its scenarios, where there is root and what else it needs; and that nothing stays behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hedgerow_sim::binaries::Binaries;
use hedgerow_sim::lab::{missing, shipped::SHIPPED};
use rustix::process::{Pid, Signal, kill_process};

const SIM: &str = env!("CARGO_BIN_EXE_hedgerow-sim");

/// Whether there can be a lab here. Where not, what needs one is passed over.
fn can_be() -> bool {
    if let Some(missing) = missing() {
        hedgerow_sim::terminal::say(format!("passed over: {missing}"));
        return false;
    }
    Binaries::beside(SIM.as_ref()).expect("entry and node build");
    true
}

fn lab(arguments: &[&str]) -> Output {
    Command::new(SIM).arg("lab").args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

/// Standard output and error, together.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn holds(scenario: &str) {
    if can_be() {
        let output = lab(&[scenario]);
        assert!(output.status.success(), "{}", text(&output));
        hedgerow_sim::terminal::say(text(&output));
    }
}

/// The namespaces of a lab, by its process id.
fn namespaces_of(pid: u32) -> usize {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(&format!("hedgerow-lab-{pid}."))).count()
}

/// A lab that has built its network, and is then ended by this signal. Its process id.
fn ended_by(signal: Signal) -> u32 {
    let mut command = Command::new(SIM);
    command.args(["lab", "smoke", "--keep"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let said = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let built = said.map_while(Result::ok).any(|line| line.contains("namespaces after"));
    assert!(built, "it ended before it had built anything");
    assert!(namespaces_of(child.id()) > 0);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("it has an id");
    kill_process(pid, signal).expect("it runs");
    assert!(!child.wait().expect("it ends").success());
    child.id()
}

#[test]
fn two_homes_serve_over_lines_that_lose_packets() {
    holds("smoke");
}

#[test]
fn workers_behind_every_router_that_lets_udp_out_serve() {
    holds("nats");
}

#[test]
fn workers_serve_whose_networks_let_no_udp_out() {
    holds("no-udp");
}

#[test]
fn six_coordinators_that_nobody_can_dial_are_one_mesh() {
    holds("six");
}

#[test]
fn nodes_of_one_lan_find_each_other_there_and_do_without_their_line() {
    holds("lan");
}

#[test]
fn nodes_that_are_not_to_look_for_others_on_their_lan_do_not_find_them() {
    holds("lan-off");
}

#[test]
fn nothing_fails_when_a_coordinator_is_killed_and_its_workers_have_another_home() {
    holds("coordinator-killed");
}

#[test]
fn a_node_that_stood_still_comes_back() {
    holds("paused");
}

#[test]
fn coordinators_with_direct_paths_stay_agreed_while_the_entry_is_gone_and_all_agree_when_it_is_back() {
    holds("entry-gone");
}

#[test]
fn clients_do_not_notice_that_all_gossip_is_dead_while_tunnels_live() {
    holds("gossip-dead");
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    if can_be() {
        let pid = ended_by(Signal::INT);
        assert_eq!(namespaces_of(pid), 0);
    }
}

#[test]
fn the_next_lab_removes_what_one_has_left_that_was_killed() {
    if can_be() {
        let pid = ended_by(Signal::KILL);
        // Another lab of these tests that has started since may have done it already.
        let output = lab(&["clean"]);
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(namespaces_of(pid), 0);
    }
}

#[test]
fn without_a_scenario_all_of_them_are_listed() {
    let output = lab(&[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(SHIPPED.iter().all(|shipped| text(&output).contains(shipped.name)));
}

#[test]
fn who_cannot_have_a_lab_is_told_what_to_do_with_exit_code_2() {
    // No program is found on this path.
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(SIM).args(["lab", "smoke"]).env("PATH", empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("apt-get install iproute2 nftables conntrack curl"), "{}", text(&output));
}

#[test]
fn a_scenario_that_there_is_not_is_answered_with_the_nearest_one() {
    if can_be() {
        let output = lab(&["smok"]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains("try: smoke"), "{}", text(&output));
    }
}

#[test]
fn every_file_of_the_folder_is_built_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut built_in: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
    files.sort();
    built_in.sort();
    assert_eq!(files, built_in);
}
