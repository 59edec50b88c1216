//! What went wrong, and how a client is told: `application/problem+json` (RFC 9457). One exhaustive function turns an
//! error into an answer.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_contract::ContractError;
use hedgerow_proto::retry::{Attempt, Outcome};
use hedgerow_proto::route::RouteError;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;

use crate::body::ResponseBody;

/// Why a request was not answered by a service. The variants say whose fault it is: the first are the client's, the
/// rest the federation's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ForwardError {
    /// Client: the path names nothing that can be.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Client: the target is a whole URL.
    #[error("the request target is a whole URL, as for a forward proxy; this is not one: send the path alone")]
    AbsoluteForm,
    /// Client: the target is no path.
    #[error("the request target is no path; it must begin with '/'")]
    NoPath,
    /// Client: the target is too long once it is what the service has to be asked for.
    #[error("the request target is too long: with what stands in front of it at the service, it is no URL any more")]
    TargetTooLong,
    /// Client: CONNECT.
    #[error("CONNECT is for forward proxies; this is not one")]
    Connect,
    /// Client: TRACE.
    #[error("TRACE is not passed on, since it would show a service's client what proxies add")]
    Trace,
    /// Client: an upgrade over HTTP/2.
    #[error("upgrades over HTTP/2 (extended CONNECT, RFC 8441) are not supported; use HTTP/1.1 for WebSockets")]
    ExtendedConnect,
    /// Client: a body over the limit.
    #[error("the request's body is longer than the limit of {max_bytes} bytes")]
    BodyTooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// Client: the body broke off.
    #[error("the request's body broke off or was malformed: {0}")]
    BodyBroke(String),
    /// Client: nothing more of the body came.
    #[error("the request's body stopped coming for {waited:?}, and was not waited for any longer")]
    BodyStalled {
        /// How long was waited.
        waited: Duration,
    },
    /// Nobody can be asked.
    #[error("nobody offers the service {service:?} now: {known}")]
    Nobody {
        /// What was asked for.
        service: String,
        /// What is known about it, for a person.
        known: String,
    },
    /// Everybody that can be asked is full.
    #[error("all nodes that offer {service:?} are full, and none had room within {waited:?}")]
    AllFull {
        /// What was asked for.
        service: String,
        /// How long it waited.
        waited: Duration,
        /// Where it was refused.
        attempts: Vec<Attempt>,
    },
    /// It was tried, and failed.
    #[error("{} answered for {service:?}: {}", whoever(attempts), story(*outcome))]
    Failed {
        /// What was asked for.
        service: String,
        /// Where, and how it failed.
        attempts: Vec<Attempt>,
        /// Whether it may have run.
        outcome: Outcome,
    },
    /// The service took too long.
    #[error("the service {service:?} did not begin to answer within {waited:?}; it may still have run")]
    TimedOut {
        /// What was asked for.
        service: String,
        /// How long was waited.
        waited: Duration,
        /// Where.
        attempts: Vec<Attempt>,
    },
}

fn whoever(attempts: &[Attempt]) -> &'static str {
    if attempts.len() > 1 { "none of the nodes that were asked" } else { "the node that was asked has not" }
}

fn story(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotRun => "the request has not reached a service, so it may safely be sent again",
        Outcome::Unknown => {
            "the request may have run, or not; look before sending it again if twice is not as good as once"
        }
    }
}

/// An answer that says what went wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<AttemptJson>>,
    #[serde(skip)]
    retry_after: Option<Duration>,
    #[serde(skip)]
    allow: Option<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
struct AttemptJson {
    node: String,
    reason: &'static str,
}

impl Problem {
    /// A problem of this status. `code` is stable and for programs, `title` is the same for each `code`, `detail` is
    /// for the person who sees it: what happened, what it means, what to do.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:hedgerow:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            code,
            request_id: None,
            outcome: None,
            attempts: None,
            retry_after: None,
            allow: None,
        }
    }

    /// Names the request.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// Says when to try again (rounded up to seconds).
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says which methods there are, for 405.
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    fn tried(mut self, attempts: &[Attempt], outcome: Outcome) -> Self {
        let json = |attempt: &Attempt| AttemptJson { node: attempt.node.to_string(), reason: attempt.failure.as_str() };
        self.attempts = Some(attempts.iter().map(json).collect());
        self.outcome = Some(outcome.as_str());
        self
    }

    /// The status that the answer will have.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The answer.
    pub fn into_response(self) -> Response<ResponseBody> {
        self.into_bytes().map(ResponseBody::full)
    }

    /// The answer, with its body as it is written.
    pub fn into_bytes(self) -> Response<Bytes> {
        // Strings and numbers: there is nothing in it that could fail.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<&ContractError> for Problem {
    fn from(error: &ContractError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Self::new(status, error.code(), error.title(), error.to_string());
        Self { retry_after: error.retry_after(), allow: error.allow(), ..problem }
    }
}

/// What can be asked for with this entry's methods, for 405.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

impl ForwardError {
    /// The answer to a client.
    pub fn problem(&self) -> Problem {
        let detail = self.to_string();
        let new = |status, code, title| Problem::new(status, code, title, detail);
        match self {
            Self::Route(RouteError::Service) => new(StatusCode::BAD_REQUEST, "bad-service-name", "Bad service name"),
            Self::Route(RouteError::Node) => new(StatusCode::BAD_REQUEST, "bad-node-id", "Bad node id"),
            Self::Route(RouteError::Worker) => new(StatusCode::BAD_REQUEST, "bad-worker-id", "Bad worker id"),
            Self::AbsoluteForm => new(StatusCode::BAD_REQUEST, "absolute-form", "Not a forward proxy"),
            Self::NoPath => new(StatusCode::BAD_REQUEST, "no-path", "No path in the request target"),
            Self::TargetTooLong => new(StatusCode::URI_TOO_LONG, "target-too-long", "The request target is too long"),
            Self::Connect => new(StatusCode::METHOD_NOT_ALLOWED, "connect", "Not a forward proxy").allow(METHODS),
            Self::Trace => new(StatusCode::METHOD_NOT_ALLOWED, "trace", "TRACE is not passed on").allow(METHODS),
            Self::ExtendedConnect => new(StatusCode::NOT_IMPLEMENTED, "extended-connect", "No upgrades over HTTP/2"),
            Self::BodyTooLarge { .. } => new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::BodyBroke(_) => new(StatusCode::BAD_REQUEST, "body-broke", "The request's body broke off"),
            Self::BodyStalled { .. } => new(StatusCode::REQUEST_TIMEOUT, "body-stalled", "The body stopped coming"),
            Self::Nobody { .. } => new(StatusCode::SERVICE_UNAVAILABLE, "no-worker", "Nobody offers the service")
                .tried(&[], Outcome::NotRun)
                .retry_after(Duration::from_secs(5)),
            Self::AllFull { attempts, .. } => new(StatusCode::SERVICE_UNAVAILABLE, "all-full", "All nodes are full")
                .tried(attempts, Outcome::NotRun)
                .retry_after(Duration::from_secs(1)),
            Self::Failed { attempts, outcome, .. } => {
                new(StatusCode::BAD_GATEWAY, "worker-failed", "The service did not answer").tried(attempts, *outcome)
            }
            Self::TimedOut { attempts, .. } => {
                new(StatusCode::GATEWAY_TIMEOUT, "answer-timeout", "The service took too long")
                    .tried(attempts, Outcome::Unknown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::frame::Refusal;
    use hedgerow_proto::id::NodeId;
    use hedgerow_proto::retry::Failure;

    use super::*;

    fn json(error: &ForwardError) -> serde_json::Value {
        serde_json::to_value(error.problem().request_id("r-1")).expect("JSON")
    }

    #[test]
    fn nobody_offers_it_names_the_service_and_what_is_known() {
        let error = ForwardError::Nobody { service: "llm".into(), known: "known to 2 nodes, both draining".into() };
        let body = json(&error);
        let detail = body["detail"].as_str().expect("text");
        assert!(detail.contains("\"llm\"") && detail.contains("2 nodes, both draining"), "{detail}");
        assert_eq!((body["status"].as_u64(), body["code"].as_str()), (Some(503), Some("no-worker")));
        assert_eq!((body["request_id"].as_str(), body["outcome"].as_str()), (Some("r-1"), Some("not-run")));
        assert_eq!(error.problem().into_response().headers()[RETRY_AFTER], "5");
    }

    #[test]
    fn a_failure_says_where_it_was_tried_and_why_each_failed() {
        let attempts = vec![
            Attempt { node: NodeId([1; 32]), failure: Failure::Refused(Refusal::Full) },
            Attempt { node: NodeId([2; 32]), failure: Failure::Broken },
        ];
        let body = json(&ForwardError::Failed { service: "llm".into(), attempts, outcome: Outcome::Unknown });
        assert_eq!((body["status"].as_u64(), body["outcome"].as_str()), (Some(502), Some("unknown")));
        assert_eq!(body["attempts"][0]["reason"], "full");
        assert_eq!(body["attempts"][1]["reason"], "broken");
        assert_eq!(body["attempts"][1]["node"], "02".repeat(32));
        assert_eq!(body["type"], "urn:hedgerow:problem:worker-failed");
    }

    #[test]
    fn every_error_is_a_problem_of_its_own_code() {
        let service = || "a".to_owned();
        let all = [
            ForwardError::Route(RouteError::Service),
            ForwardError::Route(RouteError::Node),
            ForwardError::Route(RouteError::Worker),
            ForwardError::AbsoluteForm,
            ForwardError::NoPath,
            ForwardError::TargetTooLong,
            ForwardError::Connect,
            ForwardError::Trace,
            ForwardError::ExtendedConnect,
            ForwardError::BodyTooLarge { max_bytes: 1 },
            ForwardError::BodyBroke("x".into()),
            ForwardError::BodyStalled { waited: Duration::ZERO },
            ForwardError::Nobody { service: service(), known: "x".into() },
            ForwardError::AllFull { service: service(), waited: Duration::ZERO, attempts: vec![] },
            ForwardError::Failed { service: service(), attempts: vec![], outcome: Outcome::NotRun },
            ForwardError::TimedOut { service: service(), waited: Duration::ZERO, attempts: vec![] },
        ];
        let mut codes: Vec<_> = all.iter().map(|error| error.problem().code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all.len());
        for error in &all {
            let response = error.problem().into_response();
            assert!(response.status().is_client_error() || response.status().is_server_error());
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        }
    }
}
