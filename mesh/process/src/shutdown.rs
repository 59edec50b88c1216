//! The end of the process: the first SIGINT or SIGTERM asks it to drain, the second one to stop at once.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How far the process is on its way out. Only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves.
    Running,
    /// It takes nothing new and finishes what it has.
    Draining,
    /// It drops what it has.
    Stopping,
}

/// The stage of this process, for every thread and runtime of it: cheap to clone, and anybody may move it on.
#[derive(Debug, Clone)]
pub struct Shutdown {
    stage: Arc<watch::Sender<Stage>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Running)) }
    }
}

impl Shutdown {
    /// One that no signal moves: for tests, and for what is stopped by its owner.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGINT and SIGTERM move on, each of them by one stage. Listens on a task of the current tokio runtime, which
    /// therefore has to be the one that lives longest.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let moved = shutdown.clone();
        tokio::spawn(async move {
            while moved.stage() < Stage::Stopping {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                };
                match moved.advance() {
                    Stage::Running => {}
                    Stage::Draining => tracing::info!(signal = name, "draining; the next signal stops at once"),
                    Stage::Stopping => tracing::warn!(signal = name, "stopping at once"),
                }
            }
        });
        Ok(shutdown)
    }

    /// The stage now.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Resolves once the process drains or stops. May be dropped and called again.
    pub async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    /// Resolves once the process stops at once.
    pub async fn stopping(&self) {
        self.reached(Stage::Stopping).await;
    }

    /// Asks for a drain, if nobody has.
    pub fn drain(&self) {
        self.move_to(Stage::Draining);
    }

    /// Asks for an end at once.
    pub fn stop(&self) {
        self.move_to(Stage::Stopping);
    }

    /// Moves on by one stage, as a signal does, and returns the new one.
    pub fn advance(&self) -> Stage {
        match self.stage() {
            Stage::Running => self.drain(),
            Stage::Draining | Stage::Stopping => self.stop(),
        }
        self.stage()
    }

    async fn reached(&self, stage: Stage) {
        // The sender lives as long as `self`, so there is always somebody to wait for.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    fn move_to(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let moves = *now < stage;
            if moves {
                *now = stage;
            }
            moves
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_one_stops() {
        let shutdown = Shutdown::new();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.draining().await }
        });
        assert_eq!(shutdown.advance(), Stage::Draining);
        waiting.await.unwrap();
        shutdown.drain();
        assert_eq!(shutdown.stage(), Stage::Draining, "asking twice for a drain is not a stop");
        assert_eq!(shutdown.advance(), Stage::Stopping);
        shutdown.stopping().await;
        shutdown.drain();
        assert_eq!(shutdown.stage(), Stage::Stopping, "there is no way back");
    }
}
