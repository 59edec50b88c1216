//! The operator's own listener: liveness, readiness, metrics, and why requests go where they go. It may show addresses.

use std::rc::Rc;

use hedgerow_http::{Directory, Problem, ResponseBody};
use hedgerow_process::shutdown::Stage;
use hedgerow_proto::id::ServiceName;
use hedgerow_proto::route::Target;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;

use crate::routes::{json, reading, registry};
use crate::shard::Shard;
use crate::views;

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

#[derive(Debug, Serialize)]
struct State {
    status: &'static str,
    coordinators: usize,
    workers: usize,
}

/// Answers one request.
pub(crate) fn answer(shard: &Rc<Shard>, request: &Request<Incoming>) -> Response<ResponseBody> {
    let answer: fn(&Shard, &Request<Incoming>) -> Response<ResponseBody> = match request.uri().path() {
        "/healthz" => |shard, _| json(&state(shard, "ok")),
        "/readyz" => |shard, _| ready(shard),
        "/metrics" => |shard, _| metrics(shard),
        "/mesh/why" => |shard, request| why(shard, request.uri().query().unwrap_or_default()),
        "/mesh/registry" => |shard, _| registry(shard),
        _ => {
            let detail = "here are /healthz, /readyz, /metrics, /mesh/registry and /mesh/why?service=NAME";
            return Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail).into_response();
        }
    };
    reading(request.method(), || answer(shard, request)).unwrap_or_else(|problem| problem.into_response())
}

fn state(shard: &Shard, status: &'static str) -> State {
    let snapshot = shard.common.federation.snapshot();
    State { status, coordinators: snapshot.coordinators_up, workers: snapshot.workers_up }
}

fn ready(shard: &Shard) -> Response<ResponseBody> {
    let draining = shard.common.shutdown.stage() != Stage::Running;
    let State { coordinators, workers, .. } = state(shard, "");
    let status = match (draining, coordinators + workers) {
        (true, _) => "draining",
        (false, 0) => "waiting for the first tunnel",
        (false, _) => "ready",
    };
    let mut response = json(&state(shard, status));
    if status != "ready" {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn metrics(shard: &Shard) -> Response<ResponseBody> {
    match shard.common.metrics.page() {
        Ok(page) => {
            let mut response = Response::new(ResponseBody::full(page));
            response.headers_mut().insert(CONTENT_TYPE, OPEN_METRICS);
            response
        }
        Err(_) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Problem::new(status, "internal", "Internal error", "the metrics could not be written").into_response()
        }
    }
}

fn why(shard: &Shard, query: &str) -> Response<ResponseBody> {
    // A service's name needs no escaping, so nothing in the query has to be decoded.
    let service = query.split('&').find_map(|pair| pair.strip_prefix("service="));
    let Some(service) = service.filter(|name| ServiceName::is_valid(name)) else {
        let detail = "name a service: /mesh/why?service=NAME";
        return Problem::new(StatusCode::BAD_REQUEST, "bad-service-name", "Bad service name", detail).into_response();
    };
    let (directory, target) = (shard.forwarder.directory(), Target::Service { service });
    json(&views::why(service, directory.find(&target), || directory.known(&target)))
}
