//! Another implementation of libp2p in the mesh: stock js-libp2p, by way of the entry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{Check, must};
use crate::client::{ask, post};
use crate::federation::Lab;
use crate::federation::mesh::Mesh;
use crate::process::Launch;
use crate::terminal::human;

const PACKAGE: &str = include_str!("../../peers/js/package.json");
const PACKAGE_LOCK: &str = include_str!("../../peers/js/package-lock.json");
const PEER: &str = include_str!("../../peers/js/peer.mjs");

/// A hundred small packages from the registry, on a line that is busy.
const INSTALL_WITHIN: Duration = Duration::from_secs(180);
/// Gossipsub takes a peer into its mesh with a heartbeat, once a second.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// How often there is something new to hear.
const NEWS_EVERY: Duration = Duration::from_millis(500);

pub(super) fn checks() -> Vec<Check> {
    let check = Check::new(
        "mesh-js",
        "stock js-libp2p dials a coordinator through the entry, is identified, and checks the signatures of the records that it hears",
        &["node", "npm"],
        js,
    );
    vec![check.takes_up_to(INSTALL_WITHIN + 3 * HEARD_WITHIN)]
}

async fn js(lab: Arc<Lab>) -> Result<String> {
    let directory = lab.workdir.path().join("js");
    std::fs::create_dir(&directory)?;
    for (name, text) in [("package.json", PACKAGE), ("package-lock.json", PACKAGE_LOCK), ("peer.mjs", PEER)] {
        std::fs::write(directory.join(name), text)?;
    }
    let install = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])
        .current_dir(&directory)
        .kill_on_drop(true)
        .output();
    let installed = tokio::time::timeout(INSTALL_WITHIN, install).await.context("npm takes too long")??;
    must!(installed.status.success(), "npm said {}", String::from_utf8_lossy(&installed.stderr));

    let mesh = Mesh::start(&lab, &[], 2, &["--mesh-listen", "off"]).await?;
    let federation = mesh.entry.ready["federation"].as_str().context("an entry without a federation")?;
    let begin = Instant::now();
    let peer = Launch::new("js-peer", "node")
        .arg(directory.join("peer.mjs"))
        .args([&format!("/ip4/127.0.0.1/tcp/{}/ws", mesh.entry.http.port()), federation, "2"])
        .ends_by_itself()
        .start(&lab.workdir)?;
    // Something is said at both, until the peer has heard of it.
    let mut said = 0;
    let ended = loop {
        if let Some(status) = peer.exit_status()? {
            break status;
        }
        must!(begin.elapsed() < HEARD_WITHIN, "the peer has not heard both coordinators:\n{}", peer.log());
        if peer.log().contains("subscribed") {
            said += 1;
            for node in &mesh.coordinators {
                let id = format!("agent-{}-{said}", node.name());
                let body = json!({ "worker_id": id, "worker_type": "cpu", "capabilities": {} }).to_string();
                let answer = ask(node.own_port()?, post("/api/worker/register", body)).await?;
                must!(answer.status == 200, "a registration was answered {}", answer.summary());
            }
        }
        tokio::time::sleep(NEWS_EVERY).await;
    };
    let took = begin.elapsed();
    let lines: Vec<Value> = peer.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    must!(ended.success(), "the peer ended with {ended}:\n{}", peer.log());
    let agent = lines.iter().find_map(|line| line["agent"].as_str()).context("nobody was identified")?;
    must!(agent.starts_with("hedgerow/"), "it met {agent}");
    let ping = lines.iter().find_map(|line| line["ping_ms"].as_u64()).context("no ping was answered")?;
    let records = lines.iter().filter(|line| line["record"].is_object()).count();
    let writers: BTreeSet<&str> = lines.iter().filter_map(|line| line["record"]["writer"].as_str()).collect();
    let known: BTreeSet<&str> = mesh.coordinators.iter().map(|node| &*node.id).collect();
    must!(writers == known, "of {known:?} it heard {writers:?}");
    Ok(format!("identified {agent}, ping {ping} ms, {records} records of two writers verified, {}", human(took)))
}
