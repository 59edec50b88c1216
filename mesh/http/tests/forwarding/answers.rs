//! What comes back: methods, framing, headers, streams, upgrades, both versions of HTTP.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::world::{AnyBody, Front, Node, in_time, on_a_shard, over_both, text, until};

/// Says what it was asked.
async fn mirror(request: Request<Incoming>) -> Response<AnyBody> {
    let (parts, body) = request.into_parts();
    let got = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| parts.headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    let told = format!(
        "{} {} host={} prefix={} for={} id={} length={} te={} body={}",
        parts.method,
        parts.uri,
        header("host"),
        header("x-forwarded-prefix"),
        header("x-forwarded-for"),
        header("x-request-id").len(),
        header("content-length"),
        header("transfer-encoding"),
        got.len(),
    );
    Response::new(text(told))
}

async fn body(answer: Response<Incoming>) -> String {
    let bytes = in_time("the body", answer.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_service_sees_its_own_authority_and_the_rest_of_the_target() {
    on_a_shard(async {
        let node = Node::with(1, 8, mirror).await;
        let front = Front::before(&[&node]);
        let answer = front.get("/service/web/a%2Fb/../c?x=%20&y=%C3%A9").await;
        assert_eq!(answer.headers()["x-hedgerow-served-by"], node.id.to_string());
        assert_eq!(answer.headers()["x-hedgerow-attempts"], "1");
        assert_eq!(answer.headers()["access-control-allow-origin"], "*");
        assert!(answer.headers().contains_key("x-request-id"));
        let told = "GET /a%2Fb/../c?x=%20&y=%C3%A9 host=127.0.0.1:8000 prefix=/service/web for=127.0.0.1 id=32 length=- te=- body=0";
        assert_eq!(body(answer).await, told);
        let answer = front.get(&format!("/service/~{}/web", node.id)).await;
        assert!(body(answer).await.starts_with("GET / host"));
    });
}

#[test]
fn a_candidate_that_is_no_node_is_asked_where_it_is_and_called_by_its_name() {
    on_a_shard(async {
        let node = Node::with(1, 8, mirror).await;
        let front = Front::of(vec![
            node.candidate()
                .named(HeaderValue::from_static("agent-7"))
                .at(HeaderValue::from_static("agent.example"), "/base"),
        ]);
        let answer = front.get("/service/web/x?y=1").await;
        assert_eq!(answer.headers()["x-hedgerow-served-by"], "agent-7");
        let told = body(answer).await;
        assert!(told.starts_with("GET /base/x?y=1 host=agent.example prefix=/service/web "), "{told}");
    });
}

#[test]
fn bodies_keep_their_framing() {
    over_both(async |over| {
        let node = Node::with_over(over, 1, 8, mirror).await;
        let front = Front::before(&[&node]);
        assert!(body(front.post("/service/web", "12345").await).await.contains("length=5 te=- body=5"));
        assert!(body(front.post("/service/web", "").await).await.contains("length=0 te=- body=0"));
        for method in ["POST", "GET"] {
            let frames = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"abc")))]);
            let chunked = Request::builder()
                .method(method)
                .uri("/service/web")
                .header("host", "x")
                .header("transfer-encoding", "chunked")
                .body(BodyExt::boxed_unsync(StreamBody::new(frames)))
                .unwrap();
            assert!(body(front.send(chunked).await).await.contains("length=- te=chunked body=3"), "{method}");
        }
    });
}

#[test]
fn answers_without_a_body_keep_what_they_say_of_one() {
    over_both(async |over| {
        let node = Node::with_over(over, 1, 8, |request: Request<Incoming>| async move {
            let status = request.uri().path().trim_start_matches('/').parse().unwrap();
            let mut answer = Response::new(text(if status == 200 { "12345" } else { "" }));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            if status == 304 {
                answer.headers_mut().insert("etag", "\"1\"".parse().unwrap());
            }
            answer
        })
        .await;
        let front = Front::before(&[&node]);
        let request = Request::head("/service/web/200").header("host", "x").body(text("")).unwrap();
        let answer = front.send(request).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["content-length"]), (200, &"5".parse().unwrap()));
        assert_eq!(body(answer).await, "");
        let answer = front.get("/service/web/304").await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["etag"]), (304, &"\"1\"".parse().unwrap()));
        for status in ["204", "404", "500"] {
            assert_eq!(front.get(&format!("/service/web/{status}")).await.status().as_str(), status);
        }
    });
}

#[test]
fn one_stream_carries_one_exchange_after_another() {
    over_both(async |over| {
        let node = Node::with_over(over, 1, 8, mirror).await;
        let front = Front::before(&[&node]);
        for _ in 0..20 {
            body(front.get("/service/web").await).await;
            body(front.post("/service/web", "abc").await).await;
            until("release", || node.services.taken.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
        }
        let stats = front.stats.snapshot();
        assert_eq!((stats.answered, stats.in_flight), (40, 0));
        assert!(stats.streams_opened <= 2, "{}", stats.streams_opened);
    });
}

#[test]
fn events_pass_one_by_one() {
    on_a_shard(async {
        let (events, source) = mpsc::unbounded_channel::<&'static str>();
        let source = Rc::new(Cell::new(Some(source)));
        let node = Node::with(1, 8, move |_| {
            let source = source.take().unwrap();
            async move {
                let stream = futures_util::stream::unfold(source, |mut source| async move {
                    source.recv().await.map(|event| (Ok(Frame::data(Bytes::from_static(event.as_bytes()))), source))
                });
                let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(stream.boxed())));
                answer.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
                answer
            }
        })
        .await;
        let front = Front::before(&[&node]);
        events.send("data: 0\n\n").unwrap();
        let mut answer = front.get("/service/web").await;
        for event in ["data: 0\n\n", "data: 1\n\n", "data: 2\n\n"] {
            let frame = in_time("an event", answer.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
            // The next is not said before this one has come.
            let next = if event.contains('0') { "data: 1\n\n" } else { "data: 2\n\n" };
            let _ = events.send(next);
        }
    });
}

#[test]
fn an_upgraded_connection_echoes_until_the_client_goes() {
    over_both(async |over| {
        let (ended, mut ends) = mpsc::unbounded_channel();
        let node = Node::with_over(over, 1, 8, move |mut request: Request<Incoming>| {
            let ended = ended.clone();
            async move {
                assert_eq!(request.headers()["upgrade"], "echo/1");
                assert_eq!(request.headers()["connection"], "upgrade");
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::task::spawn_local(async move {
                    let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
                    let mut buf = [0; 100];
                    while let Ok(got @ 1..) = io.read(&mut buf).await {
                        io.write_all(&buf[..got]).await.unwrap();
                    }
                    ended.send(()).unwrap();
                });
                Response::builder()
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "echo/1")
                    .body(text(""))
                    .unwrap()
            }
        })
        .await;
        let front = Front::before(&[&node]);
        let mut client = front.connect();
        let head = "GET /service/web HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo/1\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(in_time("the head", client.read_u8()).await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: echo/1"), "{answer}");
        for round in 0..10_u8 {
            client.write_all(&[round; 50]).await.unwrap();
            let mut back = [0; 50];
            in_time("the echo", client.read_exact(&mut back)).await.unwrap();
            assert_eq!(back, [round; 50]);
        }
        assert_eq!(front.stats.snapshot().in_flight, 1);
        drop(client);
        in_time("the service's end", ends.recv()).await.unwrap();
        until("release", || front.stats.snapshot().in_flight == 0).await;
        until("the slot", || node.services.taken.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    });
}

#[test]
fn http2_clients_are_served_by_http1_services() {
    on_a_shard(async {
        let node = Node::with(1, 8, mirror).await;
        let front = Front::before(&[&node]);
        let mut client = front.client_h2().await;
        for (method, sent, told) in
            [("GET", "", "length=- te=- body=0"), ("POST", "abcd", "body=4"), ("POST", "", "length=0")]
        {
            let request = Request::builder()
                .method(method)
                .uri("https://fed.example/service/web/p?q")
                .header("te", "trailers")
                .body(text(sent))
                .unwrap();
            let answer = in_time("an answer", client.send_request(request)).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(!answer.headers().contains_key("connection"));
            let told_us = body(answer).await;
            assert!(told_us.contains("/p?q host=127.0.0.1:8000") && told_us.contains(told), "{told_us}");
        }
    });
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    on_a_shard(async {
        let node = Node::with(1, 8, mirror).await;
        let front = Front::before(&[&node]);
        for (path, status, code) in [
            ("/service/../x", 400, "bad-service-name"),
            ("/service/%2f/x", 400, "bad-service-name"),
            ("/service/~zz/web", 400, "bad-node-id"),
            ("http://fed.example/service/web", 400, "absolute-form"),
            ("/service/other/x", 503, "no-worker"),
        ] {
            let answer = front.get(path).await;
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            assert_eq!(answer.headers().contains_key("retry-after"), status == 503);
            let problem: serde_json::Value = serde_json::from_str(&body(answer).await).unwrap();
            assert_eq!(problem["code"], code);
            assert!(problem["request_id"].as_str().is_some_and(|id| !id.is_empty()));
        }
        let answer = front.get("/service/other").await;
        assert!(body(answer).await.contains("offered now: web"));
    });
}
