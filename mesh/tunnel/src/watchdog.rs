//! Watches a busy tunnel at the entry: from a node that is alive something comes all the time, if only acknowledgements.
//!
//! SUSPECT is quick and reversible: it only stops new requests and sends idempotent ones elsewhere. Closing is slow.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::accept::{Liveness, Shared};
use crate::tuning;

pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    /// The counter at the last look, and since when it has stood still.
    received: u64,
    still_since: Option<Instant>,
    next_look: Option<Instant>,
    ping: u64,
}

impl Watchdog {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, received: 0, still_since: None, next_look: None, ping: 0 }
    }

    /// Waits for the next look at a busy tunnel, and looks. A number is a ping to send. Cancel-safe.
    pub(crate) async fn tick(&mut self) -> Option<u64> {
        let at = match self.next_look {
            Some(at) => at,
            None => {
                while !self.shared.is_watched() {
                    self.shared.became_busy.notified().await;
                }
                self.received = self.shared.link.received();
                self.still_since = None;
                *self.next_look.insert(Instant::now() + tuning::WATCHDOG_INTERVAL)
            }
        };
        sleep_until(at).await;
        self.next_look = self.shared.is_watched().then(|| Instant::now() + tuning::WATCHDOG_INTERVAL);
        self.look(Instant::now())
    }

    fn look(&mut self, now: Instant) -> Option<u64> {
        let received = self.shared.link.received();
        if received != self.received {
            self.received = received;
            self.still_since = None;
            self.shared.heard();
            return None;
        }
        // A connection at rest is silent by right: ask first, and count from the question.
        let since = *self.still_since.get_or_insert(now);
        let patience = tuning::SUSPECT_AFTER.saturating_sub(tuning::WATCHDOG_INTERVAL);
        if now.duration_since(since) >= patience.max(self.shared.link.rtt() * 4) {
            self.shared.raise(Liveness::Suspect);
        }
        let asked_lately = now.duration_since(since) > Duration::ZERO;
        if asked_lately {
            return None;
        }
        self.ping += 1;
        Some(self.ping)
    }
}
