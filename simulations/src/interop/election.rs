//! Nodes that become coordinators because there are too few, with nobody to tell them to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Check, must};
use crate::federation::{Entry, Lab, Node, NodeSpec};
use crate::service::Kind;
use crate::terminal::human;

/// How many coordinators a federation aims at.
const WANTED: usize = 3;
/// The entry is silent for 15 s, a candidate waits for 15 to 25 s more, and the last of three may be told late.
const ELECTED_WITHIN: Duration = Duration::from_secs(100);
/// The lease of one that was killed runs for 60 s, and then the same begins again.
const REPLACED_WITHIN: Duration = Duration::from_secs(150);
/// Both, and what is round them.
const WHOLE: Duration = Duration::from_secs(300);

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "mesh-election",
            "of four nodes that nobody made coordinators three become so, and all four go on working",
            &[],
            election,
        ),
        Check::new(
            "mesh-election-again",
            "the fourth takes the place of an elected coordinator that was killed",
            &[],
            election_again,
        )
        .takes_up_to(WHOLE),
    ]
}

/// An entry and four nodes that may be elected, three of which were.
struct Elected {
    entry: Entry,
    nodes: Vec<Node>,
    _service: crate::federation::Service,
    took: Duration,
}

impl Elected {
    async fn start(lab: &Arc<Lab>) -> Result<Self> {
        let entry = lab.entry("entry", &[]).await?;
        let service = lab.service("kit", Kind::Kit).await?;
        let begin = Instant::now();
        let mut nodes = Vec::new();
        for number in 1..=WANTED + 1 {
            let spec = NodeSpec::auto(&format!("node-{number}")).offers("kit", service.listen, 16);
            nodes.push(lab.node(spec, &entry).await?);
        }
        let mut elected = Self { entry, nodes, _service: service, took: Duration::ZERO };
        elected.until_there_are(WANTED, None, ELECTED_WITHIN).await?;
        elected.took = begin.elapsed();
        Ok(elected)
    }

    /// The nodes that are there as coordinators and workers both.
    async fn both(&self) -> Result<BTreeSet<String>> {
        let registry = self.entry.get("/mesh/registry").await?.json();
        let there = |node: &&Value| node["roles"] == "both" && node["state"] == "up";
        let nodes = registry["coordinators"].as_array().context("a registry without coordinators")?;
        Ok(nodes.iter().filter(there).filter_map(|node| node["node_id"].as_str().map(str::to_owned)).collect())
    }

    /// Waits until so many are elected, this one not among them, and fails when there are more.
    async fn until_there_are(&self, wanted: usize, but: Option<&str>, within: Duration) -> Result<BTreeSet<String>> {
        let begin = Instant::now();
        loop {
            let mut both = self.both().await?;
            if let Some(but) = but {
                both.remove(but);
            }
            must!(both.len() <= wanted, "{} nodes are coordinators: {both:?}", both.len());
            if both.len() == wanted {
                return Ok(both);
            }
            if begin.elapsed() > within {
                bail!("after {within:?} {} of {wanted} are coordinators: {both:?}", both.len());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn serves(&self) -> Result<()> {
        for node in self.nodes.iter().filter(|node| node.process.is_running()) {
            let answer = self.entry.get(&format!("/service/~{}/kit/hello", node.id)).await?;
            must!(answer.status == 200, "{} does not work any more: {}", node.name(), answer.summary());
        }
        Ok(())
    }
}

async fn election(lab: Arc<Lab>) -> Result<String> {
    let elected = Elected::start(&lab).await?;
    elected.serves().await?;
    Ok(format!("3 of 4 elected {} after the first one was started; all 4 still work", human(elected.took)))
}

async fn election_again(lab: Arc<Lab>) -> Result<String> {
    let elected = Elected::start(&lab).await?;
    let before = elected.both().await?;
    let victim = elected.nodes.iter().find(|node| before.contains(&node.id)).context("no coordinator is ours")?;
    victim.process.kill();
    let begin = Instant::now();
    let after = elected.until_there_are(WANTED, Some(&victim.id), REPLACED_WITHIN).await?;
    elected.serves().await?;
    let new = after.difference(&before).count();
    must!(new == 1, "{new} are new: {before:?} became {after:?}");
    Ok(format!(
        "elected {}; one killed: the fourth took its place after {}",
        human(elected.took),
        human(begin.elapsed())
    ))
}
