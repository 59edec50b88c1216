//! Nodes that refuse, break, fall silent and die: what goes elsewhere, what does not, and what the client is told.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hedgerow_proto::frame::Refusal;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{AnyBody, Front, Node, Opened, in_time, on_a_shard, over_both, text, until, with_attempts};

async fn hello(_: Request<Incoming>) -> Response<AnyBody> {
    Response::new(text("hello"))
}

async fn problem(answer: Response<Incoming>) -> serde_json::Value {
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// A service that reads a whole small request, counts it as run, says `says`, and dies.
fn dies(runs: &Arc<AtomicUsize>, says: &'static str) -> impl Fn() -> Opened + Send + Sync + 'static {
    let runs = runs.clone();
    move || {
        let (mine, mut theirs) = tokio::io::duplex(16 * 1024);
        let runs = runs.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                head.push(theirs.read_u8().await.unwrap());
            }
            runs.fetch_add(1, Ordering::SeqCst);
            theirs.write_all(says.as_bytes()).await.unwrap();
        });
        Opened::Fresh(mine)
    }
}

#[test]
fn what_one_node_refuses_runs_on_another_whatever_the_method() {
    over_both(async |over| {
        let refusing = Node::by_hand_over(over, 1, 8, || Opened::Refused(Refusal::Full)).await;
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let willing = Node::with_over(over, 2, 8, move |request: Request<Incoming>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move { Response::new(text(request.into_body().collect().await.unwrap().to_bytes())) }
        })
        .await;
        let front = Front::before(&[&refusing, &willing]);
        for round in 0..20 {
            let answer = front.post("/service/web", format!("round {round}")).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["x-hedgerow-served-by"], willing.id.to_string());
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), format!("round {round}"));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 20);
        assert!(front.stats.snapshot().refusals[0].1 > 0, "the other was asked too");
    });
}

#[test]
fn a_post_whose_service_dies_after_accept_is_502_unknown_and_never_runs_twice() {
    over_both(async |over| {
        let runs = Arc::new(AtomicUsize::new(0));
        let (one, two) = (
            Node::by_hand_over(over, 1, 8, dies(&runs, "")).await,
            Node::by_hand_over(over, 2, 8, dies(&runs, "")).await,
        );
        let front = Front::before(&[&one, &two]);
        for round in 1..=10 {
            let answer = front.post("/service/web", "").await;
            assert_eq!(answer.status(), 502);
            let problem = problem(answer).await;
            assert_eq!(
                (problem["outcome"].as_str(), problem["code"].as_str()),
                (Some("unknown"), Some("worker-failed"))
            );
            assert_eq!(problem["attempts"].as_array().map(Vec::len), Some(1));
            assert_eq!(runs.load(Ordering::SeqCst), round);
        }
    });
}

#[test]
fn a_get_whose_service_dies_is_answered_by_another_also_in_the_middle_of_a_small_answer() {
    over_both(async |over| {
        for says in ["", "HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"] {
            let runs = Arc::new(AtomicUsize::new(0));
            let dying = Node::by_hand_over(over, 1, 8, dies(&runs, says)).await;
            let willing = Node::with_over(over, 2, 8, hello).await;
            let front = Front::before(&[&dying, &willing]);
            for _ in 0..20 {
                let answer = front.get("/service/web").await;
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
            }
            let ran = runs.load(Ordering::SeqCst);
            assert!((1..=5).contains(&ran), "asked, and then avoided: {ran}");
            assert_eq!(front.stats.snapshot().retries, ran as u64);
        }
    });
}

#[test]
fn an_answer_that_breaks_after_its_beginning_was_passed_on_is_broken_off_and_not_begun_again() {
    over_both(async |over| {
        let runs = Arc::new(AtomicUsize::new(0));
        let says = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let (one, two) = (
            Node::by_hand_over(over, 1, 8, dies(&runs, says)).await,
            Node::by_hand_over(over, 2, 8, dies(&runs, says)).await,
        );
        let front = Front::before(&[&one, &two]);
        let answer = front.get("/service/web").await;
        assert_eq!(answer.status(), 200);
        assert!(in_time("the end", answer.into_body().collect()).await.is_err());
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(front.stats.snapshot().broken_answers, 1);
    });
}

#[test]
fn a_kept_connection_that_has_closed_is_replaced_by_a_fresh_one_on_the_same_node() {
    over_both(async |over| {
        let first = std::sync::atomic::AtomicBool::new(true);
        let node = Node::by_hand_over(over, 1, 8, move || {
            let (mine, mut theirs) = tokio::io::duplex(1024);
            if first.swap(false, Ordering::SeqCst) {
                return Opened::Kept(Box::new(mine));
            }
            tokio::spawn(async move {
                let mut byte = [0; 1024];
                let _ = theirs.read(&mut byte).await;
                let _ = theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfresh").await;
                // Open until the other end goes.
                let _ = theirs.read(&mut byte).await;
            });
            Opened::Fresh(mine)
        })
        .await;
        let front = Front::before(&[&node]);
        let answer = front.get("/service/web").await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["x-hedgerow-attempts"]), (200, &"2".parse().unwrap()));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "fresh");
        assert_eq!(front.stats.snapshot().stale_resends, 1);
    });
}

#[test]
fn a_service_that_takes_too_long_is_given_up_and_its_work_cancelled() {
    on_a_shard(async {
        let node = Node::with(1, 8, |_| std::future::pending()).await;
        let config = with_attempts(|limits| limits.answer_timeout = Duration::from_millis(30));
        let front = Front::with(config, &[&node]);
        for answer in [front.get("/service/web").await, front.post("/service/web", "x").await] {
            assert_eq!(answer.status(), 504);
            assert_eq!(problem(answer).await["outcome"].as_str(), Some("unknown"));
        }
        until("the slots", || node.services.taken.load(Ordering::SeqCst) == 0).await;
    });
}

#[test]
fn a_get_does_not_wait_for_a_node_that_does_not_accept() {
    on_a_shard(async {
        let silent = Node::by_hand(1, 8, || Opened::Silence).await;
        let willing = Node::with(2, 8, hello).await;
        let front = Front::before(&[&silent, &willing]);
        let mut hedged = 0;
        while hedged == 0 {
            let began = Instant::now();
            let answer = front.get("/service/web").await;
            assert_eq!(answer.status(), 200);
            hedged = front.stats.snapshot().hedges;
            assert!(hedged == 0 || began.elapsed() >= Duration::from_millis(300));
        }
        assert_eq!(front.stats.snapshot().in_flight, 0);
    });
}

#[test]
fn an_idempotent_request_leaves_a_node_that_is_suspected_and_another_waits_for_it() {
    on_a_shard(async {
        for method in ["GET", "POST"] {
            let (asked, released) = (Rc::new(Cell::new(0)), Rc::new(tokio::sync::Notify::new()));
            let (count, hold) = (asked.clone(), released.clone());
            // Whoever is asked first hangs.
            let hangs = move |_| {
                count.set(count.get() + 1);
                let (first, hold) = (count.get() == 1, hold.clone());
                async move {
                    if first {
                        hold.notified().await;
                    }
                    Response::new(text(if first { "first" } else { "second" }))
                }
            };
            let (one, two) = (Node::with(1, 64, hangs.clone()).await, Node::with(2, 64, hangs).await);
            let front = Front::before(&[&one, &two]);
            let request = Request::builder().method(method).uri("/service/web").header("host", "x");
            let answer = front.send(request.body(text("")).unwrap());
            let suspicion = async {
                until("the first", || asked.get() == 1).await;
                let first = if one.services.asked.load(Ordering::SeqCst) == 1 { &one } else { &two };
                // What is heard from it takes the suspicion away again, so it is raised for as long as it takes.
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(700) && asked.get() == 1 {
                    first.tunnel.suspect();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                released.notify_one();
            };
            let (answer, ()) = tokio::join!(answer, suspicion);
            let (by, attempts) = if method == "GET" { ("second", "2") } else { ("first", "1") };
            assert_eq!(answer.headers()["x-hedgerow-attempts"], attempts);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), by);
        }
    });
}

#[test]
fn a_request_waits_for_a_full_node_also_when_another_has_broken() {
    on_a_shard(async {
        let runs = Arc::new(AtomicUsize::new(0));
        let dying = Node::by_hand(1, 8, dies(&runs, "")).await;
        let full_for = AtomicUsize::new(5);
        let (connect, mut connections) = tokio::sync::mpsc::unbounded_channel();
        let filling = Node::by_hand(2, 8, move || {
            if full_for.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                return Opened::Refused(Refusal::Full);
            }
            let (mine, theirs) = tokio::io::duplex(1024);
            connect.send(theirs).unwrap();
            Opened::Fresh(mine)
        })
        .await;
        let front = Front::before(&[&dying, &filling]);
        let service = async {
            let mut io = connections.recv().await.unwrap();
            let _ = io.read(&mut [0; 1024]).await;
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            io
        };
        let (answer, _open) = tokio::join!(front.get("/service/web"), service);
        assert_eq!(answer.status(), 200);
        assert_eq!(front.stats.snapshot().refusals[0], ("full", 5));
    });
}

#[test]
fn requests_in_flight_survive_the_death_of_their_node() {
    over_both(async |over| {
        let hanging = Node::with_over(over, 1, 64, |_| std::future::pending()).await;
        let willing = Node::with_over(over, 2, 64, hello).await;
        let front = Front::before(&[&hanging, &willing]);
        let requests = futures_util::future::join_all((0..32).map(|_| front.get("/service/web")));
        let killer = async {
            until("requests", || hanging.services.taken.load(Ordering::SeqCst) > 4).await;
            hanging.dies();
        };
        let (answers, ()) = tokio::join!(requests, killer);
        for answer in answers {
            assert_eq!(answer.status(), 200);
        }
        let answer = front.post("/service/web", "x").await;
        assert_eq!(answer.headers()["x-hedgerow-served-by"], willing.id.to_string());
    });
}

#[test]
fn a_service_that_closes_behind_its_answer_holds_nothing() {
    over_both(async |over| {
        let runs = Arc::new(AtomicUsize::new(0));
        for says in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ] {
            let node = Node::by_hand_over(over, 1, 2, dies(&runs, says)).await;
            let front = Front::before(&[&node]);
            for _ in 0..20 {
                let answer = front.get("/service/web").await;
                // Late, so that the service has closed when the end is read.
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
                until("the slot", || node.services.taken.load(Ordering::SeqCst) == 0).await;
                until("the count", || front.stats.snapshot().in_flight == 0).await;
            }
        }
    });
}

#[test]
fn two_thousand_gets_survive_the_deaths_of_nodes() {
    over_both(async |over| {
        let (mut nodes, done) = (Vec::new(), Rc::new(Cell::new(0)));
        for seed in 1..=4 {
            let turns = Rc::new(Cell::new(0_u32));
            let handler = move |_| {
                turns.set(turns.get() + 1);
                let long = turns.get().is_multiple_of(7);
                async move {
                    // Some are under way when the node dies, and some of those have begun to answer.
                    for _ in 0..if long { 50 } else { 1 } {
                        tokio::task::yield_now().await;
                    }
                    Response::new(text(vec![b'x'; if long { 60_000 } else { 1000 }]))
                }
            };
            nodes.push(Node::with_over(over, seed, 64, handler).await);
        }
        let front = Front::before(&nodes.iter().collect::<Vec<_>>());
        let client = async || {
            for _ in 0..125 {
                let answer = front.get("/service/web").await;
                assert_eq!(answer.status(), 200);
                let length = answer.into_body().collect().await.unwrap().to_bytes().len();
                assert!(length == 1000 || length == 60_000);
                done.set(done.get() + 1);
            }
        };
        let killer = async {
            for (index, node) in nodes.iter().take(3).enumerate() {
                until("progress", || done.get() > 400 * (index + 1) && node.services.taken.load(Ordering::SeqCst) > 0)
                    .await;
                node.dies();
            }
        };
        tokio::join!(futures_util::future::join_all((0..16).map(|_| client())), killer);
        assert_eq!((done.get(), front.stats.snapshot().answered), (2000, 2000));
    });
}

#[test]
fn a_refused_post_with_nowhere_to_go_has_not_run_and_the_client_is_told_so() {
    on_a_shard(async {
        let node = Node::by_hand(1, 8, || Opened::Refused(Refusal::ServiceDown)).await;
        let front = Front::before(&[&node]);
        let answer = front.post("/service/web", "x").await;
        assert_eq!(answer.status(), 502);
        let told = problem(answer).await;
        assert_eq!(
            (told["outcome"].as_str(), told["attempts"][0]["reason"].as_str()),
            (Some("not-run"), Some("service-down"))
        );

        let leaving = Node::by_hand(2, 8, || Opened::Refused(Refusal::Draining)).await;
        let answer = Front::before(&[&leaving]).get("/service/web").await;
        assert_eq!((answer.status().as_u16(), problem(answer).await["code"].as_str()), (503, Some("no-worker")));
    });
}
