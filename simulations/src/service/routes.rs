//! What the services answer. The kit, by path (the other kinds answer one of these at every path):
//!
//! | path | answer |
//! |---|---|
//! | `/`, `/hello` | `hello from NAME` |
//! | `/health` | `{"status": "healthy"}`, for what is asked there whether it serves |
//! | `/echo` | the request's body, while it still arrives |
//! | `/digest` | length and SHA-256 of the request's body, as JSON |
//! | `/head` | the request's method, target and headers as they arrived, as JSON |
//! | `/events?every=MS&count=N` | server-sent events |
//! | `/bytes?n=N` | N bytes of a fixed pattern |
//! | `/slow?ms=MS` | the answer after a while |
//! | `/status/CODE` | that status |
//! | `/ws` | a WebSocket that echoes |
//! | `/evidence` | what this service has seen |
//!
//! `?key=K` on any of them counts the runs of request K.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::evidence::{Run, Watched};
use super::{Kind, Service, websocket};

/// What all answers are.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// The longest piece of a large body that is made at once.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) async fn answer(
    service: Arc<Service>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, hyper::Error> {
    if request.uri().path() == "/evidence" {
        // Past the ledger: looking must not change what is seen.
        let text = serde_json::to_vec(&service.ledger.evidence()).unwrap_or_default();
        let mut response = Response::new(Full::new(text.into()).map_err(never).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok(response);
    }
    let query = Query::of(&request);
    let mut run = service.ledger.begin(query.text("key"));
    if request.method() == Method::HEAD {
        // The body of the answer is never asked for.
        run.complete();
    }
    let path = match service.kind {
        Kind::Hello => "/hello".to_owned(),
        Kind::Echo => "/echo".to_owned(),
        Kind::Events => "/events".to_owned(),
        Kind::Kit => request.uri().path().to_owned(),
    };
    Ok(match path.as_str() {
        "/" | "/hello" => full(run, StatusCode::OK, "text/plain", format!("hello from {}\n", service.name)),
        "/health" => full(run, StatusCode::OK, "application/json", json!({ "status": "healthy" }).to_string()),
        "/echo" => echo(run, request),
        "/digest" => digest(run, request).await?,
        "/head" => head(run, &request),
        "/events" => events(run, &service.name, query.number("every").unwrap_or(100), query.number("count")),
        "/bytes" => bytes(run, query.number("n").unwrap_or(1024)),
        "/slow" => {
            let asked = query.number("ms").unwrap_or(1000);
            tokio::time::sleep(Duration::from_millis(asked)).await;
            full(run, StatusCode::OK, "text/plain", format!("{} slept for {asked} ms\n", service.name))
        }
        "/ws" => websocket::accept(run, request),
        other => match other.strip_prefix("/status/").and_then(|code| code.parse().ok()) {
            Some(status) => full(run, status, "text/plain", format!("{} as asked\n", status.as_u16())),
            None => full(run, StatusCode::NOT_FOUND, "text/plain", format!("nothing is at {other}\n")),
        },
    })
}

/// A whole answer with a Content-Length.
pub(super) fn full(run: Run, status: StatusCode, content_type: &'static str, text: String) -> Response<AnswerBody> {
    let mut response = streamed(run, content_type, None, Full::new(text.into()).map_err(never));
    *response.status_mut() = status;
    response
}

fn streamed<B>(run: Run, content_type: &'static str, length: Option<u64>, body: B) -> Response<AnswerBody>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Send + Unpin + 'static,
{
    let mut response = Response::new(Watched::new(body, run, length).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn never(never: Infallible) -> hyper::Error {
    match never {}
}

fn echo(run: Run, request: Request<Incoming>) -> Response<AnswerBody> {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let mut response = streamed(run, "application/octet-stream", None, request.into_body());
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}

async fn digest(run: Run, request: Request<Incoming>) -> Result<Response<AnswerBody>, hyper::Error> {
    let mut body = request.into_body();
    let (mut hash, mut length) = (Sha256::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            hash.update(&data);
            length += data.len();
        }
    }
    let text = json!({ "bytes": length, "sha256": hex(&hash.finalize()) }).to_string();
    Ok(full(run, StatusCode::OK, "application/json", text))
}

fn head(run: Run, request: &Request<Incoming>) -> Response<AnswerBody> {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let text = json!({ "method": request.method().as_str(), "target": request.uri().to_string(), "headers": headers });
    full(run, StatusCode::OK, "application/json", text.to_string())
}

fn events(run: Run, name: &str, every_ms: u64, count: Option<u64>) -> Response<AnswerBody> {
    let ticks = tokio::time::interval(Duration::from_millis(every_ms.max(1)));
    let name = name.to_owned();
    let events = stream::unfold((0_u64, ticks, name), move |(number, mut ticks, name)| async move {
        if count.is_some_and(|count| number >= count) {
            return None;
        }
        ticks.tick().await;
        let text = format!("id: {number}\ndata: tick {number} of {name}\n\n");
        Some((Ok(Frame::data(Bytes::from(text))), (number + 1, ticks, name)))
    });
    let mut response = streamed(run, "text/event-stream", None, StreamBody::new(Box::pin(events)));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn bytes(run: Run, length: u64) -> Response<AnswerBody> {
    let piece = pattern(PIECE_BYTES);
    let pieces = stream::unfold(length, move |left| {
        let piece = piece.clone();
        async move {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            (take > 0).then(|| (Ok(Frame::data(piece.slice(..take))), left - take as u64))
        }
    });
    let mut response = streamed(run, "application/octet-stream", Some(length), StreamBody::new(Box::pin(pieces)));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// The first bytes of `/bytes`, which repeat: every byte value, in an order that is not the obvious one.
fn pattern(length: usize) -> Bytes {
    (0..length.min(PIECE_BYTES)).map(|index| (index * 167 + index / 256 * 13) as u8).collect()
}

/// Bytes as text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The query of a request, for the few keys that we know. Nothing here is percent-encoded.
struct Query(String);

impl Query {
    fn of(request: &Request<Incoming>) -> Self {
        Self(request.uri().query().unwrap_or_default().to_owned())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }
}
