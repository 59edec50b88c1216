//! Requests that find all nodes full, and wait.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hedgerow_http::{ForwardConfig, now};
use hedgerow_proto::frame::Refusal;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::world::{AnyBody, Front, Node, Opened, config, in_time, on_a_shard, text};

#[test]
fn requests_that_wait_for_a_full_node_wait_their_time_and_do_not_storm_it() {
    on_a_shard(async {
        const WAITING: usize = 16;
        let queue_timeout = Duration::from_millis(300);
        let node = Node::by_hand(1, 64, || Opened::Refused(Refusal::Full)).await;
        let front = Front::with(ForwardConfig { queue_timeout, ..config() }, &[&node]);
        let began = now();
        let answers = futures_util::future::join_all((0..WAITING).map(|_| front.post("/service/web", "x"))).await;
        assert!(answers.iter().all(|answer| answer.status() == 503));
        assert!(now() - began >= queue_timeout, "given up after {:?}", now() - began);
        // The pauses between two questions grow from 1 ms to 100 ms.
        let asked = node.services.asked.load(Ordering::SeqCst) / WAITING;
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
