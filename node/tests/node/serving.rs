//! Requests down the tunnels: slots, cancellation, names.

use std::sync::atomic::Ordering;

use hedgerow_proto::frame::{Refusal, WhenFull};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::entry::{Entry, Joined};
use crate::process::{Home, in_time, until};
use crate::service::Service;

#[tokio::test]
async fn a_request_is_answered_by_the_service_that_was_named() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    let _node = home.start(&["join", &entry.url(), "--service", &service.named("notes")]);
    let joined = entry.joined().await;
    for _ in 0..3 {
        assert!(joined.ask("notes").await.unwrap().answer().await.ends_with("hello"));
    }
    assert_eq!(joined.ask("secrets").await.err(), Some(Refusal::UnknownService));
    let status = until("the requests in the status", async || {
        let status = home.status().await;
        (status.requests == 3 && status.requests_running == 0).then_some(status)
    })
    .await;
    assert_eq!(status.services[0].requests, 3);
}

#[tokio::test]
async fn two_entries_together_never_get_a_third_of_two_slots() {
    let home = Home::new();
    let (mut one, mut two, service) = (Entry::start(1).await, Entry::start(2).await, Service::start().await);
    service.open(false);
    let named = service.named("notes") + ";capacity=2";
    let _node = home.start(&["join", &one.url(), &two.url(), "--service", &named]);
    let (one, two) = (one.joined().await, two.joined().await);
    let first = one.ask("notes").await.unwrap();
    let second = two.ask("notes").await.unwrap();
    service.has_inside(2).await;
    assert_eq!(one.ask("notes").await.err(), Some(Refusal::Full));
    assert_eq!(two.ask("notes").await.err(), Some(Refusal::Full));
    service.open(true);
    assert!(first.answer().await.ends_with("hello"));
    assert!(second.answer().await.ends_with("hello"));
    until("a slot", async || one.ask("notes").await.ok()).await.answer().await;
    assert_eq!(service.seen.inside_most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn entries_that_stand_in_line_get_the_slot_in_turn() {
    let home = Home::new();
    let (mut one, mut two, service) = (Entry::start(1).await, Entry::start(2).await, Service::start().await);
    let named = service.named("notes") + ";capacity=1";
    let _node = home.start(&["join", &one.url(), &two.url(), "--service", &named]);
    let (one, two) = (one.joined().await, two.joined().await);
    // Each has another request as soon as one is answered; how often it was refused meanwhile.
    let busy = async |entry: &Joined| {
        let (mut served, mut refused) = (0, 0);
        while served < 20 {
            match entry.ask_or(WhenFull::Wait, "notes").await {
                Ok(asked) => served += usize::from(asked.answer().await.ends_with("hello")),
                Err(_) => refused += 1,
            }
        }
        refused
    };
    let (one, two) = tokio::join!(busy(&one), busy(&two));
    assert!(one + two <= 4, "refused {one} and {two} times: only a machine that hangs is so slow");
    assert_eq!(service.seen.inside_most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_that_is_given_up_is_cut_off_at_the_service_and_its_slot_is_free() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    service.open(false);
    let named = service.named("notes") + ";capacity=1";
    let _node = home.start(&["join", &entry.url(), "--service", &named]);
    let joined = entry.joined().await;
    let asked = joined.ask("notes").await.unwrap();
    service.has_inside(1).await;
    asked.exchange.abort();
    service.has_inside(0).await;
    assert_eq!(service.seen.cut.load(Ordering::SeqCst), 1);
    service.open(true);
    until("the slot", async || joined.ask("notes").await.ok()).await.answer().await;
}

#[tokio::test]
async fn a_health_probe_gives_its_slot_to_a_request() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    let named = service.named("notes") + ";capacity=1;health=/well";
    let _node = home.start(&["join", &entry.url(), "--service", &named]);
    let joined = entry.joined().await;
    service.open(false);
    // The next probe hangs in the service, and holds its only slot.
    service.has_inside(1).await;
    let asked = joined.ask("notes").await.expect("the probe has given way");
    service.has_inside(1).await;
    service.open(true);
    assert!(asked.answer().await.ends_with("hello"));
    assert_eq!(service.seen.inside_most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_nodes_own_port_shares_the_slots_with_the_tunnels() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    service.open(false);
    let named = service.named("notes") + ";capacity=1";
    let _node = home.start(&["join", &entry.url(), "--service", &named, "--listen", "127.0.0.1:0"]);
    let joined = entry.joined().await;
    let listen = home.status().await.listen.expect("it listens");
    let mut client = tokio::net::TcpStream::connect(&listen).await.unwrap();
    client.write_all(b"GET /service/notes/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    service.has_inside(1).await;
    assert_eq!(joined.ask("notes").await.err(), Some(Refusal::Full));
    service.open(true);
    let mut answer = String::new();
    in_time("the answer", client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn an_alias_leads_to_its_service_at_the_nodes_own_port_too() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    let _node =
        home.start(&["join", &entry.url(), "--service", &service.named("notes-coa"), "--listen", "127.0.0.1:0"]);
    entry.joined().await;
    let status = home.status().await;
    let (listen, id) = (status.listen.expect("it listens"), status.node_id);
    for path in ["/service/notes/", &format!("/service/~{id}/notes/"), &format!("/worker/{id}/notes/")] {
        let mut client = tokio::net::TcpStream::connect(&listen).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        in_time("the answer", client.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{path}: {answer}");
    }
}
