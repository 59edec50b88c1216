//! What a service has seen: how many requests ran, how many at once, which of them were cut off, and which ran twice.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde::{Deserialize, Serialize};

/// The evidence, as JSON at `/evidence`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Requests whose head arrived.
    pub started: u64,
    /// Requests answered to the end.
    pub completed: u64,
    /// Requests whose connection went away before that.
    pub cancelled: u64,
    /// Requests at this moment.
    pub running: u64,
    /// The most requests there ever were at once.
    pub running_max: u64,
    /// How often each request ran that named itself by `?key=`.
    pub runs: BTreeMap<String, u64>,
}

/// Keeps the evidence.
#[derive(Debug, Default)]
pub struct Ledger {
    evidence: Mutex<Evidence>,
}

impl Ledger {
    /// A copy of what is known.
    pub fn evidence(&self) -> Evidence {
        self.lock().clone()
    }

    /// A request's head has arrived.
    pub fn begin(self: &Arc<Self>, key: Option<&str>) -> Run {
        let mut evidence = self.lock();
        evidence.started += 1;
        evidence.running += 1;
        evidence.running_max = evidence.running_max.max(evidence.running);
        if let Some(key) = key {
            *evidence.runs.entry(key.to_owned()).or_default() += 1;
        }
        Run { ledger: self.clone(), completed: false }
    }

    fn lock(&self) -> MutexGuard<'_, Evidence> {
        // Counters cannot be left half-written.
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that runs. Dropped before it is completed, it was cut off.
#[derive(Debug)]
pub struct Run {
    ledger: Arc<Ledger>,
    completed: bool,
}

impl Run {
    /// Where it is written down.
    pub fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }

    /// It was answered to the end.
    pub fn complete(&mut self) {
        self.completed = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut evidence = self.ledger.lock();
        evidence.running -= 1;
        if self.completed {
            evidence.completed += 1;
        } else {
            evidence.cancelled += 1;
        }
    }
}

/// A body that tells the ledger when its last byte was taken.
#[derive(Debug)]
pub struct Watched<B> {
    body: B,
    run: Option<Run>,
    left_bytes: Option<u64>,
}

impl<B: Body<Data = Bytes>> Watched<B> {
    /// Ends `run` with `body`, which is `length` bytes long if that is known: the server asks for no more than that, and so never
    /// hears of the body's end.
    pub fn new(body: B, run: Run, length: Option<u64>) -> Self {
        let ended = body.is_end_stream();
        let mut watched = Self { left_bytes: length.or(body.size_hint().exact()), body, run: Some(run) };
        if ended {
            watched.end();
        }
        watched
    }

    /// Before the last byte is on its way, so that whoever has it finds the slot free.
    fn end(&mut self) {
        if let Some(mut run) = self.run.take() {
            run.complete();
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let ended = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) => {
                let taken = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.left_bytes = self.left_bytes.map(|left| left.saturating_sub(taken));
                self.left_bytes == Some(0) || self.body.is_end_stream()
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if ended {
            self.end();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_before_its_end_was_cancelled() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.begin(Some("a"));
        let mut second = ledger.begin(Some("a"));
        second.complete();
        drop(second);
        drop(first);
        let evidence = ledger.evidence();
        assert_eq!((evidence.started, evidence.completed, evidence.cancelled, evidence.running), (2, 1, 1, 0));
        assert_eq!(evidence.running_max, 2);
        assert_eq!(evidence.runs["a"], 2);
    }
}
