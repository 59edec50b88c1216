//! Entries that are not there, that come back, that become others.

use hedgerow_node::status::TunnelStage;
use hedgerow_proto::record::{Body, ServiceHealth};
use hedgerow_tunnel::{Transport, TunnelEvent};

use crate::entry::Entry;
use crate::process::{Home, text, until};
use crate::service::Service;

#[tokio::test]
async fn an_entry_that_is_not_there_is_said_once_and_joined_when_it_comes() {
    let home = Home::new();
    let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let mut node = home.start(&["join", &format!("http://{address}")]);
    node.says(&["cannot reach the entry", "refused"]).await;
    let unreachable = home.status().await;
    assert_eq!(unreachable.entries[0].state, TunnelStage::Unreachable);
    assert!(unreachable.entries[0].error.as_ref().unwrap().contains("refused"));
    // It has been tried again by then, at least twice: the pause is below half a second at first.
    until("a few more attempts", async || (home.status().await.uptime_ms > 2_000).then_some(())).await;
    let mut entry = Entry::start_at(address, 1).await;
    entry.joined().await;
    node.says(&["the entry answers"]).await;
    let complaints = node.log().iter().filter(|line| line.contains("cannot reach")).count();
    assert_eq!(complaints, 1, "{:#?}", node.log());
}

#[tokio::test]
async fn the_ready_file_appears_with_the_tunnel_and_status_says_what_is_up() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    let ready = home.path("ready.json");
    let named = service.named("notes") + ";capacity=3";
    let arguments = ["join", &entry.url(), "--service", &named, "--location", "Vienna", "--ready-file", &text(&ready)];
    let _node = home.start(&arguments);
    let joined = entry.joined().await;
    let Body::Node(record) = &joined.record.body else { panic!("not a node's record") };
    assert_eq!((record.location.as_str(), record.services.len()), ("Vienna", 1));
    assert_eq!((record.services[0].capacity, record.services[0].health), (3, ServiceHealth::Up));
    let content = until("the ready file", async || std::fs::read(&ready).ok()).await;
    let content: serde_json::Value = serde_json::from_slice(&content).unwrap();
    assert_eq!(content["node_id"], joined.tunnel.node().to_string());
    assert_eq!(content["federation"], entry.identity.federation.to_string());
    assert_eq!(content["entries"][0]["up"], true);
    assert_eq!(content["data_dir"], text(&home.data_dir()));

    let status = home.status().await;
    assert_eq!((status.role.as_str(), status.entries[0].state), ("worker", TunnelStage::Up));
    assert_eq!(status.entries[0].entry_id.as_ref(), Some(&entry.identity.key.id().to_string()));
    assert!(status.services[0].up);
    let for_people = String::from_utf8(home.run(&["status"]).await.stdout).unwrap();
    assert!(for_people.contains("notes    up") && for_people.contains("0 of 3"), "{for_people}");
}

#[tokio::test]
async fn where_no_udp_comes_through_the_tunnel_goes_over_tcp_and_status_says_why() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start_without_udp(1).await, Service::start().await);
    let mut node = home.start(&["join", &entry.url(), "--service", &service.named("notes")]);
    let joined = entry.joined().await;
    assert_eq!(joined.tunnel.transport(), Transport::Tcp);
    assert!(joined.ask("notes").await.unwrap().answer().await.ends_with("hello"));
    node.says(&["the tunnel is up", "transport=tcp"]).await;
    let status = home.status().await;
    assert_eq!(status.entries[0].transport.as_deref(), Some("tcp"));
    assert!(status.entries[0].why_not_quic.as_ref().unwrap().contains("UDP"), "{status:?}");
    let for_people = String::from_utf8(home.run(&["status"]).await.stdout).unwrap();
    assert!(for_people.contains("over TCP, since") && for_people.contains("  tcp  "), "{for_people}");
}

#[tokio::test]
async fn an_entry_that_comes_back_as_another_is_joined_anew() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let address = entry.address;
    let mut node = home.start(&["join", &entry.url()]);
    let joined = entry.joined().await;
    entry.stop().await;
    joined.tunnel.close(1, "the entry stops");
    let mut other = Entry::start_at(address, 2).await;
    assert_eq!(other.joined().await.tunnel.node(), joined.tunnel.node());
    node.says(&["another key"]).await;
    let up = until("the status", async || {
        let status = home.status().await;
        (status.entries.len() == 1 && status.entries[0].state == TunnelStage::Up).then_some(status)
    })
    .await;
    assert_eq!(up.entries[0].entry_id.as_ref(), Some(&other.identity.key.id().to_string()));
}

#[tokio::test]
async fn one_entry_under_two_names_gets_one_tunnel() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let by_name = format!("http://localhost:{}", entry.address.port());
    let _node = home.start(&["join", &entry.url(), &by_name]);
    let first = entry.joined().await;
    // A request goes all the way, and still there is no second one.
    assert_eq!(first.ask("nothing").await.err(), Some(hedgerow_proto::frame::Refusal::UnknownService));
    until("the status", async || home.status().await.entries.iter().any(|e| e.state == TunnelStage::Up).then_some(()))
        .await;
    let up = home.status().await.entries.iter().filter(|e| e.state == TunnelStage::Up).count();
    assert_eq!(up, 1);
    assert!(entry.nobody_else());
}

#[tokio::test]
async fn a_key_that_was_not_named_is_not_joined() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let other = hedgerow_proto::key::SecretKey::from_seed([2; 32]).id().to_string();
    let mut node = home.start(&["join", &entry.url(), "--entry-key", &other]);
    node.says(&["cannot reach the entry", "--entry-key"]).await;
    node.signal("KILL");
    node.ends().await;
    let key = entry.identity.key.id().to_string();
    let _node = home.start(&["join", &entry.url(), "--entry-key", &key]);
    entry.joined().await;
}

#[tokio::test]
async fn an_https_entry_is_joined_when_its_certificate_is_good_for_its_name() {
    let home = Home::new();
    let (mut entry, certificate) = Entry::start_https("localhost", 1).await;
    let (port, ca) = (entry.address.port(), text(&home.write("ca.pem", &certificate)));
    let by_name = format!("https://localhost:{port}");

    let mut node = home.start(&["join", &by_name]);
    node.says(&["cannot reach the entry", "certificate", "--entry-ca"]).await;
    node.signal("KILL");
    node.ends().await;

    let mut node = home.start(&["join", &format!("https://127.0.0.1:{port}"), "--entry-ca", &ca]);
    node.says(&["cannot reach the entry", "certificate"]).await;
    node.signal("KILL");
    node.ends().await;

    let _node = home.start(&["join", &by_name, "--entry-ca", &ca]);
    entry.joined().await;
}

#[tokio::test]
async fn a_libp2p_port_in_use_stops_the_node_with_a_clear_word() {
    let home = Home::new();
    let entry = Entry::start(1).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    let said = home.fails(1, &["join", &entry.url(), "--mesh-listen", &address]).await;
    assert!(said.contains("error: cannot listen on") && said.contains("another port"), "{said}");
}

#[tokio::test]
async fn a_restarted_node_speaks_in_a_higher_epoch_under_the_same_key() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let mut node = home.start(&["join", &entry.url()]);
    let first = entry.joined().await;
    node.signal("KILL");
    node.ends().await;
    let _node = home.start(&["join", &entry.url()]);
    let second = entry.joined().await;
    assert_eq!(first.record.writer, second.record.writer);
    assert!(second.record.version.epoch > first.record.version.epoch);
    assert_ne!(first.record.incarnation, second.record.incarnation);
}

#[tokio::test]
async fn a_service_that_goes_down_and_comes_back_is_said_to_the_entry() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    let mut node = home.start(&["join", &entry.url(), "--service", &service.named("notes")]);
    let mut joined = entry.joined().await;
    let address = service.address;
    drop(service);
    // A request that meets a closed door is refused, and makes the probe look at once.
    assert_eq!(joined.ask("notes").await.err(), Some(hedgerow_proto::frame::Refusal::ServiceDown));
    let health = async |joined: &mut crate::entry::Joined| loop {
        let TunnelEvent::Record(_, record) = joined.event().await else { panic!("expected a record") };
        let Body::Node(said) = record.body else { panic!("not a node's record") };
        if record.version.seq > 0 && said.services[0].health != ServiceHealth::Up {
            return said.services[0].health;
        }
    };
    assert_eq!(health(&mut joined).await, ServiceHealth::Down);
    node.says(&["the service is down", "notes"]).await;
    let _service = Service::start_at(address).await;
    loop {
        let TunnelEvent::Record(_, record) = joined.event().await else { panic!("expected a record") };
        let Body::Node(said) = record.body else { panic!("not a node's record") };
        if said.services[0].health == ServiceHealth::Up {
            break;
        }
    }
    node.says(&["up again", "notes"]).await;
}
