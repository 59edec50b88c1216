//! What clients get when all is well, and what the entry tells about it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Roles, ServiceHealth, Signed};
use hedgerow_proto::registry::{Registry, Source};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Entry, in_time, until};
use crate::node::{Node, Replica, Says, Service};

/// As soon as a node's tunnel is up, it is routed to: nobody has to wait.
async fn answers(entry: &Entry, target: &str) -> crate::common::Answer {
    let answer = entry.get(target).await;
    assert_eq!(answer.status, 200, "{target}: {answer:?}");
    answer
}

#[tokio::test]
async fn every_way_to_a_service_leads_there() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let node = Node::join(&entry, service.address, Says::worker(1, &["llm-inference", "web"])).await;
    let id = node.id();
    for (target, seen) in [
        ("/service/web/a%2Fb?c=%20".to_owned(), "GET /a%2Fb?c=%20 HTTP/1.1"),
        ("/api/service/web".to_owned(), "GET / HTTP/1.1"),
        (format!("/service/~{id}/web/x"), "GET /x HTTP/1.1"),
        (format!("/worker/{id}/web/x"), "GET /x HTTP/1.1"),
    ] {
        let answer = answers(&entry, &target).await;
        assert!(answer.text().starts_with(seen), "{target}: {answer:?}");
        assert_eq!(answer.header("x-hedgerow-served-by"), Some(&*id.to_string()));
        assert!(answer.text().contains(&format!("host: {}\r\n", service.address)), "{answer:?}");
    }
}

#[tokio::test]
async fn an_alias_leads_to_its_service_by_every_way() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let node = Node::join(&entry, service.address, Says::worker(1, &["notes-coa"])).await;
    let id = node.id();
    for prefix in
        ["/service/notes", "/api/service/notes", &format!("/service/~{id}/notes"), &format!("/worker/{id}/notes")]
    {
        let answer = answers(&entry, &format!("{prefix}/x")).await;
        assert!(answer.text().starts_with("GET /x HTTP/1.1"), "{answer:?}");
        assert!(answer.text().contains(&format!("x-forwarded-prefix: {prefix}\r\n")), "as it was asked: {answer:?}");
        assert_eq!(answer.header("x-hedgerow-served-by"), Some(&*id.to_string()));
    }
    let why = entry.admin("/mesh/why?service=notes").await.json();
    assert_eq!(why["candidates"][0]["node_id"], id.to_string());
}

#[tokio::test]
async fn a_service_of_the_name_itself_comes_before_the_one_that_it_is_an_alias_of() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let of_alias = Node::join(&entry, service.address, Says::worker(1, &["notes-coa"])).await;
    let by_name = Node::join(&entry, service.address, Says::worker(2, &["notes"])).await;
    let both = Node::join(&entry, service.address, Says::worker(3, &["notes", "notes-coa"])).await;
    let served_by =
        async |target: String| answers(&entry, &target).await.header("x-hedgerow-served-by").map(str::to_owned);
    for _ in 0..8 {
        let named = [by_name.id(), both.id()].map(|id| id.to_string());
        assert!(named.contains(&served_by("/service/notes/".to_owned()).await.unwrap()));
    }
    // One node is asked for what it offers itself, whatever others offer.
    let id = of_alias.id();
    assert_eq!(served_by(format!("/worker/{id}/notes/")).await, Some(id.to_string()));
    let answer = entry.get(&format!("/service/~{}/ner/", both.id())).await;
    answer.is_problem(503, "no-worker");
    assert!(answer.text().contains("ner stands for ner-extraction; that node offers notes, notes-coa"), "{answer:?}");
}

#[tokio::test]
async fn http2_in_the_clear_is_understood_by_prior_knowledge() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    answers(&entry, "/service/web/").await;
    let stream = TcpStream::connect(entry.http).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let uri = format!("http://{}/service/web/h2", entry.http);
        let request = http::Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (http::StatusCode::OK, http::Version::HTTP_2));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(b"GET /h2 HTTP/1.1"));
    }
}

#[tokio::test]
async fn nobody_offers_it_says_what_is_known() {
    let entry = Entry::start(&[]).await;
    let known = async |target: &str| {
        let answer = entry.get(target).await;
        if answer.status == 200 {
            return "somebody answers".to_owned();
        }
        answer.is_problem(503, "no-worker");
        assert!(answer.header("retry-after").is_some());
        answer.json()["detail"].as_str().unwrap().to_owned()
    };
    assert!(known("/service/web/").await.contains("no node has a tunnel"));
    let service = Service::start().await;
    let mut node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    answers(&entry, "/service/web/").await;
    let detail = known("/service/other/").await;
    assert!(detail.contains("\"other\"") && detail.contains("offered here: web"), "{detail}");
    assert!(known("/service/llm/").await.contains("llm stands for llm-inference"));
    node.say(2, &[("web", ServiceHealth::Down)]);
    until("the service is known to be down", async || {
        known("/service/web/").await.contains("known to 1 node here: 1 where it is down").then_some(())
    })
    .await;
    let detail = known(&format!("/service/~{}/web/", node.id())).await;
    assert!(detail.contains("the service is down"), "{detail}");
    drop(node);
    until("the node is known to be away", async || {
        known("/service/web/").await.contains("1 without a tunnel").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_leaves_is_gone_at_once() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let mut node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    answers(&entry, "/service/web/").await;
    node.leave(2).await;
    until("the registry has forgotten it", async || {
        let registry = entry.get("/mesh/registry").await.json();
        registry["workers"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    entry.get("/service/web/").await.is_problem(503, "no-worker");
}

#[tokio::test]
async fn coordinators_are_told_of_each_other_and_the_public_sees_no_address() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let multiaddr = "/ip4/198.51.100.7/udp/4001/quic-v1".to_owned();
    let says = Says { roles: Roles::Coordinator, multiaddrs: vec![multiaddr.clone()], ..Says::worker(1, &[]) };
    let mut first = Node::join(&entry, service.address, says).await;
    let says = Says { roles: Roles::Both, ..Says::worker(2, &["web"]) };
    let second = Node::join(&entry, service.address, says).await;
    answers(&entry, "/service/web/").await;

    let federation = entry.ready["federation"].as_str().unwrap().parse().unwrap();
    let open = |bytes: Vec<u8>| Signed::open(bytes.into(), federation, &Limits::PRODUCTION).unwrap().writer();
    until("the first coordinator is told of the second", async || {
        let told = first.coordinators.recv().await?;
        told.into_iter().map(open).any(|id| id == second.id()).then_some(())
    })
    .await;

    let bootstrap = entry.get("/mesh/bootstrap").await;
    assert_eq!(bootstrap.header("cache-control"), Some("no-store"));
    let coordinators = bootstrap.json()["coordinators"].clone();
    let mut ids: Vec<_> = coordinators.as_array().unwrap().iter().map(|one| one["node_id"].clone()).collect();
    ids.sort_by_key(ToString::to_string);
    let mut expected = [first.id(), second.id()].map(|id| id.to_string());
    expected.sort();
    assert_eq!(ids, expected);
    assert!(bootstrap.text().contains(&multiaddr), "{bootstrap:?}");

    let registry = entry.get("/mesh/registry").await;
    let view = registry.json();
    assert_eq!(view["services"]["web"], serde_json::json!({"offers": 1, "routable": 1}));
    assert_eq!(view["coordinators"].as_array().unwrap().len(), 2);
    assert_eq!(view["digest"].as_str().unwrap().len(), 64);
    for secret in ["198.51.100.7", "127.0.0.1", "localhost"] {
        assert!(!registry.text().contains(secret), "{}", registry.text());
    }
    assert_eq!(entry.get("/health").await.json()["coordinators"], 2);
}

#[tokio::test]
async fn the_operator_sees_why_and_how_much() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    answers(&entry, "/service/web/").await;
    let why = entry.admin("/mesh/why?service=web").await.json();
    assert_eq!(why["candidates"][0]["node_id"], node.id().to_string());
    assert_eq!(why["candidates"][0]["verdict"], "may be chosen");
    let nobody = entry.admin("/mesh/why?service=other").await.json();
    assert!(nobody["reason"].as_str().unwrap().contains("offered here: web"), "{nobody}");
    entry.admin("/mesh/why").await.is_problem(400, "bad-service-name");
    let metrics = entry.admin("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    for line in [
        "hedgerow_entry_outcomes_total{outcome=\"answered\"} ",
        "hedgerow_entry_nodes{role=\"worker\"} 1",
        "hedgerow_entry_latency_seconds_bucket{le=\"+Inf\"} ",
        "hedgerow_entry_client_bytes_total{direction=\"sent\"} ",
        "# EOF",
    ] {
        assert!(metrics.text().lines().any(|found| found.starts_with(line)), "{line} in {}", metrics.text());
    }
    for public in ["/metrics", "/readyz", "/healthz", "/mesh/why?service=web"] {
        entry.get(public).await.is_problem(404, "not-found");
    }
}

#[tokio::test]
async fn a_preflight_is_answered_by_the_entry_everywhere() {
    let entry = Entry::start(&["--cors-origin", "https://app.example"]).await;
    for target in ["/health", "/service/web/x"] {
        let request = format!(
            "OPTIONS {target} HTTP/1.1\r\nhost: a\r\norigin: https://app.example\r\n\
             access-control-request-method: PUT\r\nconnection: close\r\n\r\n"
        );
        let answer = crate::common::Answer::parse(&crate::common::say(entry.http, request.as_bytes()).await);
        assert_eq!(answer.status, 204, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
        assert_eq!(answer.header("access-control-max-age"), Some("86400"));
    }
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let _node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    let mut stream = TcpStream::connect(entry.http).await.unwrap();
    let ask = b"GET /service/web/ HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(in_time("the switch", stream.read_buf(&mut head)).await.unwrap(), 0, "{head:?}");
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    // What looks like a request is none any more.
    for bytes in [&b"hello"[..], b"\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"]
    {
        stream.write_all(bytes).await.unwrap();
        let mut back = vec![0; bytes.len()];
        in_time("the echo", stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, bytes);
    }
}

#[tokio::test]
async fn an_entry_and_a_coordinator_know_the_same_before_long() {
    let entry = Entry::start(&[]).await;
    let service = Service::start().await;
    let federation = entry.ready["federation"].as_str().unwrap().parse().unwrap();
    // Somebody whom only the coordinator has met.
    let far = Says::worker(3, &["far"]);
    let mut registry = Registry::new(federation, Limits::PRODUCTION);
    let signed = Signed::open(far.record(federation), federation, &Limits::PRODUCTION).unwrap();
    registry.insert(Time::ORIGIN, signed, Source::Direct(None)).unwrap();
    let replica = Replica(Arc::new(Mutex::new(registry)));
    let near = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    let says = Says { roles: Roles::Coordinator, registry: Some(replica.clone()), ..Says::worker(2, &[]) };
    let _coordinator = Node::join(&entry, service.address, says).await;
    until("both know the same", async || {
        let digest = replica.0.lock().unwrap().digest().to_string();
        (entry.get("/mesh/registry").await.json()["digest"] == digest).then_some(())
    })
    .await;
    assert!(replica.0.lock().unwrap().node(&near.id()).is_some(), "the coordinator learned of the worker");
    let registry = entry.get("/mesh/registry").await.json();
    let of_far = |worker: &&serde_json::Value| worker["node_id"] == far.key().id().to_string();
    let worker = registry["workers"].as_array().unwrap().iter().find(of_far).unwrap();
    assert_eq!(worker["state"], "away");
    let answer = entry.get("/service/far/").await;
    answer.is_problem(503, "no-worker");
    assert!(answer.text().contains("1 without a tunnel to this entry"), "{answer:?}");
}
