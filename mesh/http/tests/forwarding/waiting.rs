//! Requests that find all nodes full, and wait.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use hedgerow_http::now;
use hedgerow_proto::frame::{Refusal, WhenFull};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;

use crate::world::{AnyBody, Front, Node, Opened, in_time, on_a_shard, text, until, with_attempts};

#[test]
fn requests_that_wait_for_a_full_node_wait_their_time_and_do_not_storm_it() {
    on_a_shard(async {
        const WAITING: usize = 16;
        tokio::time::pause();
        let queue_timeout = Duration::from_millis(300);
        let node = Node::by_hand(1, 64, || Opened::Refused(Refusal::Full)).await;
        let front = Front::with(with_attempts(|limits| limits.queue_timeout = queue_timeout), &[&node]);
        let began = now();
        let answers = futures_util::future::join_all((0..WAITING).map(|_| front.post("/service/web", "x"))).await;
        assert!(answers.iter().all(|answer| answer.status() == 503));
        assert!(now() - began >= queue_timeout, "given up after {:?}", now() - began);
        // The pauses between two questions grow from 1 ms to 100 ms.
        let asked = node.services.asked.load(SeqCst) / WAITING;
        assert!(asked < 32, "each asked {asked} times");
    });
}

/// Answers when all others have had their turn a few times.
async fn unhurried(_: Request<Incoming>) -> Response<AnyBody> {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
    Response::new(text("hello"))
}

/// A client that asks for one thing after another until `enough`; how many requests were answered.
async fn asks(front: &Front, enough: impl Fn(usize) -> bool) -> usize {
    let (mut client, mut answered) = (front.client().await, 0);
    while !enough(answered) {
        let request = Request::get("/service/web").header("host", "fed.example").body(text("")).unwrap();
        let answer = in_time("an answer", client.send_request(request)).await.unwrap();
        answered += usize::from(answer.status() == 200);
        answer.into_body().collect().await.unwrap();
    }
    answered
}

#[test]
fn no_thread_of_an_entry_keeps_a_service_from_the_clients_of_another() {
    on_a_shard(async {
        const CLIENTS: usize = 8;
        const ASKED: usize = 50;
        let node = Node::with(1, 1, unhurried).await;
        // Threads of one process have a connection pool each, and share what they know of the nodes.
        let candidate = node.candidate();
        let (crowded, other) = (Front::of(vec![candidate.clone()]), Front::of(vec![candidate]));
        let done = Cell::new(false);
        let crowd = futures_util::future::join_all((0..CLIENTS).map(|_| asks(&crowded, |_| done.get())));
        let one = async {
            asks(&other, |answered| answered == ASKED).await;
            done.set(true);
        };
        let (crowd, ()) = tokio::join!(crowd, one);
        let crowd: usize = crowd.into_iter().sum();
        assert!(crowd < 2 * CLIENTS * ASKED, "while the other was answered {ASKED} times, these were {crowd} times");
    });
}

#[test]
fn a_request_asks_everybody_before_it_stands_in_line_at_one() {
    on_a_shard(async {
        tokio::time::pause();
        let full = || Opened::Refused(Refusal::Full);
        let (one, two) = (Node::by_hand(1, 8, full).await, Node::by_hand(2, 8, full).await);
        let queue_timeout = Duration::from_millis(50);
        let front = Front::with(with_attempts(|limits| limits.queue_timeout = queue_timeout), &[&one, &two]);
        assert_eq!(front.post("/service/web", "x").await.status(), 503);
        let asked = [&one, &two].map(|node| node.services.when_full.lock().unwrap().clone());
        assert_eq!(asked.each_ref().map(|asked| asked[0]), [WhenFull::Refuse; 2]);
        let rounds = asked.each_ref().map(Vec::len).into_iter().max().unwrap();
        let in_line = asked.iter().flatten().filter(|when_full| **when_full == WhenFull::Wait).count();
        assert!(in_line > 0 && in_line <= rounds, "at one in each round: {asked:?}");
    });
}

#[test]
fn who_stands_in_line_is_served_there_and_does_not_take_the_node_for_silent() {
    on_a_shard(async {
        tokio::time::pause();
        let free = Arc::new(Semaphore::new(0));
        let handler = {
            let free = free.clone();
            move |request: Request<Incoming>| {
                let free = free.clone();
                async move {
                    if request.uri().path() == "/hold" {
                        free.acquire().await.unwrap().forget();
                    }
                    Response::new(text("hello"))
                }
            }
        };
        let nodes = [Node::with(1, 1, handler.clone()).await, Node::with(2, 1, handler).await];
        let (one, two) = (&nodes[0], &nodes[1]);
        // Less than it stands in line.
        let impatient = with_attempts(|limits| limits.accept_patience = WhenFull::IN_LINE_MAX / 4);
        let (first, second) = (Front::before(&[one, two]), Front::with(impatient, &[one, two]));
        let hold = async || first.get("/service/web/hold").await.status();
        let ends = async {
            let asked = |node: &Node| node.services.when_full.lock().unwrap().contains(&WhenFull::Wait);
            until("it stands in line", || nodes.iter().any(asked)).await;
            tokio::time::sleep(WhenFull::IN_LINE_MAX / 2).await;
            free.add_permits(2);
        };
        let waits = async {
            until("both are full", || nodes.iter().all(|node| node.services.taken.load(SeqCst) == 1)).await;
            tokio::join!(second.get("/service/web"), ends).0.status()
        };
        assert_eq!(tokio::join!(hold(), hold(), waits), (StatusCode::OK, StatusCode::OK, StatusCode::OK));
        assert_eq!(second.stats.snapshot().hedges, 0);
    });
}
