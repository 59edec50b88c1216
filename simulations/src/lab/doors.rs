//! The registries that coordinators have, asked at each one's own port, from inside its namespace: looking is no traffic on the lines.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::netns::Namespace;
use super::people::{Node, People, own_port};
use super::world::World;
use crate::client::{self, Answer, Sent, ask_on, get, post};

/// How often registries are looked at while they differ.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// One that does not answer for so long stands still.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A registration is answered once two neighbours have it.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);

/// A coordinator's own port, on a connection that is kept.
pub(super) struct Door<'a> {
    /// Whose.
    pub(super) node: &'a Node,
    namespace: &'a Namespace,
    connection: Option<SendRequest<Sent>>,
}

impl<'a> Door<'a> {
    /// Of this node.
    pub(super) fn of(node: &'a Node, world: &'a World) -> Result<Self> {
        Ok(Self { node, namespace: world.host(&node.member.name)?, connection: None })
    }

    async fn ask(&mut self, request: Request<Sent>, within: Duration) -> Result<Answer> {
        let mut connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(kept) => kept,
            None => client::speak_over(self.namespace.connect(own_port())?).await?,
        };
        let asked = timeout(within, ask_on(&mut connection, own_port(), request)).await;
        let answer = asked.with_context(|| format!("{} does not answer", self.node.member.name))??;
        self.connection = Some(connection);
        Ok(answer)
    }

    /// The agents that it knows.
    pub(super) async fn agents(&mut self) -> Result<BTreeSet<String>> {
        let answer = self.ask(get("/api/admin/workers"), ANSWER_WITHIN).await?;
        let listed = answer.json();
        let workers = listed["workers"].as_array().with_context(|| format!("no list: {}", answer.summary()))?;
        Ok(workers.iter().filter_map(|worker| worker["worker_id"].as_str().map(str::to_owned)).collect())
    }

    /// An agent registers here.
    pub(super) async fn register(&mut self, agent: &str) -> Result<()> {
        let said = json!({ "worker_id": agent, "worker_type": "cpu", "capabilities": {} }).to_string();
        let answer = self.ask(post("/api/worker/register", said), REGISTER_WITHIN).await?;
        ensure!(answer.status == 200, "a registration was answered {}", answer.summary());
        Ok(())
    }

    /// An agent leaves here.
    pub(super) async fn unregister(&mut self, agent: &str) -> Result<()> {
        let request = client::request("DELETE", &format!("/api/worker/unregister/{agent}"), bytes::Bytes::new());
        let answer = self.ask(request, REGISTER_WITHIN).await?;
        ensure!(answer.status == 200, "an agent that left was answered {}", answer.summary());
        Ok(())
    }
}

/// Waits until all coordinators that run, and the entry, have equal registries: each has its own record, so each knows all others. To
/// be called from where clients are. How long that took.
pub(super) async fn agree(people: &People, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let mut digests = Vec::new();
        for node in people.coordinators() {
            let shown = timeout(ANSWER_WITHIN, node.on_the_mesh()).await;
            digests.push(shown.ok().and_then(Result::ok).map(|shown| shown["digest"].clone()));
        }
        let shown = timeout(ANSWER_WITHIN, client::ask(People::door(), get("/mesh/registry"))).await;
        digests.push(shown.ok().and_then(Result::ok).map(|shown| shown.json()["digest"].clone()));
        let known: BTreeSet<String> = digests.iter().flatten().map(Value::to_string).collect();
        if known.len() == 1 && digests.iter().flatten().count() == digests.len() {
            return Ok(began.elapsed());
        }
        if began.elapsed() > within {
            let silent = digests.iter().filter(|digest| digest.is_none()).count();
            bail!("after {within:?} there are {} different registries, and {silent} do not answer", known.len());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
