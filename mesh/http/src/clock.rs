//! The clock of this crate: the only place that reads one. It is tokio's, so that a paused runtime pauses it.

use std::sync::OnceLock;
use std::time::Duration;

use hedgerow_proto::clock::Time;
use tokio::time::Instant;

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// Time since this process first asked: the same origin on every thread.
pub fn now() -> Duration {
    let origin = *ORIGIN.get_or_init(Instant::now);
    Instant::now().saturating_duration_since(origin)
}

/// The same moment, as the state machines want to be told it.
pub(crate) fn time() -> Time {
    Time::from_origin(now())
}
