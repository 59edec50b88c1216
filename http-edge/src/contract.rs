//! The existing agents' contract at the entry. What is read is answered from the registry; what changes something goes to a
//! coordinator, down its tunnel, and to another one if that does not answer: the entry speaks for nobody itself.
//!
//! Whatever a coordinator has signed about the worker comes back with its answer and goes into the registry here before the
//! client hears of it: the next call, whoever gets it, finds what this one did.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hedgerow_contract::request::{BODY_BYTES_MAX, Heartbeat, Registration};
use hedgerow_contract::url::UrlPolicy;
use hedgerow_contract::views::Views;
use hedgerow_contract::{Call, Catalogue, ContractError, RECORDS_HEADER};
use hedgerow_http::{Problem, ResponseBody, X_REQUEST_ID};
use hedgerow_proto::frame::StreamKind;
use hedgerow_proto::id::{NodeId, RequestId, ServiceName};
use hedgerow_proto::record::Guest;
use hedgerow_tunnel::Tunnel;
use hedgerow_tunnel::streams::{self, NotOpened};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::clock;
use crate::routes::{self, Answer};
use crate::shard::Shard;

/// How long a call waits for a coordinator: agents that are told 503 give up for ever, and their own time-out is 10 s.
const WAIT_MAX: Duration = Duration::from_secs(8);
/// How often it looks whether there is one, while there is none.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long one coordinator may take: it may have to ask its neighbours, one of whom may be dead.
const COORDINATOR_WITHIN: Duration = Duration::from_secs(4);
/// How long a client may take to send the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer of a coordinator is a few lines.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Records about one worker in one answer.
const RECORDS_MAX: usize = 4;

/// Answers a call. `here` is the URL under which the client can call again, `request_id` names the request.
pub(crate) async fn answer(
    shard: &Rc<Shard>,
    call: Result<Call, ContractError>,
    method: &Method,
    here: &str,
    request_id: &HeaderValue,
    body: Incoming,
) -> Answer {
    let call = match call {
        Ok(call) => call,
        Err(ContractError::MethodNotAllowed { allow, .. }) if method == Method::OPTIONS => {
            let mut response = Response::new(ResponseBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            return Ok(response);
        }
        Err(error) => return Err(Box::new(Problem::from(&error))),
    };
    if !call.writes() {
        return read(shard, &call, here).map_err(|error| Box::new(Problem::from(&error)));
    }
    let body = body_of(body).await.map_err(|error| Box::new(Problem::from(&error)))?;
    write(shard, &call, (here, request_id), body).await.map_err(|error| Box::new(Problem::from(&error)))
}

async fn body_of(body: Incoming) -> Result<Bytes, ContractError> {
    match timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ContractError::TooLarge { max_bytes: BODY_BYTES_MAX })
        }
        Ok(Err(error)) => Err(ContractError::NotAnObject(format!("the body broke off: {error}"))),
        Err(_) => Err(ContractError::NotAnObject("the body did not come".into())),
    }
}

/// What can be read.
fn read(shard: &Rc<Shard>, call: &Call, here: &str) -> Result<Response<ResponseBody>, ContractError> {
    let common = &shard.common;
    let (federation, snapshot) = (&common.federation, common.federation.snapshot());
    let guest_reachable =
        |guest: &Guest| snapshot.guests.get(&guest.worker_id).is_some_and(|entry| entry.routable.is_ok());
    let tasks_completed = common.metrics.stats.iter().map(|stats| stats.snapshot().answered).sum();
    let resolve = |service: &ServiceName| common.settings.aliases.get(service).cloned();
    federation.look(|registry, node_load| {
        let views = Views {
            registry,
            desk: None,
            catalogue: Catalogue::built_in(),
            base_url: here,
            now: clock::now(),
            unix_now_ms: clock::unix_now_ms(),
            node_load,
            guest_reachable: &guest_reachable,
            tasks_completed,
        };
        // A service of the name itself comes before the one that the operator has made the name an alias of.
        let answer = views.answer(call).or_else(|error| match call {
            Call::Discover(service) => views.answer(&Call::Discover(resolve(service).ok_or(error)?)),
            Call::Find(service) => views.answer(&Call::Find(resolve(service).ok_or(error)?)),
            _ => Err(error),
        });
        Ok(routes::json_text(answer?.unwrap_or_default().into()))
    })
}

/// What a coordinator has to do.
async fn write(
    shard: &Rc<Shard>,
    call: &Call,
    as_asked: (&str, &HeaderValue),
    mut body: Bytes,
) -> Result<Response<ResponseBody>, ContractError> {
    // What is wrong for everybody need not bother a coordinator.
    let mut tunnel_url = None;
    let worker_id = match call {
        Call::Register | Call::EdgeRegister => {
            let registration = match call {
                Call::Register => Registration::parse(&body)?,
                _ => Registration::parse_edge(&body)?,
            };
            tunnel_url = Some(registration.tunnel_url.clone());
            match &registration.worker_id {
                Some(worker_id) => worker_id.to_string(),
                // A second coordinator, asked because the first one broke off, must not make a second worker of it.
                None => {
                    let worker_id =
                        format!("{}-{:016x}", registration.kind().as_str(), shard.random.borrow_mut().u64(..));
                    body = with_worker_id(&body, &worker_id)?;
                    worker_id
                }
            }
        }
        Call::Unregister(worker_id) => worker_id.to_string(),
        _ => Heartbeat::parse(&body)?.worker_id.to_string(),
    };
    let deadline = Instant::now() + WAIT_MAX;
    let mut tried: BTreeSet<NodeId> = BTreeSet::new();
    let mut last: Option<Answered> = None;
    loop {
        let next = shard.common.federation.coordinator_for(&worker_id, &tried, &mut shard.random.borrow_mut());
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(tunnel) = next.filter(|_| !left.is_zero()) else {
            // All have been asked: what the last one said is the answer.
            if let Some(answer) = last.take() {
                return Ok(answer.into_response());
            }
            if left.is_zero() {
                return Err(ContractError::NoCoordinator { waited: WAIT_MAX });
            }
            tried.clear();
            sleep(LOOK_INTERVAL).await;
            continue;
        };
        tried.insert(tunnel.node());
        // While a call runs the tunnel is watched: one whose coordinator has died is silent within a second, and agents wait
        // for 5 s. What is asked twice does no harm.
        let running = tunnel.in_flight();
        let asked = tokio::select! {
            biased;
            asked = ask(shard, &tunnel, call, as_asked, body.clone()) => asked,
            () = tunnel.suspected() => Err(NoAnswer::Silent),
            () = sleep(left.min(COORDINATOR_WITHIN)) => Err(NoAnswer::Late),
        };
        drop(running);
        match asked {
            Ok(mut answer) => {
                if let Some(tunnel_url) = &tunnel_url {
                    answer.body = corrected(answer.body, tunnel_url, &shard.common.settings.urls);
                }
                match answer.head.status {
                    // It has no room, or does not know the worker: another one may.
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::NOT_FOUND => last = Some(answer),
                    _ => return Ok(answer.into_response()),
                }
            }
            Err(error) => debug!(node = %tunnel.node().short(), %error, "a coordinator does not answer a call"),
        }
    }
}

fn with_worker_id(body: &[u8], worker_id: &str) -> Result<Bytes, ContractError> {
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(body).map_err(|error| ContractError::NotAnObject(error.to_string()))?;
    fields.insert("worker_id".to_owned(), worker_id.into());
    let body = serde_json::to_vec(&fields).map_err(|error| ContractError::NotAnObject(error.to_string()))?;
    Ok(body.into())
}

/// What a coordinator has answered.
struct Answered {
    head: Parts,
    body: Bytes,
}

impl Answered {
    fn into_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::full(self.body));
        *response.status_mut() = self.head.status;
        for name in [CONTENT_TYPE, CACHE_CONTROL, RETRY_AFTER, ALLOW] {
            if let Some(value) = self.head.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }
}

/// Why a coordinator gave no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("the node is silent")]
    Silent,
    #[error("not in time")]
    Late,
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
    #[error("the stream broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

async fn ask(
    shard: &Rc<Shard>,
    tunnel: &Tunnel,
    call: &Call,
    (here, request_id): (&str, &HeaderValue),
    body: Bytes,
) -> Result<Answered, NoAnswer> {
    let number = RequestId(shard.random.borrow_mut().u128(..));
    let stream = streams::open(tunnel, StreamKind::Contract, None, number).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (method, path) = call.line();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap_or(Method::POST);
        *request.uri_mut() = path.parse().unwrap_or_default();
        let host = here.split_once("://").map_or(here, |(_, host)| host);
        if let Ok(host) = HeaderValue::from_str(host) {
            request.headers_mut().insert(HOST, host);
        }
        request.headers_mut().insert(X_REQUEST_ID, request_id.clone());
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(NoAnswer::Body)?;
        Ok::<_, NoAnswer>((head, body.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    let (head, body) = tokio::select! {
        biased;
        answered = &mut exchange => answered?,
        // The connection may end before the answer has been read to its end.
        _ = &mut connection => exchange.await?,
    };
    shard.common.federation.learn(records(&head.headers));
    Ok(Answered { head, body })
}

/// What the coordinator has signed about the worker.
fn records(headers: &HeaderMap) -> Vec<Bytes> {
    let values = headers.get_all(RECORDS_HEADER).iter().take(RECORDS_MAX);
    values.filter_map(|value| STANDARD.decode(value.as_bytes()).ok()).map(Bytes::from).collect()
}

/// What a registration is told of its URL: this entry's policy has the last word.
fn corrected(body: Bytes, tunnel_url: &str, policy: &UrlPolicy) -> Bytes {
    let Ok(mut fields) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&body) else {
        return body;
    };
    if !fields.contains_key("routable") {
        return body;
    }
    match hedgerow_urls::check(tunnel_url, policy) {
        Ok(_) => {
            fields.insert("routable".into(), true.into());
            fields.remove("reason");
        }
        Err(reason) => {
            fields.insert("routable".into(), false.into());
            fields.insert("reason".into(), reason.to_string().into());
        }
    }
    serde_json::to_vec(&fields).map_or(body, Bytes::from)
}
