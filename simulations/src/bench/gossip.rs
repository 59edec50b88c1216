//! `hedgerow-sim bench gossip`: how long news takes to reach all coordinators, and the end of one to be noticed, beside serf. Both are up
//! at once, on loopback, and take turns: ABBA. No latency, so it is mostly each one's own pauses that are measured.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures_util::future::{try_join, try_join_all};
use hyper::client::conn::http1::SendRequest;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::serf::Cluster;
use crate::binaries::Binaries;
use crate::client::load::quantile;
use crate::client::{Answer, Sent, ask_on, ask_socket, connect, get, post};
use crate::federation::{Entry, Lab, Node, NodeSpec};
use crate::interop::peers::installed;
use crate::terminal::{human, say};

/// How long anything may take that ought to come about.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(180);
/// How often a coordinator is asked what it knows: the resolution of what is said of ours.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub(super) struct Measure {
    /// Agents of each side; may be repeated
    #[arg(long, default_values_t = [20, 40], value_parser = clap::value_parser!(u16).range(3..=200))]
    agents: Vec<u16>,
    /// Changes at each side
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=1000))]
    changes: u32,
    /// How many of each side are killed, one after the other
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=20))]
    kills: u32,
}

/// A side: many that tell each other what is new.
pub(super) trait Gossips {
    /// How many run.
    fn len(&self) -> usize;
    /// Says something new at one of them, another one each time; how long until all had heard of it.
    async fn change(&mut self) -> Result<Duration>;
    /// Kills one; how long until all had noticed.
    async fn kill(&mut self) -> Result<Duration>;
}

/// Measures and prints a table in Markdown.
pub(super) async fn run(measure: &Measure) -> Result<()> {
    if !installed("serf") {
        bail!("serf is needed: it is what is beside (apt-get install serf)");
    }
    let binaries = Binaries::beside_this_one()?;
    say("| agents | what | times | hedgerow p50 | p99 | serf p50 | p99 |\n|--:|---|--:|--:|--:|--:|--:|");
    for size in &measure.agents {
        let size = usize::from(*size);
        // Fewer than are killed would be nobody.
        ensure!(measure.kills as usize + 2 < size, "of {size} agents {} cannot be killed", measure.kills);
        let lab = Lab::new(&binaries)?;
        let (mut ours, mut serf) = try_join(Coordinators::start(&lab, size), Cluster::start(&lab, size)).await?;
        let (mut changes, mut tags) = (Both::default(), Vec::new());
        for turn in 0..measure.changes {
            if turn.is_multiple_of(2) {
                changes.ours.push(ours.change().await?);
                changes.others.push(serf.change().await?);
            } else {
                changes.others.push(serf.change().await?);
                changes.ours.push(ours.change().await?);
            }
            tags.push(serf.change_tag().await?);
        }
        changes.row(size, "a new record; a user event, not gathered");
        Both { ours: changes.ours, others: tags }.row(size, "a new record; a change of tags");
        let (mut neighbours, mut kills) = (Vec::new(), Both::default());
        for _ in 0..measure.kills {
            kills.ours.push(ours.kill().await?);
            neighbours.push(ours.neighbours_noticed);
            kills.others.push(serf.kill().await?);
        }
        if measure.kills > 0 {
            Both { ours: neighbours, others: Vec::new() }.row(size, "one is killed: its neighbours know");
            kills.row(size, "one is killed: all know");
        }
        ensure!(ours.len() == serf.len(), "not as many are left of both");
    }
    Ok(())
}

/// What was measured at both sides.
#[derive(Debug, Default)]
struct Both {
    ours: Vec<Duration>,
    others: Vec<Duration>,
}

impl Both {
    fn row(&self, size: usize, what: &str) {
        let of = |times: &Vec<Duration>, share: f64| match times.len() {
            0 => "–".to_owned(),
            _ => human(quantile(&mut times.clone(), share)),
        };
        let figures = [&self.ours, &self.others].map(|times| format!("{} | {}", of(times, 0.5), of(times, 0.99)));
        say(format!("| {size} | {what} | {} | {} |", self.ours.len(), figures.join(" | ")));
    }
}

/// Our coordinators, with the entry by which they found each other.
struct Coordinators {
    nodes: Vec<Node>,
    doors: Vec<Door>,
    _entry: Entry,
    said: usize,
    /// After the last one was killed, until nobody was connected to it any more.
    neighbours_noticed: Duration,
}

/// One's own port, and its control socket.
struct Door {
    at: SocketAddr,
    connection: SendRequest<Sent>,
    socket: PathBuf,
}

impl Coordinators {
    /// Starts so many, and waits until each knows all.
    async fn start(lab: &Arc<Lab>, size: usize) -> Result<Self> {
        let entry = lab.entry("entry", &[]).await?;
        let mut nodes = Vec::new();
        for number in 0..size {
            nodes.push(lab.start_node(NodeSpec::coordinator(&format!("coordinator-{number}")), &[&entry])?);
        }
        let mut doors = Vec::new();
        for node in &mut nodes {
            node.joined().await?;
            let at = node.own_port()?;
            doors.push(Door { at, connection: connect(at).await?, socket: node.control_socket() });
        }
        let mut coordinators = Self { nodes, doors, _entry: entry, said: 0, neighbours_noticed: Duration::ZERO };
        let known = coordinators.all(|door| door.until("/health", move |health| health["coordinators"] == size));
        // One that is no neighbour counts from its next lease on.
        timeout(GIVE_UP_AFTER, known).await.context("the coordinators did not find each other")??;
        Ok(coordinators)
    }

    /// Waits until something is so at each.
    async fn all<'a, F: Future<Output = Result<()>>>(&'a mut self, one: impl Fn(&'a mut Door) -> F) -> Result<()> {
        try_join_all(self.doors.iter_mut().map(one)).await.map(drop)
    }
}

impl Gossips for Coordinators {
    fn len(&self) -> usize {
        self.nodes.len()
    }

    async fn change(&mut self) -> Result<Duration> {
        self.said += 1;
        let agent = format!("agent-{:06}", self.said);
        let said = json!({ "worker_id": agent, "worker_type": "cpu", "capabilities": {} }).to_string();
        let at = self.doors[self.said % self.doors.len()].at;
        let mut line = connect(at).await?;
        let registering = async {
            let answer = ask_on(&mut line, at, post("/api/worker/register", said)).await?;
            ensure!(answer.status == 200, "a registration was answered {}", answer.summary());
            Ok(())
        };
        let agent = &*agent;
        let began = Instant::now();
        let known = self.all(|door| door.until("/api/admin/workers", move |listed| lists(listed, agent)));
        timeout(GIVE_UP_AFTER, try_join(registering, known)).await.context("not all heard of a new record")??;
        Ok(began.elapsed())
    }

    async fn kill(&mut self) -> Result<Duration> {
        let (killed, _) = (self.nodes.pop().context("nobody is left")?, self.doors.pop());
        let left = self.nodes.len();
        let id = &*killed.id;
        let began = Instant::now();
        killed.process.kill();
        let noticed = self.all(|door| door.until_not_connected(id));
        timeout(GIVE_UP_AFTER, noticed).await.context("its neighbours did not notice that one was killed")??;
        self.neighbours_noticed = began.elapsed();
        let noticed = self.all(|door| door.until("/health", move |health| health["coordinators"] == left));
        timeout(GIVE_UP_AFTER, noticed).await.context("not all noticed that one was killed")??;
        Ok(began.elapsed())
    }
}

fn lists(listed: &Value, agent: &str) -> bool {
    listed["workers"].as_array().is_some_and(|workers| workers.iter().any(|worker| worker["worker_id"] == agent))
}

impl Door {
    async fn ask(&mut self, target: &str) -> Result<Answer> {
        // It is kept, but not for ever.
        if self.connection.is_closed() {
            self.connection = connect(self.at).await?;
        }
        ask_on(&mut self.connection, self.at, get(target)).await
    }

    /// Asks until the answer is as wanted.
    async fn until(&mut self, target: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        while !wanted(&self.ask(target).await?.json()) {
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Asks until it is not connected to that node.
    async fn until_not_connected(&mut self, node: &str) -> Result<()> {
        loop {
            let status = ask_socket(&self.socket, get("/status")).await?.json();
            let peers = status["mesh"][0]["peers"].as_array().into_iter().flatten();
            let connected: BTreeSet<&str> = peers.filter_map(|peer| peer["node_id"].as_str()).collect();
            if !connected.contains(node) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}
