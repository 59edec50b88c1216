//! Looks after the services: which of them are up. What it finds goes into the node's signed record, so that requests go
//! elsewhere, and into the log, so that somebody does something about it.
//!
//! One failure is an accident: a service is down after two in a row, and up after one success.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_process::patience::{Patience, Say};
use hedgerow_proto::record::ServiceHealth;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::service_spec::HealthPath;
use crate::services::{LocalService, LocalServices};

/// How often a service that is up is looked at.
const INTERVAL_UP: Duration = Duration::from_secs(5);
/// How often one that has just failed, or is down: it should be back in business quickly.
const INTERVAL_FAILING: Duration = Duration::from_secs(1);
/// The second look at the start, when nothing is known yet.
const INTERVAL_UNKNOWN: Duration = Duration::from_millis(300);
/// How long the answer of a health path may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the failures and successes so far come to. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    state: Option<ServiceHealth>,
    failures_in_row: u32,
}

impl Verdict {
    /// Failures in a row that make a service down.
    pub const FAILURES_TO_BE_DOWN: u32 = 2;

    /// Takes one outcome in; says the new state if it has changed.
    pub fn observe(&mut self, succeeded: bool) -> Option<ServiceHealth> {
        self.failures_in_row = if succeeded { 0 } else { self.failures_in_row.saturating_add(1) };
        let state = match self.failures_in_row {
            0 => ServiceHealth::Up,
            failures if failures >= Self::FAILURES_TO_BE_DOWN => ServiceHealth::Down,
            _ => return None,
        };
        (self.state.replace(state) != Some(state)).then_some(state)
    }

    /// Whether anything is known yet.
    pub fn is_known(&self) -> bool {
        self.state.is_some()
    }

    fn next_look(&self) -> Duration {
        match (self.state, self.failures_in_row) {
            (None, _) => INTERVAL_UNKNOWN,
            (Some(ServiceHealth::Up), 0) => INTERVAL_UP,
            _ => INTERVAL_FAILING,
        }
    }
}

/// Why a probe failed, in words for the operator.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("it takes no connection: {0}")]
    Connect(std::io::Error),
    #[error("GET {path} was not answered: {error}")]
    Http { path: String, error: hyper::Error },
    #[error("GET {path} was not answered within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout { path: String },
    #[error("GET {path} was answered {status}")]
    Status { path: String, status: http::StatusCode },
}

/// Watches one service for ever; `known` is called once it is known to be up or down.
pub async fn watch(services: &LocalServices, service: &LocalService, known: impl FnOnce()) {
    let origin = Instant::now();
    let (mut verdict, mut patience, mut known) = (Verdict::default(), Patience::default(), Some(known));
    loop {
        // No free slot and no outcome: it is at work, which is as good as an answer.
        let outcome = probe(service).await.unwrap_or(Ok(()));
        let change = verdict.observe(outcome.is_ok());
        if let Some(state) = change {
            services.set_health(service, state, outcome.as_ref().err().map(ToString::to_string));
        }
        say(service, &verdict, &mut patience, &outcome, origin.elapsed());
        if verdict.is_known()
            && let Some(known) = known.take()
        {
            known();
        }
        tokio::select! {
            () = tokio::time::sleep(verdict.next_look()) => {}
            // A request has just met a closed door. The pause keeps a storm of them from being one of probes.
            () = service.doubted.notified(), if verdict.next_look() == INTERVAL_UP => {}
        }
    }
}

fn say(
    service: &LocalService,
    verdict: &Verdict,
    patience: &mut Patience,
    outcome: &Result<(), ProbeError>,
    now: Duration,
) {
    let (name, url) = (&service.spec.name, &service.spec.address);
    match (verdict.state, outcome) {
        (Some(ServiceHealth::Up), Ok(())) => {
            if let Say::WorksAgain(after) = patience.worked(now) {
                info!(service = %name, down_for_s = after.as_secs(), "the service is up again");
            }
        }
        (Some(ServiceHealth::Down), Err(error)) => match patience.failed(now) {
            Say::Fails => warn!(
                service = %name, %url, %error,
                "the service is down: requests go to other nodes until it answers. Start it, or correct its address"
            ),
            Say::StillFails(after) => warn!(
                service = %name, %url, %error, down_for_s = after.as_secs(),
                "the service is still down"
            ),
            Say::WorksAgain(_) | Say::Nothing => {}
        },
        _ => {}
    }
}

/// One look. `None`: its slots are all taken, or a request wanted the one that the probe had.
async fn probe(service: &LocalService) -> Option<Result<(), ProbeError>> {
    match &service.spec.health {
        None => Some(service.connect().await.map(drop).map_err(ProbeError::Connect)),
        Some(path) => service.probe_in_slot(ask(service, path)).await,
    }
}

async fn ask(service: &LocalService, health: &HealthPath) -> Result<(), ProbeError> {
    let path = || health.as_str().to_owned();
    let stream = service.connect().await.map_err(ProbeError::Connect)?;
    let http = |error| ProbeError::Http { path: path(), error };
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let request = http::Request::get(health.as_str())
            .header(http::header::HOST, service.spec.address.authority())
            .header(http::header::USER_AGENT, concat!("hedgerow-node/", env!("CARGO_PKG_VERSION")))
            .header(http::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| ProbeError::Status { path: path(), status: http::StatusCode::BAD_REQUEST })?;
        let answer = sender.send_request(request);
        tokio::pin!(answer, connection);
        tokio::select! {
            biased;
            response = &mut answer => response.map_err(http),
            closed = &mut connection => {
                closed.map_err(http)?;
                answer.await.map_err(http)
            }
        }
    };
    let response = timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| ProbeError::Timeout { path: path() })??;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(ProbeError::Status { path: path(), status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_an_accident_and_two_are_not() {
        let mut verdict = Verdict::default();
        assert_eq!(verdict.observe(true), Some(ServiceHealth::Up));
        assert_eq!(verdict.observe(false), None);
        assert_eq!(verdict.observe(true), None);
        assert_eq!(verdict.observe(false), None);
        assert_eq!(verdict.observe(false), Some(ServiceHealth::Down));
        assert_eq!(verdict.observe(false), None);
        assert_eq!(verdict.observe(true), Some(ServiceHealth::Up));
    }

    #[test]
    fn nothing_is_known_before_the_second_failure() {
        let mut verdict = Verdict::default();
        assert_eq!(verdict.observe(false), None);
        assert!(!verdict.is_known());
        assert_eq!(verdict.observe(false), Some(ServiceHealth::Down));
        assert!(verdict.is_known());
    }
}
