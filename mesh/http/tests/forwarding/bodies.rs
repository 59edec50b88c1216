//! Bodies both ways: streamed, bounded, cancelled.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use hedgerow_http::ForwardConfig;
use hedgerow_proto::frame::Refusal;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::world::{AnyBody, Front, Node, Opened, config, in_time, on_a_shard, over_both, text, until, with_attempts};

const CHUNK: usize = 32 * 1024;

/// Chunks without end, each counted as it is taken.
fn endless(taken: Arc<AtomicU64>) -> AnyBody {
    let chunks = futures_util::stream::repeat_with(move || {
        taken.fetch_add(CHUNK as u64, Ordering::SeqCst);
        Ok(Frame::data(Bytes::from_static(&[7; CHUNK])))
    });
    BodyExt::boxed_unsync(StreamBody::new(chunks))
}

/// Tells when it is dropped: the service's work is over.
struct Ends(mpsc::UnboundedSender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

async fn sum(request: Request<Incoming>) -> Response<AnyBody> {
    let (mut body, mut length, mut sum) = (request.into_body(), 0_u64, 0_u64);
    while let Some(Ok(frame)) = body.frame().await {
        for byte in frame.into_data().unwrap() {
            length += 1;
            sum = sum.wrapping_mul(31).wrapping_add(u64::from(byte));
        }
    }
    Response::new(text(format!("{length} {sum}")))
}

fn upload(bytes: usize) -> (AnyBody, String) {
    let all: Vec<u8> = (0..bytes).map(|i| (i * i / 7) as u8).collect();
    let sum = all.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let told = format!("{bytes} {sum}");
    let chunks: Vec<_> = all.chunks(10_000).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    (BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter(chunks))), told)
}

#[test]
fn a_long_upload_arrives_whole_also_after_refusals() {
    over_both(async |over| {
        let full = |_| || Opened::Refused(Refusal::ServiceDown);
        let (one, two) = (Node::by_hand_over(over, 1, 8, full(1)).await, Node::by_hand_over(over, 2, 8, full(2)).await);
        let node = Node::with_over(over, 3, 8, sum).await;
        let front = Front::before(&[&one, &two, &node]);
        for bytes in [0, 1, 100_000, 5 << 20] {
            let (body, told) = upload(bytes);
            let answer = front.send(Request::post("/service/web").header("host", "x").body(body).unwrap()).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), told);
        }
    });
}

#[test]
fn no_more_is_taken_from_a_client_than_can_be_sent_again_until_a_node_accepts() {
    on_a_shard(async {
        let node = Node::by_hand(1, 8, || Opened::Silence).await;
        // What the pipes between client and front hold, and hyper's buffers, come on top.
        let (limit, pipes) = (64 << 10, 640 << 10);
        let front = Front::with(ForwardConfig { replay_bytes_max: limit, ..config() }, &[&node]);
        let taken = Arc::new(AtomicU64::new(0));
        let request = Request::post("/service/web").header("host", "x").body(endless(taken.clone())).unwrap();
        let answer = front.send(request).await;
        assert_eq!(answer.status(), 502, "after the time for ACCEPT");
        let taken = taken.load(Ordering::SeqCst) as usize;
        assert!((limit..limit + pipes).contains(&taken), "{taken}");
    });
}

#[test]
fn a_body_over_the_limit_is_413() {
    on_a_shard(async {
        let node = Node::with(1, 8, sum).await;
        let front = Front::with(ForwardConfig { body_bytes_max: Some(100_000), ..config() }, &[&node]);
        let known = Request::post("/service/web").header("host", "x").body(text(vec![0; 100_001])).unwrap();
        assert_eq!(front.send(known).await.status(), 413);
        let (unknown, _) = upload(200_000);
        let answer = front.send(Request::post("/service/web").header("host", "x").body(unknown).unwrap()).await;
        assert_eq!(answer.status(), 413);
        assert_eq!(front.post("/service/web", vec![0; 100_000]).await.status(), 200);
    });
}

#[test]
fn a_client_that_stops_sending_does_not_hold_a_slot_for_ever() {
    on_a_shard(async {
        let node = Node::with(1, 1, sum).await;
        let config = with_attempts(|limits| limits.body_idle_timeout = std::time::Duration::from_millis(30));
        let front = Front::with(config, &[&node]);
        let (send, chunks) = mpsc::unbounded_channel::<Bytes>();
        let chunks = futures_util::stream::unfold(chunks, |mut chunks| async move {
            chunks.recv().await.map(|chunk| (Ok(Frame::data(chunk)), chunks))
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(Box::pin(chunks)));
        let request = Request::post("/service/web").header("host", "x").body(body).unwrap();
        send.send(Bytes::from_static(b"begun")).unwrap();
        let answer = front.send(request).await;
        assert_eq!(answer.status(), 408);
        until("the slot", || node.services.taken.load(Ordering::SeqCst) == 0).await;
        drop(send);
    });
}

#[test]
fn a_client_that_hangs_up_cancels_the_work_at_once() {
    over_both(async |over| {
        let (ended, mut ends) = mpsc::unbounded_channel();
        let node = Node::with_over(over, 1, 8, move |request: Request<Incoming>| {
            let ends = Ends(ended.clone());
            async move {
                if request.uri().path() == "/head" {
                    std::future::pending::<()>().await;
                }
                let endless = endless(Arc::default()).map_frame(move |frame| {
                    let _held = &ends;
                    frame
                });
                Response::new(endless.boxed_unsync())
            }
        })
        .await;
        let front = Front::before(&[&node]);

        let mut waiting = front.connect();
        waiting.write_all(b"GET /service/web/head HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        until("the request", || node.services.taken.load(Ordering::SeqCst) == 1).await;
        drop(waiting);
        in_time("the end at the service", ends.recv()).await.unwrap();
        until("the slot", || node.services.taken.load(Ordering::SeqCst) == 0).await;

        let mut reading = front.get("/service/web/body").await.into_body();
        in_time("a chunk", reading.frame()).await.unwrap().unwrap();
        drop(reading);
        in_time("the end at the service", ends.recv()).await.unwrap();
        until("the slot", || node.services.taken.load(Ordering::SeqCst) == 0).await;
        until("the count", || front.stats.snapshot().cancelled == 2 && front.stats.snapshot().in_flight == 0).await;
    });
}

#[test]
fn a_slow_reader_holds_the_service_back() {
    over_both(async |over| {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = taken.clone();
        let node = Node::with_over(over, 1, 8, move |_| {
            let counted = counted.clone();
            async move { Response::new(endless(counted)) }
        })
        .await;
        let front = Front::before(&[&node]);
        let mut body = front.get("/service/web").await.into_body();
        let mut read = 0;
        for _ in 0..400 {
            read += in_time("a chunk", body.frame()).await.unwrap().unwrap().into_data().unwrap().len() as u64;
            // Everybody who could run ahead of the reader gets the time to.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            let ahead = taken.load(Ordering::SeqCst) - read;
            assert!(ahead < 3 << 20, "{ahead} bytes wait somewhere between service and client");
        }
    });
}

#[test]
fn an_answer_that_comes_before_the_end_of_the_request_ends_it() {
    over_both(async |over| {
        let answered = Rc::new(Cell::new(0));
        let counted = answered.clone();
        let node = Node::with_over(over, 1, 8, move |_| {
            counted.set(counted.get() + 1);
            async move { Response::new(text("enough")) }
        })
        .await;
        let front = Front::before(&[&node]);
        let request = Request::post("/service/web").header("host", "x").body(endless(Arc::default())).unwrap();
        let answer = front.send(request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "enough");
        until("the slot", || node.services.taken.load(Ordering::SeqCst) == 0).await;
        assert_eq!(front.get("/service/web").await.status(), 200);
        assert_eq!(answered.get(), 2);
    });
}

#[test]
fn a_service_with_two_slots_never_sees_a_third_request() {
    over_both(async |over| {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (running, peak) = (now.clone(), most.clone());
        let node = Node::with_over(over, 1, 2, move |_| {
            let (running, peak) = (running.clone(), peak.clone());
            async move {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // The first stays until it has company: else the test might prove nothing.
                until("a second request", || peak.load(Ordering::SeqCst) > 1).await;
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                Response::new(text("done"))
            }
        })
        .await;
        // Two entries, which know nothing of each other.
        let fronts = [Front::before(&[&node]), Front::before(&[&node])];
        let requests = (0..40).map(|i| fronts[i % 2].get("/service/web"));
        for answer in futures_util::future::join_all(requests).await {
            assert_eq!(answer.status(), 200);
        }
        assert_eq!((most.load(Ordering::SeqCst), node.services.taken_most.load(Ordering::SeqCst)), (2, 2));
    });
}

#[test]
fn when_all_stay_full_the_client_is_told_to_come_again() {
    over_both(async |over| {
        let node = Node::with_over(over, 1, 1, |_| async move { Response::new(endless(Arc::default())) }).await;
        let config = with_attempts(|limits| limits.queue_timeout = std::time::Duration::from_millis(50));
        let front = Front::with(config, &[&node]);
        let first = front.get("/service/web").await;
        let answer = front.post("/service/web", "x").await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        let problem = answer.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&problem).unwrap();
        assert_eq!((problem["code"].as_str(), problem["outcome"].as_str()), (Some("all-full"), Some("not-run")));
        drop(first);
        until("the slot", || node.services.taken.load(Ordering::SeqCst) == 0).await;
        assert_eq!(front.get("/service/web").await.status(), 200);
    });
}
