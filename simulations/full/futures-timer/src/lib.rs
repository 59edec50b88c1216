//! `futures-timer` over tokio's clock: all timers of libp2p follow virtual time.
//!
//! It wakes whom the original wakes, and nobody else. In particular a `Delay` that has fired forgets who waited: reset without being
//! polled again, it wakes nobody when it fires the next time. Gossipsub's heartbeat stalls on that (libp2p-gossipsub 0.50.1), and a
//! simulation that hid it would be of no use.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

static MADE: AtomicU64 = AtomicU64::new(0);

/// How many delays this process has made: none means that libp2p is built with the original.
pub fn delays_made() -> u64 {
    MADE.load(Ordering::Relaxed)
}

/// Ready when its time has come.
pub struct Delay(Pin<Box<Sleep>>);

impl Delay {
    /// Ready after `duration`. Only within a tokio runtime.
    pub fn new(duration: Duration) -> Self {
        MADE.fetch_add(1, Ordering::Relaxed);
        Self(Box::pin(tokio::time::sleep(duration)))
    }

    /// Ready `duration` from now instead. Who was waiting goes on waiting, unless it had fired already.
    pub fn reset(&mut self, duration: Duration) {
        // A tokio timer keeps its waker over a reset, and gives it away when it fires: so does the original.
        let deadline = tokio::time::sleep(duration).deadline();
        self.0.as_mut().reset(deadline);
    }
}

impl Future for Delay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A tokio timer also takes in the waker of a poll that finds it fired, and would wake it after the next reset. The original
        // does not, so neither may this: what has fired is not polled, or made anew.
        if self.0.is_elapsed() {
            return Poll::Ready(());
        }
        ready!(self.0.as_mut().poll(cx));
        let deadline = self.0.deadline();
        self.0.set(tokio::time::sleep_until(deadline));
        Poll::Ready(())
    }
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delay").field("deadline", &self.0.deadline()).finish()
    }
}
