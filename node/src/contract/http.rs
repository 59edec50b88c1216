//! The contract over HTTP: down a tunnel of an entry, or at the node's own port.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hedgerow_contract::request::BODY_BYTES_MAX;
use hedgerow_contract::{ContractError, RECORDS_HEADER, endpoint};
use hedgerow_http::{Problem, X_REQUEST_ID, request_id};
use hedgerow_tunnel::BoxStream;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tracing::debug;

use super::{Answer, Asked, Contract};

/// How long whoever asks may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

impl Contract {
    /// Answers a request, if its path is one of the contract's. `base_url` is under what the workers of its answers are reached;
    /// without it, under the host that was asked.
    pub async fn answer_http(
        &self,
        request: Request<Incoming>,
        scheme: &str,
        base_url: Option<String>,
    ) -> Result<Response<Bytes>, Request<Incoming>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (id, _) = request_id(request.headers(), &mut self.random());
        let call = match endpoint(method.as_str(), &path) {
            None => return Err(request),
            Some(Err(ContractError::MethodNotAllowed { allow, .. })) if method == Method::OPTIONS => {
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
                return Ok(response);
            }
            Some(Err(error)) => return Ok(refused(&error, &id)),
            Some(Ok(call)) => call,
        };
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let own = || if host.is_empty() { String::new() } else { format!("{scheme}://{host}") };
        let base_url = base_url.unwrap_or_else(own);
        let body = match body_of(request.into_body()).await {
            Ok(body) => body,
            Err(error) => return Ok(refused(&error, &id)),
        };
        let asked = Asked { base_url, body, ..Asked::default() };
        let mut response = match self.answer(&call, &asked).await {
            Ok(answer) => answered(answer),
            Err(error) => refused(&error, &id),
        };
        response.headers_mut().insert(X_REQUEST_ID, id);
        Ok(response)
    }
}

async fn body_of(body: Incoming) -> Result<Bytes, ContractError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ContractError::TooLarge { max_bytes: BODY_BYTES_MAX })
        }
        Ok(Err(error)) => Err(ContractError::NotAnObject(format!("the body broke off: {error}"))),
        Err(_) => Err(ContractError::NotAnObject("the body did not come".into())),
    }
}

fn answered(Answer { status, body, records }: Answer) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for record in records {
        if let Ok(value) = HeaderValue::try_from(STANDARD.encode(record)) {
            response.headers_mut().append(RECORDS_HEADER, value);
        }
    }
    response
}

/// An error as problem+json (RFC 9457).
pub(super) fn refused(error: &ContractError, request_id: &HeaderValue) -> Response<Bytes> {
    let id = String::from_utf8_lossy(request_id.as_bytes());
    Problem::from(error).request_id(id).into_bytes()
}

/// Serves an entry's stream.
pub async fn serve_stream(contract: Arc<Contract>, stream: BoxStream) {
    let service = service_fn(|request: Request<Incoming>| {
        let contract = contract.clone();
        async move {
            let answer = contract.answer_http(request, "https", None).await;
            let answer = answer.unwrap_or_else(|request| {
                let mut response = Response::new(Bytes::new());
                debug!(path = request.uri().path(), "an entry asks for what is not in the contract");
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            });
            Ok::<_, Infallible>(answer.map(Full::new))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "an entry's stream for the contract has broken");
    }
}
