//! Clients: each asks one thing, by hyper, at an entry of the domain, and waits.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

use super::evidence::Evidence;
use super::service::{REQUEST, TAKES_US};
use crate::net::Network;

/// What a client asks.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) id: u64,
    pub(super) service: String,
    pub(super) once: bool,
    pub(super) takes: Duration,
    pub(super) patience: Duration,
    /// Addresses of the domain, in the order in which this client tries them.
    pub(super) entries: Vec<SocketAddr>,
}

/// Asks, and notes what came of it.
pub(super) async fn ask(network: Network, from: u32, question: Question, evidence: Evidence) {
    evidence.asked(question.id, &question.service, question.once);
    let asked = tokio::time::timeout(question.patience, exchange(&network, from, &question)).await;
    let outcome = asked.unwrap_or_else(|_| Err("no answer in time".into()));
    evidence.over(question.id, outcome);
}

async fn exchange(network: &Network, from: u32, question: &Question) -> Result<(), String> {
    let mut stream = Err("there is no entry".to_owned());
    for entry in &question.entries {
        // As browsers do: another address of the domain is tried when one refuses.
        stream = network.dial(from, *entry).await.map_err(|error| format!("no connection: {error}"));
        if stream.is_ok() {
            break;
        }
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream?)).await.map_err(words)?;
    let connection = tokio::spawn(connection);
    let body = Bytes::from(question.id.to_string());
    let request = Request::builder()
        .method(if question.once { Method::POST } else { Method::GET })
        .uri(format!("/service/{}/x", question.service))
        .header(http::header::HOST, "entry.example")
        .header(REQUEST, question.id)
        .header(TAKES_US, u64::try_from(question.takes.as_micros()).unwrap_or(u64::MAX))
        .body(Full::new(if question.once { body.clone() } else { Bytes::new() }))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(words)?;
    let status = response.status();
    let answer = response.into_body().collect().await.map_err(words)?.to_bytes();
    connection.abort();
    match status.is_success() {
        true if question.once && answer != body => Err("the answer is another request's".into()),
        true => Ok(()),
        false => Err(format!("{status}: {}", String::from_utf8_lossy(&answer))),
    }
}

fn words(error: hyper::Error) -> String {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}
