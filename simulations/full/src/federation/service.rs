//! Services on the nodes' machines: HTTP/1.1 by hyper. They are processes of their own, and live on when their node is killed.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::evidence::Evidence;
use crate::net::{Network, Stream};

/// Names a request through all retries.
pub(super) const REQUEST: &str = "x-sim-request";
/// How long it takes, in microseconds: the client's choice, so that the seed decides it whoever answers.
pub(super) const TAKES_US: &str = "x-sim-takes-us";
/// A machine that was off has its services back this soon after it is on again.
const BOOT: Duration = Duration::from_secs(1);

/// Serves on a port of this machine for ever.
pub(super) async fn serve(network: Network, node: u32, port: u16, evidence: Evidence) {
    loop {
        if let Ok(listener) = network.listen(node, port) {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, evidence.clone()));
            }
        }
        tokio::time::sleep(BOOT).await;
    }
}

async fn connection(stream: Stream, evidence: Evidence) {
    let service = service_fn(move |request| answer(request, evidence.clone()));
    // Its end is seen by who asks.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, evidence: Evidence) -> Result<Response<Full<Bytes>>, Infallible> {
    let number = |name: &str| request.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let (id, takes) = (number(REQUEST), number(TAKES_US).unwrap_or_default());
    let Ok(body) = request.into_body().collect().await else {
        return Ok(status(StatusCode::BAD_REQUEST, Bytes::new()));
    };
    if let Some(id) = id {
        evidence.runs(id);
    }
    tokio::time::sleep(Duration::from_micros(takes)).await;
    Ok(status(StatusCode::OK, body.to_bytes()))
}

fn status(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}
