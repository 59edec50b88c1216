//! One key, one process: what becomes of a node whose data directory was copied.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{Check, must};
use crate::client::until;
use crate::federation::mesh::Mesh;
use crate::federation::{Lab, Node, NodeSpec, READY_WITHIN};
use crate::service::Kind;
use crate::terminal::human;

/// How long two processes may contend for one key before one gives way.
const DECIDED_WITHIN: Duration = Duration::from_secs(90);

pub(super) fn checks() -> Vec<Check> {
    vec![Check::new(
        "mesh-clone",
        "of two processes with one key one stops and says that the key is in use elsewhere, and the other one serves",
        &[],
        clone,
    )]
}

/// Copies the plain files of a directory: not its sockets.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        if file.file_type()?.is_file() {
            std::fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    Ok(())
}

async fn clone(lab: Arc<Lab>) -> Result<String> {
    let mesh = Mesh::start(&lab, &[], 2, &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let spec = |name: &str| NodeSpec::both(name).offers("kit", kit.listen, 16);
    let mut original = lab.node(spec("original"), &mesh.entry).await?;
    original.process.signal(Signal::TERM)?;
    original.process.exited(READY_WITHIN).await?;
    copy(&lab.data_dir("original"), &lab.data_dir("copy"))?;
    original.start_again()?;
    let copy = lab.start_node(spec("copy"), &[&mesh.entry])?;
    let begin = Instant::now();
    let (stopped, goes_on): (&Node, &Node) = loop {
        match (original.process.exit_status()?, copy.process.exit_status()?) {
            (Some(_), None) => break (&original, &copy),
            (None, Some(_)) => break (&copy, &original),
            (Some(_), Some(_)) => bail!("both have stopped after {:?}", begin.elapsed()),
            (None, None) if begin.elapsed() > DECIDED_WITHIN => bail!("both still run after {DECIDED_WITHIN:?}"),
            (None, None) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let took = begin.elapsed();
    let status = stopped.process.exited(READY_WITHIN).await?;
    must!(!status.success() && status.code().is_some(), "it stopped with {status}");
    let log = stopped.process.log();
    must!(log.contains("in use elsewhere"), "its log has no such words:\n{}", stopped.process.log_tail(10));
    until(mesh.entry.http, "/service/kit/hello", READY_WITHIN, |answer| answer.status == 200)
        .await
        .context("the one that goes on does not serve")?;
    must!(goes_on.process.is_running(), "the other one has stopped as well");
    Ok(format!("{} stopped after {} ({status}); the other one serves", stopped.name(), human(took)))
}
