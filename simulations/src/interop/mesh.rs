//! The coordinators' mesh: one registry, which stays one while coordinators come, go and die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::json;

use super::contract::known;
use super::{Check, must};
use crate::client::{ask, post};
use crate::federation::mesh::{Mesh, agree};
use crate::federation::{Lab, Node, NodeSpec, READY_WITHIN};
use crate::terminal::human;

/// Equal within 2 s or 3 s is what is promised of a machine that does nothing else.
const AGREE_WITHIN: Duration = Duration::from_secs(15);
/// Until coordinators notice that one of them is silent.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "mesh-agrees",
            "three coordinators have equal registries right after the last join, and so have ten",
            &[],
            agrees,
        ),
        Check::new(
            "mesh-catches-up",
            "a coordinator that was down, or away, catches up from its neighbours, without the entry too",
            &[],
            catches_up,
        ),
        Check::new(
            "mesh-wiped",
            "a coordinator that has lost all but its key is back in the mesh in seconds",
            &[],
            wiped,
        ),
    ]
}

async fn agrees(lab: Arc<Lab>) -> Result<String> {
    let mut mesh = Mesh::start(&lab, &[], 2, &[]).await?;
    let mut figures = Vec::new();
    for count in [3, 10] {
        while mesh.coordinators.len() < count - 1 {
            join(&lab, &mut mesh).await?;
        }
        mesh.agree(READY_WITHIN).await?;
        join(&lab, &mut mesh).await?;
        let doors = mesh.own_ports()?;
        let begin = Instant::now();
        let ids: BTreeSet<&str> = mesh.coordinators.iter().map(|node| &*node.id).collect();
        let all = |registry: &serde_json::Value| crate::federation::nodes_up(registry).is_superset(&ids);
        let took = agree(&doors, AGREE_WITHIN, all).await.with_context(|| format!("{count} coordinators"))?;
        mesh.agree(AGREE_WITHIN).await.context("the entry")?;
        figures.push(format!(
            "{count} agree {} after the last join, with the entry {}",
            human(took),
            human(begin.elapsed())
        ));
    }
    Ok(figures.join("; "))
}

async fn join(lab: &Arc<Lab>, mesh: &mut Mesh) -> Result<()> {
    let spec = NodeSpec::coordinator(&format!("coordinator-{}", mesh.coordinators.len() + 1));
    let mut node = lab.start_node(spec, &[&mesh.entry])?;
    node.joined().await?;
    mesh.coordinators.push(node);
    Ok(())
}

/// Something that changes the registry: agents that register at one coordinator's own port.
async fn agents(at: &Node, ids: &[String]) -> Result<()> {
    for id in ids {
        let said = json!({ "worker_id": id, "worker_type": "cpu", "capabilities": {} }).to_string();
        let answer = ask(at.own_port()?, post("/api/worker/register", said)).await?;
        must!(answer.status == 200, "a registration was answered {}", answer.summary());
    }
    Ok(())
}

fn names(of: &str) -> Vec<String> {
    (0..20).map(|number| format!("agent-{of}-{number}")).collect()
}

async fn knows(node: &Node, ids: &[String]) -> Result<()> {
    let known = known(node.own_port()?).await?;
    let missing: Vec<_> = ids.iter().filter(|id| !known.contains(*id)).collect();
    must!(missing.is_empty(), "{} does not know {missing:?}", node.name());
    Ok(())
}

async fn catches_up(lab: Arc<Lab>) -> Result<String> {
    let mut mesh = Mesh::start(&lab, &[], 3, &[]).await?;
    // Down, and started again.
    mesh.coordinators[2].process.kill();
    let missed = names("while-down");
    agents(&mesh.coordinators[0], &missed).await?;
    mesh.coordinators[2].start_again()?;
    mesh.coordinators[2].joined().await?;
    let after_start = agree(&mesh.own_ports()?, AGREE_WITHIN, |_| true).await.context("after its start")?;
    knows(&mesh.coordinators[2], &missed).await?;
    mesh.agree(AGREE_WITHIN).await?;

    // Away until the others have given it up, and the entry gone for good.
    let away = &mesh.coordinators[2];
    away.process.signal(Signal::STOP)?;
    let stopped = Instant::now();
    mesh.entry.process.kill();
    let missed = names("while-away");
    agents(&mesh.coordinators[0], &missed).await?;
    for neighbour in &mesh.coordinators[..2] {
        loop {
            let coordinators = neighbour.on_the_mesh().await?["coordinators"].as_u64();
            if coordinators == Some(1) {
                break;
            }
            if stopped.elapsed() > NOTICED_WITHIN {
                bail!("{} is still connected to {coordinators:?} others", neighbour.name());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let given_up = stopped.elapsed();
    away.process.signal(Signal::CONT)?;
    let after_waking = agree(&mesh.own_ports()?, AGREE_WITHIN, |_| true).await.context("after it woke")?;
    knows(away, &missed).await?;
    Ok(format!(
        "20 agents missed: equal {} after it was ready again; 20 more without an entry, given up after {}: equal {} after it woke",
        human(after_start),
        human(given_up),
        human(after_waking)
    ))
}

async fn wiped(lab: Arc<Lab>) -> Result<String> {
    let mut mesh = Mesh::start(&lab, &[], 3, &[]).await?;
    agents(&mesh.coordinators[0], &names("known")).await?;
    mesh.agree(AGREE_WITHIN).await?;
    let wiped = &mesh.coordinators[2];
    wiped.process.kill();
    let (directory, id) = (lab.data_dir(wiped.name()), wiped.id.clone());
    let mut lost = 0;
    for file in std::fs::read_dir(&directory)? {
        let file = file?;
        if file.file_name() != "identity.key" {
            std::fs::remove_file(file.path())?;
            lost += 1;
        }
    }
    must!(lost >= 2, "it had only {lost} files beside its key: the check proves nothing");
    let begin = Instant::now();
    mesh.coordinators[2].start_again()?;
    mesh.coordinators[2].joined().await?;
    must!(mesh.coordinators[2].id == id, "it is another node now");
    mesh.agree(AGREE_WITHIN).await?;
    let took = begin.elapsed();
    knows(&mesh.coordinators[2], &names("known")).await?;
    Ok(format!("{lost} files lost, its key kept: equal registries {} after its start", human(took)))
}
