//! Watches a busy tunnel at the entry ([`liveness::Watchdog`]): SUSPECT is quick and reversible. It only stops new requests and
//! sends idempotent ones elsewhere. Closing is slow.

use std::sync::Arc;

use hedgerow_proto::clock::Time;
use hedgerow_proto::liveness::{self, Look};
use tokio::time::{Instant, sleep_until};

use crate::accept::{Liveness, Shared};

pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    dog: liveness::Watchdog,
    began: Instant,
    /// How often it was asked whether it hears us.
    asked: u64,
}

impl Watchdog {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, dog: liveness::Watchdog::default(), began: Instant::now(), asked: 0 }
    }

    fn now(&self) -> Time {
        Time::from_origin(self.began.elapsed())
    }

    /// Waits for the next look at a busy tunnel, and looks. A number is a ping to send. Cancel-safe.
    pub(crate) async fn tick(&mut self) -> Option<u64> {
        let at = match self.dog.poll_timeout() {
            Some(at) => at,
            None => {
                while !self.shared.is_watched() {
                    self.shared.became_busy.notified().await;
                }
                self.dog.watch(self.now(), self.shared.link.received())
            }
        };
        sleep_until(self.began + at.since_origin()).await;
        let link = &self.shared.link;
        match self.dog.look(self.now(), link.received(), link.rtt(), self.shared.is_watched()) {
            // We hear it, and it did not answer a request: does it hear us? Its pings say nothing of that, its Pong does. (A router
            // can lose one direction; packets of the node would then undo each suspicion.)
            Look::Heard if self.shared.is_suspect() => {
                self.asked += 1;
                return Some(self.asked);
            }
            Look::Heard => self.shared.came(),
            Look::Ask(number) => return Some(number),
            Look::Wait => {}
            Look::Suspect => self.shared.raise(Liveness::Suspect),
        }
        None
    }
}
