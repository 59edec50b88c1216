//! Somebody who listens to the event stream, and begins again when it breaks, as browsers do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::client::{begin, get};

/// What it heard.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Heard {
    /// Events.
    pub(super) events: usize,
    /// How often it had to begin again.
    pub(super) reconnects: usize,
    /// The longest time without an event.
    #[serde(serialize_with = "super::verdict::as_milliseconds")]
    pub(super) longest_gap: Duration,
}

/// It, while it listens.
#[derive(Debug)]
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) fn start(entry: SocketAddr) -> Self {
        let heard = Arc::<Mutex<Heard>>::default();
        let task = tokio::spawn(listen(entry, heard.clone()));
        Self { heard, task }
    }

    /// For those who watch.
    pub(super) fn seen(&self) -> Arc<Mutex<Heard>> {
        self.heard.clone()
    }

    pub(super) fn stop(self) -> Heard {
        self.task.abort();
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn listen(entry: SocketAddr, heard: Arc<Mutex<Heard>>) {
    let mut last = Instant::now();
    loop {
        if let Ok(mut response) = begin(entry, get("/service/events/")).await
            && response.status() == 200
        {
            while let Some(Ok(frame)) = response.body_mut().frame().await {
                let text = frame.into_data().unwrap_or_default();
                let events = text.windows(6).filter(|window| window == b"data: ").count();
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.events += events;
                heard.longest_gap = heard.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            heard.lock().unwrap_or_else(PoisonError::into_inner).reconnects += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
