//! An agent of the existing contract beside a federation: a process that registers over plain HTTP and has an address of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::{Entry, Lab, READY_WITHIN, bound};
use crate::agent::Step;
use crate::process::{Launch, Process};

/// An agent that has registered and serves.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub process: Process,
    /// The id that it was registered under.
    pub worker_id: String,
    /// The services that it was assigned.
    pub services: Vec<String>,
    /// Where its own HTTP is.
    pub listen: SocketAddr,
}

impl Lab {
    /// Starts an agent, which calls itself `name`, and waits until it has registered and serves.
    pub async fn agent(&self, name: &str, entry: &Entry, extra: &[&str]) -> Result<Agent> {
        let process = Launch::new(name, &self.binaries.sim)
            .args(["agent", "--worker-id", name, "--coordinator", &entry.url()])
            .args(extra)
            .ready_file(&self.workdir)
            .start(&self.workdir)?;
        let ready = process.ready(READY_WITHIN).await?;
        let worker_id = ready["worker_id"].as_str().context("an agent without an id")?.to_owned();
        let names = ready["services"].as_array().into_iter().flatten().filter_map(|name| name.as_str());
        let services = names.map(str::to_owned).collect();
        Ok(Agent { worker_id, services, listen: bound(&ready, "listen")?, process })
    }
}

impl Agent {
    /// What it has done, and what it was told.
    pub fn steps(&self) -> Vec<Step> {
        Step::all_in(&self.process.log())
    }

    /// Asks it to end, which is to unregister first, and waits until it has.
    pub async fn leave(&self, within: Duration) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.exited(within).await?;
        anyhow::ensure!(status.success(), "{} ended with {status}\n{}", self.process.name(), self.process.log_tail(20));
        Ok(())
    }
}
