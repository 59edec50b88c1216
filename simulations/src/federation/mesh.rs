//! An entry with coordinators, and whether they agree: each of them is a door to the same registry.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Entry, Lab, Node, NodeSpec, READY_WITHIN};
use crate::client::{ask, get};

/// How often the doors are looked at while they differ.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// An entry, and coordinators that have joined by it.
#[derive(Debug)]
pub struct Mesh {
    /// The entry.
    pub entry: Entry,
    /// The coordinators; each has a port of its own.
    pub coordinators: Vec<Node>,
}

impl Mesh {
    /// Starts the entry and as many coordinators, with these arguments, and waits until all know all.
    pub async fn start(lab: &Arc<Lab>, entry: &[&str], coordinators: usize, extra: &[&str]) -> Result<Self> {
        let entry = lab.entry("entry", entry).await?;
        let mut mesh = Self { entry, coordinators: Vec::new() };
        for number in 1..=coordinators {
            let spec = NodeSpec::coordinator(&format!("coordinator-{number}")).extra(extra);
            mesh.coordinators.push(lab.start_node(spec, &[&mesh.entry])?);
        }
        for coordinator in &mut mesh.coordinators {
            coordinator.joined().await?;
        }
        mesh.agree(READY_WITHIN).await?;
        Ok(mesh)
    }

    /// Where each coordinator listens.
    pub fn own_ports(&self) -> Result<Vec<SocketAddr>> {
        self.coordinators.iter().map(Node::own_port).collect()
    }

    /// The entry's address, and then the coordinators' own.
    pub fn doors(&self) -> Result<Vec<SocketAddr>> {
        let own = self.own_ports()?;
        Ok(std::iter::once(self.entry.http).chain(own).collect())
    }

    /// Waits until the entry and all coordinators have equal registries, in which all coordinators are there. How long it took.
    pub async fn agree(&self, within: Duration) -> Result<Duration> {
        let ids: BTreeSet<&str> = self.coordinators.iter().map(|node| &*node.id).collect();
        agree(&self.doors()?, within, |registry| super::nodes_up(registry).is_superset(&ids)).await
    }

    /// Starts a coordinator again, and waits until it has joined and all agree.
    pub async fn start_again(&mut self, index: usize) -> Result<()> {
        let coordinator = self.coordinators.get_mut(index).context("no such coordinator")?;
        coordinator.start_again()?;
        coordinator.joined().await?;
        self.agree(READY_WITHIN).await?;
        Ok(())
    }
}

/// Waits until all doors show equal registries that are as wanted. How long it took.
pub async fn agree(doors: &[SocketAddr], within: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let mut shown = Vec::new();
        for door in doors {
            shown.push(match ask(*door, get("/mesh/registry")).await {
                Ok(answer) => answer.json(),
                Err(error) => Value::String(format!("{error:#}")),
            });
        }
        let digests: Vec<Option<&str>> = shown.iter().map(|registry| registry["digest"].as_str()).collect();
        let equal = digests.first().is_some_and(|first| first.is_some() && digests.iter().all(|other| other == first));
        if equal && shown.iter().all(&wanted) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > within {
            bail!("after {within:?} the registries are {digests:?}; they show {}", summary(&shown));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// How many nodes are up at each door.
fn summary(shown: &[Value]) -> String {
    let up = shown.iter().map(|registry| format!("{} nodes up", super::nodes_up(registry).len()));
    up.collect::<Vec<_>>().join(", ")
}
