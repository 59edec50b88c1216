//! The clock of this crate: the only place that reads one. It is tokio's, so that a paused runtime pauses it.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// Time since this process first asked: the same origin on every thread.
pub fn now() -> Duration {
    let origin = *ORIGIN.get_or_init(Instant::now);
    Instant::now().saturating_duration_since(origin)
}
