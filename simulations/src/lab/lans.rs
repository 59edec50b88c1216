//! Who shares a LAN, and whether they are connected there.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use super::people::{Node, People};

/// How often it is looked at while some are not.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What a node says of a peer that it found on its LAN.
const FOUND: &str = "found on the LAN";

/// What a node says of the peers that it shares a LAN with and that it should be connected to: of a coordinator the other coordinators, of
/// a worker its home. Null of one that is not connected.
async fn said(people: &People) -> Result<Vec<Value>> {
    let mut said = Vec::new();
    for node in people.nodes.iter().filter(|node| node.member.lan.is_some()) {
        let shown = node.on_the_mesh().await?;
        let home = shown["home"].as_str().unwrap_or_default();
        let wanted = |other: &&Node| match node.member.role.coordinates() {
            true => other.member.role.coordinates() && other.id != node.id,
            false => other.id == home,
        };
        let beside = people.nodes.iter().filter(|other| other.member.lan == node.member.lan).filter(wanted);
        let mut count = 0;
        for other in beside {
            let mut peers = shown["peers"].as_array().into_iter().flatten();
            said.push(peers.find(|peer| peer["node_id"] == *other.id).cloned().unwrap_or_default());
            count += 1;
        }
        if count == 0 {
            // A worker without a home: it lacks one.
            said.push(Value::Null);
        }
    }
    Ok(said)
}

fn is_direct(peer: &Value) -> bool {
    peer["path"].as_str().is_some_and(|path| path.starts_with("direct"))
}

/// Waits until all who share a LAN are connected directly; how long that took.
pub(super) async fn meet(people: &People, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let said = said(people).await?;
        let direct = said.iter().filter(|peer| is_direct(peer)).count();
        if direct == said.len() {
            return Ok(began.elapsed());
        }
        if began.elapsed() > within {
            bail!("only {direct} of {} ends are direct", said.len());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// How many say that they found another one on their LAN.
pub(super) async fn found(people: &People) -> Result<usize> {
    Ok(said(people).await?.iter().filter(|peer| peer["why"] == FOUND).count())
}
