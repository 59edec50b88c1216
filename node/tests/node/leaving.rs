//! The end of a node: by `leave`, by signal, and by a second signal.

use hedgerow_proto::frame::Refusal;
use hedgerow_tunnel::TunnelEvent;

use crate::entry::{Entry, Joined};
use crate::process::{Home, text, until};
use crate::service::Service;

/// Waits for the Leave; whatever comes before it is only news.
async fn says_leave(joined: &mut Joined) {
    loop {
        match joined.event().await {
            TunnelEvent::Leave(..) => return,
            TunnelEvent::Record(..) => {}
            TunnelEvent::Closed(closed) => panic!("closed before it had said Leave: {closed}"),
        }
    }
}

/// Waits for the end of the tunnel.
async fn closes(joined: &mut Joined) {
    while !matches!(joined.event().await, TunnelEvent::Closed(_)) {}
}

#[tokio::test]
async fn leave_is_said_first_and_the_command_returns_when_the_node_has_gone() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let ready = home.path("ready.json");
    let mut node = home.start(&["join", &entry.url(), "--ready-file", &text(&ready)]);
    let mut joined = entry.joined().await;
    until("the ready file", async || ready.exists().then_some(())).await;
    let output = home.run(&["leave"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.ends_with("left\n"), "{said}");
    says_leave(&mut joined).await;
    closes(&mut joined).await;
    let (status, log) = node.ends().await;
    assert!(status.success(), "{log:#?}");
    assert!(!ready.exists(), "the ready file goes with the node");
    assert!(!home.data_dir().join("control.sock").exists());
}

#[tokio::test]
async fn what_runs_may_finish_and_nothing_new_begins() {
    for by_signal in [false, true] {
        let home = Home::new();
        let (mut entry, service) = (Entry::start(1).await, Service::start().await);
        service.open(false);
        let mut node = home.start(&["join", &entry.url(), "--service", &service.named("notes")]);
        let mut joined = entry.joined().await;
        let running = joined.ask("notes").await.unwrap();
        service.has_inside(1).await;
        let leaving = if by_signal {
            node.signal("TERM");
            None
        } else {
            let command = home.command(&["leave"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
            Some(tokio::spawn(command.wait_with_output()))
        };
        says_leave(&mut joined).await;
        assert_eq!(joined.ask("notes").await.err(), Some(Refusal::Draining));
        assert_eq!(home.status().await.requests_running, 1);
        service.open(true);
        assert!(running.answer().await.ends_with("hello"));
        let (status, log) = node.ends().await;
        assert!(status.success(), "{log:#?}");
        if let Some(leaving) = leaving {
            let said = String::from_utf8(leaving.await.unwrap().unwrap().stdout).unwrap();
            assert!(said.contains("1 request still runs") && said.ends_with("left\n"), "{said}");
        }
    }
}

#[tokio::test]
async fn the_second_signal_stops_at_once_and_says_what_was_cut_off() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    service.open(false);
    let mut node = home.start(&["join", &entry.url(), "--service", &service.named("notes")]);
    let mut joined = entry.joined().await;
    let _running = joined.ask("notes").await.unwrap();
    service.has_inside(1).await;
    node.signal("INT");
    says_leave(&mut joined).await;
    node.signal("INT");
    let before = std::time::Instant::now();
    closes(&mut joined).await;
    let (status, log) = node.ends().await;
    // Not by its time-out: the entry can tell the client at once.
    assert!(before.elapsed() < std::time::Duration::from_secs(10));
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("1 request still ran")), "{log:#?}");
    service.has_inside(0).await;
}

#[tokio::test]
async fn a_node_without_an_entry_leaves_too() {
    let home = Home::new();
    let mut node = home.start(&["join", "http://127.0.0.1:1"]);
    node.says(&["cannot reach the entry"]).await;
    assert!(home.run(&["leave"]).await.status.success());
    assert!(node.ends().await.0.success());
}
