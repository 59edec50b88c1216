use std::task::Waker;

use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;

use super::*;

const LIMITS: UploadLimits = UploadLimits { replay_bytes_max: 100, bytes_max: None, keep_after_accept: true };

fn upload(chunks: Vec<Bytes>, limits: UploadLimits) -> Upload {
    let frames = chunks.into_iter().map(|chunk| Ok::<_, AnyError>(Frame::data(chunk)));
    let body = RequestBody::boxed(StreamBody::new(futures_util::stream::iter(frames)));
    Upload::new(body, limits).expect("within the limit")
}

fn chunks(count: usize, bytes: usize) -> Vec<Bytes> {
    (0..count).map(|i| Bytes::from(vec![i as u8; bytes])).collect()
}

/// What an attempt can read without waiting.
fn read(body: &mut AttemptBody) -> (Vec<u8>, Poll<Option<BodyError>>) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut got = Vec::new();
    loop {
        match Pin::new(&mut *body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => got.extend_from_slice(&frame.into_data().expect("data")),
            Poll::Ready(Some(Err(error))) => return (got, Poll::Ready(Some(error))),
            Poll::Ready(None) => return (got, Poll::Ready(None)),
            Poll::Pending => return (got, Poll::Pending),
        }
    }
}

#[test]
fn no_more_is_read_before_accept_than_can_be_sent_again() {
    let upload = upload(chunks(10, 30), LIMITS);
    let mut first = upload.attempt();
    let (got, end) = read(&mut first);
    assert_eq!((got.len(), end.is_pending()), (120, true));
    assert!(upload.is_whole());

    let mut second = upload.attempt();
    assert!(matches!(read(&mut first).1, Poll::Ready(Some(BodyError::Superseded))));
    assert_eq!(read(&mut second).0, got, "the same bytes from the beginning");
    upload.accepted();
    let (rest, end) = read(&mut second);
    assert!(matches!(end, Poll::Ready(None)));
    assert_eq!(got.len() + rest.len(), 300);
    assert!(!upload.is_whole(), "too much to be sent again");
}

#[test]
fn a_small_body_can_be_sent_again_after_accept_only_if_that_is_of_use() {
    for keep_after_accept in [true, false] {
        let upload = upload(chunks(3, 10), UploadLimits { keep_after_accept, ..LIMITS });
        let mut body = upload.attempt();
        upload.accepted();
        assert_eq!(read(&mut body).0.len(), 30);
        assert_eq!(upload.is_whole(), keep_after_accept);
    }
}

#[test]
fn a_body_over_the_limit_fails_and_says_so() {
    let limits = UploadLimits { bytes_max: Some(50), ..LIMITS };
    let known = RequestBody::boxed(http_body_util::Full::new(Bytes::from(vec![0; 51])));
    assert!(matches!(Upload::new(known, limits), Err(BodyError::TooLarge { max_bytes: 50 })));
    let upload = upload(chunks(6, 10), limits);
    let (got, end) = read(&mut upload.attempt());
    assert_eq!(got.len(), 50);
    assert!(matches!(end, Poll::Ready(Some(BodyError::TooLarge { .. }))));
    assert!(matches!(upload.failure(), Some(BodyError::TooLarge { max_bytes: 50 })));
}

#[test]
fn a_client_that_breaks_off_is_told_apart_from_a_node_that_does() {
    let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err::<_, AnyError>("reset".into())];
    let body = RequestBody::boxed(StreamBody::new(futures_util::stream::iter(frames)));
    let upload = Upload::new(body, LIMITS).expect("no limit");
    assert!(matches!(read(&mut upload.attempt()).1, Poll::Ready(Some(BodyError::Client(_)))));
    assert!(matches!(upload.failure(), Some(BodyError::Client(_))));
}

#[tokio::test]
async fn trailers_are_sent_again_too() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("1"));
    let frames = [Ok::<_, AnyError>(Frame::data(Bytes::from_static(b"a"))), Ok(Frame::trailers(trailers.clone()))];
    let body = RequestBody::boxed(StreamBody::new(futures_util::stream::iter(frames)));
    let upload = Upload::new(body, LIMITS).expect("no limit");
    for _ in 0..2 {
        let collected = upload.attempt().collect().await.expect("a body");
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "a");
    }
}

#[test]
fn a_request_without_a_body_is_whole_for_ever() {
    let upload = Upload::new(RequestBody::empty(), LIMITS).expect("empty");
    assert!(upload.is_empty() && upload.is_whole() && upload.attempt().is_end_stream());
}

proptest! {
    #[test]
    fn each_attempt_sends_the_same_bytes(
        sizes in prop::collection::vec(1usize..40, 1..8),
        steps in prop::collection::vec(0usize..9, 0..4),
        accept: bool,
    ) {
        let all: Vec<Bytes> = sizes.iter().enumerate().map(|(i, size)| Bytes::from(vec![i as u8; *size])).collect();
        let whole = all.concat();
        let upload = upload(all, LIMITS);
        let mut cx = Context::from_waker(Waker::noop());
        for step in steps {
            // An attempt that dies after a few chunks.
            let mut body = upload.attempt();
            for _ in 0..step {
                let _ = Pin::new(&mut body).poll_frame(&mut cx);
            }
        }
        let mut last = upload.attempt();
        if accept {
            upload.accepted();
        }
        let (got, end) = read(&mut last);
        prop_assert!(whole.starts_with(&got));
        match end {
            Poll::Ready(end) => prop_assert!(end.is_none() && got == whole),
            Poll::Pending => prop_assert!(!accept && got.len() >= LIMITS.replay_bytes_max && upload.is_whole()),
        }
    }
}
