//! Whom an agent speaks to: an entry or a coordinator, it cannot tell.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client;
use crate::terminal::say;

/// Its address. Plain HTTP only: this agent stays on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorUrl {
    authority: String,
}

impl FromStr for CoordinatorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority = text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        match authority {
            Some(authority) if authority.contains(':') && !authority.contains('/') => {
                Ok(Self { authority: authority.to_owned() })
            }
            _ => Err("not of the form http://HOST:PORT".to_owned()),
        }
    }
}

impl fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// One step of an agent: one line of its standard output.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What it did.
    pub event: String,
    /// The status of the answer, if it asked for something and was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How long the answer, or the want of one, took in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// The answer.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub answer: Value,
    /// Why there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Step {
    /// A step of which nothing more is to be said.
    pub(super) fn new(event: &str) -> Self {
        Self { event: event.to_owned(), ..Self::default() }
    }

    pub(super) fn say(&self) {
        say(serde_json::to_string(self).unwrap_or_default());
    }

    /// What went wrong, for a person.
    pub(super) fn why(&self) -> String {
        match (&self.status, &self.error) {
            (Some(status), _) => format!("{status} {}", self.answer),
            (None, Some(error)) => error.clone(),
            (None, None) => "no answer".to_owned(),
        }
    }

    /// The steps in what an agent has written, among which other lines may stand.
    pub fn all_in(output: &str) -> Vec<Self> {
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl CoordinatorUrl {
    /// Asks, says what came of it, and returns it.
    pub(super) async fn ask(
        &self,
        event: &str,
        method: &str,
        path: &str,
        said: Option<Value>,
        within: Duration,
    ) -> Step {
        let begin = Instant::now();
        let asked = tokio::time::timeout(within, self.exchange(method, path, said)).await;
        let mut step = match asked.unwrap_or_else(|_| bail_after(within)) {
            Ok(answer) => Step { status: Some(answer.status.as_u16()), answer: readable(&answer), ..Step::new(event) },
            Err(error) => Step { error: Some(format!("{error:#}")), ..Step::new(event) },
        };
        step.took_ms = u64::try_from(begin.elapsed().as_millis()).ok();
        step.say();
        step
    }

    async fn exchange(&self, method: &str, path: &str, said: Option<Value>) -> Result<client::Answer> {
        let mut addresses = tokio::net::lookup_host(&self.authority).await.context("its name is not known")?;
        let to = addresses.next().context("its name has no address")?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        if said.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = said.map(|said| Bytes::from(said.to_string())).unwrap_or_default();
        // The path holds an id that others gave.
        client::ask(to, request.body(Full::new(body)).context("this cannot be asked for")?).await
    }
}

fn bail_after(within: Duration) -> Result<client::Answer> {
    bail!("no answer within {within:?}")
}

/// JSON as JSON, anything else as text.
fn readable(answer: &client::Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| answer.text().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_with_a_port_and_no_path_is_taken() {
        assert_eq!("http://127.0.0.1:80/".parse::<CoordinatorUrl>().unwrap().to_string(), "http://127.0.0.1:80");
        for text in ["https://a:1", "127.0.0.1:80", "http://127.0.0.1", "http://a:1/path", ""] {
            assert!(text.parse::<CoordinatorUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn steps_are_read_from_among_other_lines() {
        let step = Step { status: Some(200), answer: serde_json::json!({"status": "ok"}), ..Step::new("heartbeat") };
        let output = format!("a log line\n{}\n{{}}\n", serde_json::to_string(&step).unwrap());
        assert_eq!(Step::all_in(&output), [step]);
    }
}
