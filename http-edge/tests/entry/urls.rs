//! Agents that are asked at URLs of their own: that they are, and above all that nobody else is.

use hedgerow_proto::record::GuestStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, Sponsor};
use crate::common::{Answer, Entry, in_time, say, until};
use crate::node::{Node, Says, Service};

/// What a person is told of a worker, as soon as it holds this.
async fn told(entry: &Entry, worker: &str, wanted: &str) -> Answer {
    let target = format!("/worker/{worker}/web/");
    until(&format!("{worker} is known: {wanted}"), async || {
        let answer = entry.get(&target).await;
        answer.text().contains(wanted).then_some(answer)
    })
    .await
}

/// Its answer, as soon as it is routable.
async fn answers(entry: &Entry, target: &str) -> Answer {
    until(&format!("{target} is answered"), async || {
        let answer = entry.get(target).await;
        (answer.status != 503).then_some(answer)
    })
    .await
}

#[tokio::test]
async fn an_agent_is_asked_at_its_url_by_the_services_name_and_by_its_own() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let (agent, under) = (Agent::start().await, Agent::start().await);
    let based = format!("{}/base/", under.url());
    let guests = [("agent-7", &*agent.url(), &["web", "x"][..]), ("agent-8", &*based, &["under"][..])];
    let _sponsor = Sponsor::join(&entry, 2, &guests).await;
    for (target, asked, by, host) in [
        ("/service/web/a%2Fb?c=%20", "GET /a%2Fb?c=%20 HTTP/1.1", "agent-7", agent.address),
        ("/worker/agent-7/x/y", "GET /y HTTP/1.1", "agent-7", agent.address),
        ("/service/under/y?z", "GET /base/y?z HTTP/1.1", "agent-8", under.address),
    ] {
        let answer = answers(&entry, target).await;
        assert_eq!((answer.status, answer.header("x-hedgerow-served-by")), (200, Some(by)), "{answer:?}");
        assert!(answer.text().starts_with(asked), "{answer:?}");
        assert!(answer.text().contains(&format!("host: {host}\r\n")), "{answer:?}");
    }
    let registry = entry.get("/mesh/registry").await;
    assert_eq!(registry.json()["services"]["web"], serde_json::json!({"offers": 1, "routable": 1}));
    let detail = told(&entry, "agent-8", "that agent offers under").await;
    let welcome = entry.get("/").await;
    for page in [&registry, &detail, &welcome] {
        assert!(!page.text().contains(&agent.address.port().to_string()), "{page:?}");
        assert!(!page.text().contains(&under.address.port().to_string()), "{page:?}");
    }
    let why = entry.admin("/mesh/why?service=web").await.json();
    assert_eq!(why["candidates"][0]["served_by"], "agent-7");
    let metrics = entry.admin("/metrics").await.text();
    assert!(metrics.contains("hedgerow_entry_guests{state=\"routable\"} 2"), "{metrics}");
    let hits = agent.hits();
    for _ in 0..5 {
        assert_eq!(entry.get("/worker/agent-7/web/").await.status, 200);
    }
    assert!(agent.hits() <= hits + 1, "connections are kept");
}

#[tokio::test]
async fn a_node_and_an_agent_share_a_name_and_a_node_is_never_hidden() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let (agent, service) = (Agent::start().await, Service::start().await);
    let node = Node::join(&entry, service.address, Says::worker(1, &["web"])).await;
    let id = node.id().to_string();
    let url = agent.url();
    let _sponsor = Sponsor::join(&entry, 2, &[("agent", &url, &["web"]), (&id, &url, &["web"])]).await;
    assert_eq!(answers(&entry, "/worker/agent/web/").await.status, 200);
    let mut seen = [false; 2];
    until("both answer for the name", async || {
        let answer = entry.get("/service/web/").await;
        assert_eq!(answer.status, 200);
        match answer.header("x-hedgerow-served-by") {
            Some("agent") => seen[1] = true,
            other => {
                assert_eq!(other, Some(&*id));
                seen[0] = true;
            }
        }
        (seen == [true; 2]).then_some(())
    })
    .await;
    for _ in 0..10 {
        let answer = entry.get(&format!("/worker/{id}/web/")).await;
        assert!(answer.text().contains(&format!("host: {}\r\n", service.address)), "the node itself: {answer:?}");
    }
}

#[tokio::test]
async fn nobody_has_the_entry_knock_at_its_own_door() {
    let canary = Agent::start().await;
    let port = canary.address.port();
    let [localhost, v4, v6, http, mapped, metadata] = [
        format!("https://localhost:{port}"),
        format!("https://127.0.0.1:{port}"),
        format!("https://[::1]:{port}"),
        format!("http://localhost:{port}"),
        format!("https://[::ffff:127.0.0.1]:{port}"),
        "https://169.254.169.254".to_owned(),
    ];
    // The name is allowed, and leads home: as after a rebinding.
    let entry = Entry::start(&["--url-suffix", "localhost", "--url-suffix", ".trycloudflare.com"]).await;
    let web: &[&str] = &["web"];
    let guests = [
        ("localhost", &*localhost, web),
        ("v4", &v4, web),
        ("v6", &v6, web),
        ("http", &http, web),
        ("mapped", &mapped, web),
        ("metadata", &metadata, web),
        ("nonsense", "http://:8000", web),
        ("nothing", "", web),
    ];
    let _sponsor = Sponsor::join(&entry, 2, &guests).await;
    for (worker, why) in [
        ("localhost", "resolves to an address that is not public"),
        ("v4", "under none of the suffixes"),
        ("v6", "under none of the suffixes"),
        ("http", "is not https"),
        ("mapped", "under none of the suffixes"),
        ("metadata", "under none of the suffixes"),
        ("nonsense", "cannot be read as one"),
        ("nothing", "it has no URL"),
    ] {
        let answer = told(&entry, worker, why).await;
        answer.is_problem(503, "no-worker");
        assert!(!answer.text().contains(&port.to_string()), "{answer:?}");
    }
    let answer = entry.get("/service/web/").await;
    answer.is_problem(503, "no-worker");
    assert!(answer.text().contains("known to 8 nodes here") && answer.text().contains("not routable"), "{answer:?}");
    assert_eq!(canary.hits(), 0);
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_not_followed() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let canary = Agent::start().await;
    let location = format!("http://{}/", canary.address);
    let redirect = format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let agent = Agent::answering({
        let redirect = redirect.clone();
        move |head| {
            let well = head.starts_with("GET /health ");
            if well { "HTTP/1.1 204 No Content\r\n\r\n".into() } else { redirect.clone() }
        }
    })
    .await;
    let always = Agent::answering(move |_| redirect.clone()).await;
    let guests = [("agent", &*agent.url(), &["web"][..]), ("always", &*always.url(), &["web"][..])];
    let _sponsor = Sponsor::join(&entry, 2, &guests).await;
    let answer = answers(&entry, "/worker/agent/web/").await;
    assert_eq!((answer.status, answer.header("location")), (302, Some(&*location)));
    // Nor by the probe, for which it is no success.
    told(&entry, "always", "answered with status 302").await;
    assert_eq!(canary.hits(), 0);
}

#[tokio::test]
async fn an_agent_that_dies_is_known_to_be_dead_and_comes_back() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let agent = Agent::start().await;
    let (url, address) = (agent.url(), agent.address);
    let _sponsor = Sponsor::join(&entry, 2, &[("agent", &url, &["web"])]).await;
    assert_eq!(answers(&entry, "/service/web/").await.status, 200);
    agent.stop().await;
    // On a connection of its own, since it may not run twice: so it is certain that it has not run.
    let post = b"POST /service/web/ HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = Answer::parse(&say(entry.http, post).await);
    answer.is_problem(502, "worker-failed");
    assert_eq!(answer.json()["outcome"], "not-run");
    // The request that failed has the probe look at once.
    told(&entry, "agent", "it takes no connection").await.is_problem(503, "no-worker");
    let answer = entry.get("/service/web/").await;
    assert!(answer.text().contains("1 registered and not routable"), "{answer:?}");
    let _agent = Agent::at(address).await;
    assert_eq!(answers(&entry, "/service/web/").await.status, 200);
}

#[tokio::test]
async fn whose_certificate_nobody_trusts_is_not_asked() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let agent = Agent::secured(tls).await;
    let url = format!("https://localhost:{}", agent.address.port());
    let _sponsor = Sponsor::join(&entry, 2, &[("agent", &url, &["web"])]).await;
    told(&entry, "agent", "no certificate that the world trusts").await.is_problem(503, "no-worker");
    assert!(agent.hits() > 0);
}

#[tokio::test]
async fn what_runs_at_an_agent_that_has_gone_ends_with_its_route() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let agent = Agent::start().await;
    let url = agent.url();
    let mut sponsor = Sponsor::join(&entry, 2, &[("agent", &url, &["web"])]).await;
    assert_eq!(answers(&entry, "/service/web/").await.status, 200);
    let mut stream = TcpStream::connect(entry.http).await.unwrap();
    let ask = b"POST /service/web/hold HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    in_time("the request is at the agent", agent.holding.notified()).await;
    sponsor.say("agent", &url, &["web"], GuestStatus::Gone);
    let mut all = Vec::new();
    in_time("the request ends", stream.read_to_end(&mut all)).await.unwrap();
    let answer = Answer::parse(&all);
    answer.is_problem(502, "worker-failed");
    assert_eq!(answer.json()["outcome"], "unknown");
    told(&entry, "agent", "nobody of that id is known here").await;
    // And one that says that it is not well gets no requests.
    sponsor.say("agent", &url, &["web"], GuestStatus::Degraded);
    told(&entry, "agent", "it is not well").await.is_problem(503, "no-worker");
    sponsor.say("agent", &url, &["web"], GuestStatus::Healthy);
    assert_eq!(answers(&entry, "/service/web/").await.status, 200);
}

#[tokio::test]
async fn what_an_agent_says_passes_whole_and_so_does_an_upgraded_connection() {
    const BYTES: usize = 8 * 1024 * 1024;
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let large = Agent::answering(|head| {
        let length = if head.starts_with("GET /health ") { 0 } else { BYTES };
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length))
    })
    .await;
    let service = Service::start().await;
    let echo = format!("http://{}", service.address);
    let guests = [("large", &*large.url(), &["large"][..]), ("echo", &*echo, &["echo"][..])];
    let _sponsor = Sponsor::join(&entry, 2, &guests).await;
    let answer = answers(&entry, "/service/large/").await;
    assert_eq!((answer.status, answer.body.len()), (200, BYTES));

    assert_eq!(answers(&entry, "/service/echo/").await.status, 200);
    let mut stream = TcpStream::connect(entry.http).await.unwrap();
    let ask = b"GET /service/echo/ HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(in_time("the switch", stream.read_buf(&mut head)).await.unwrap(), 0, "{head:?}");
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    in_time("the echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test]
async fn a_route_outlives_a_change_of_the_coordinator_that_speaks_for_its_agent() {
    let entry = Entry::start(&["--allow-private-urls"]).await;
    let service = Service::start().await;
    let url = format!("http://{}", service.address);
    let agent = ("agent", &*url, &["web"][..]);
    let one = Sponsor::join(&entry, 2, &[agent, ("mark-2", "", &["web"])]).await;
    let other = Sponsor::join(&entry, 3, &[agent, ("mark-3", "", &["web"])]).await;
    // The one with the smaller id counts, as long as it speaks.
    let mut both = [(one, "mark-2"), (other, "mark-3")];
    both.sort_by_key(|(sponsor, _)| sponsor.id());
    let [(mut first, mark), (_second, other_mark)] = both;
    told(&entry, other_mark, "it has no URL").await;
    assert_eq!(answers(&entry, "/service/web/").await.status, 200);
    let mut stream = TcpStream::connect(entry.http).await.unwrap();
    let ask = b"POST /service/web/hold HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    in_time("the request is at the agent", service.holding.notified()).await;
    first.say("agent", &url, &["web"], GuestStatus::Gone);
    first.say(mark, "", &["web"], GuestStatus::Gone);
    told(&entry, mark, "nobody of that id").await;
    assert_eq!(entry.get("/service/web/").await.status, 200, "it is as routable as before");
    service.release.notify_one();
    let mut all = Vec::new();
    in_time("the answer", stream.read_to_end(&mut all)).await.unwrap();
    assert_eq!(Answer::parse(&all).status, 200);
}
