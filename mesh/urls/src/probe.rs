//! Whether a guest may be asked: `GET /health` at its URL, by the same guarded way that requests take.
//!
//! One failure is an accident: a guest that was up is down after two in a row, and up again after one success.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_contract::url::UrlTarget;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::dial::Dialler;
use crate::why_not::WhyNot;

/// How often a guest that answers is looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// How soon after the first failure of a guest that was up: a second one puts it down.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// How soon after the first failure of one that is down; then twice as long each time, up to [`INTERVAL`]. Agents register
/// before they serve, a moment apart, and a new tunnel's name takes seconds to be known.
const INTERVAL_FAILING: Duration = Duration::from_millis(250);
/// How long the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the probes so far come to. Pure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    up: bool,
    failures_in_row: u32,
}

impl Verdict {
    const FAILURES_TO_BE_DOWN: u32 = 2;

    /// Takes one outcome in, and says whether the guest may be asked.
    pub(crate) fn observe(&mut self, succeeded: bool) -> bool {
        self.failures_in_row = if succeeded { 0 } else { self.failures_in_row.saturating_add(1) };
        self.up = succeeded || (self.up && self.failures_in_row < Self::FAILURES_TO_BE_DOWN);
        self.up
    }

    /// Whether the last probe has succeeded.
    pub(crate) fn is_well(&self) -> bool {
        self.up && self.failures_in_row == 0
    }

    /// Until the next probe.
    pub(crate) fn next_look(&self) -> Duration {
        match self.failures_in_row.checked_sub(1) {
            None => INTERVAL,
            Some(_) if self.up => SECOND_LOOK,
            Some(doublings) => INTERVAL_FAILING.saturating_mul(1 << doublings.min(16)).min(INTERVAL),
        }
    }
}

/// Asks once, and says how long it took to connect.
pub(crate) async fn probe(dialler: &Dialler, url: &UrlTarget) -> Result<Duration, WhyNot> {
    let began = Instant::now();
    let stream = dialler.dial(url).await?;
    let took = began.elapsed();
    let status = timeout(ANSWER_TIMEOUT, ask(stream, url)).await.map_err(|_| WhyNot::Silent)?.map_err(|error| {
        debug!(host = url.host, %error, "a guest did not answer its probe");
        WhyNot::NoHttp
    })?;
    // A redirect is no success: nobody goes where it leads.
    if status.is_success() { Ok(took) } else { Err(WhyNot::Unhealthy(status.as_u16())) }
}

async fn ask(stream: hedgerow_tunnel::BoxIo, url: &UrlTarget) -> Result<http::StatusCode, AskError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::get(format!("{}/health", url.path_prefix))
        .header(http::header::HOST, url.authority())
        .header(http::header::USER_AGENT, concat!("hedgerow/", env!("CARGO_PKG_VERSION")))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let response = tokio::select! {
        biased;
        response = &mut answer => response?,
        closed = &mut connection => {
            closed?;
            answer.await?
        }
    };
    Ok(response.status())
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_an_accident_and_two_are_not_and_one_success_is_enough() {
        let mut verdict = Verdict::default();
        assert!(verdict.observe(true) && verdict.is_well());
        assert!(verdict.observe(false) && !verdict.is_well());
        assert!(!verdict.observe(false));
        assert!(verdict.observe(true) && verdict.is_well());
    }

    #[test]
    fn who_was_never_up_is_not_asked_after_one_failure() {
        let mut verdict = Verdict::default();
        assert!(!verdict.observe(false));
        assert!(verdict.observe(true));
    }

    #[test]
    fn who_fails_is_looked_at_soon_and_then_ever_less_often() {
        let mut verdict = Verdict::default();
        assert_eq!(verdict.next_look(), INTERVAL);
        let looks: Vec<u128> = (0..40)
            .map(|_| {
                verdict.observe(false);
                verdict.next_look().as_millis()
            })
            .collect();
        assert_eq!(looks[..9], [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(looks.last(), Some(&30_000));
        verdict.observe(true);
        verdict.observe(false);
        assert_eq!(verdict.next_look(), SECOND_LOOK);
    }
}
