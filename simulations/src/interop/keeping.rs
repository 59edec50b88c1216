//! What a node keeps on its disk: that it is enough to find the others again without an entry, and what becomes of the node when the disk
//! loses it, changes it, or takes nothing more.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use super::{Check, must};
use crate::client::load::{Load, Plan, Target, reasons};
use crate::client::{ask_socket, get};
use crate::federation::mesh::{Mesh, agree};
use crate::federation::{Lab, Node, NodeSpec, READY_WITHIN};
use crate::service::Kind;
use crate::terminal::human;

/// Until what a node that has just started knows is on its disk: it is written after 5 s, and whenever it ends in good order.
const STORED_WITHIN: Duration = Duration::from_secs(20);
/// Without an entry: three seconds of waiting for it, and then as with one.
const FOUND_WITHIN: Duration = Duration::from_secs(15);
/// Until it is written what a full disk had not taken: what has changed is written every minute.
const TRIED_AGAIN_WITHIN: Duration = Duration::from_secs(90);
/// How often files, logs and sockets of other processes are looked at, while they are waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Starts that are ended by SIGKILL at some moment or other.
const KILLS: u64 = 24;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "mesh-without-entry",
            "a coordinator that is killed and starts while the entry is gone finds the others by what it has on disk",
            &[],
            without_entry,
        ),
        Check::new(
            "damaged-files",
            "torn, flipped and misplaced files are named and set aside, and the node starts from its neighbours",
            &[],
            damaged,
        ),
        Check::new(
            "killed-while-writing",
            "a node that is killed at any moment of its start has whole files, and nothing piles up beside them",
            &[],
            killed,
        ),
        Check::new(
            "full-disk",
            "a full disk is said once, stops no request at node or entry, and is said again when it is over",
            &["bash"],
            full_disk,
        )
        .takes_up_to(Duration::from_secs(240)),
    ]
}

fn files_of(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted) {
            found.push(path);
        }
    }
    Ok(found)
}

fn is_kept(name: &str) -> bool {
    (name == "epoch" || name == "entries" || name.starts_with("registry-")) && !name.contains(".corrupt-")
}

/// Waits until a node has put on its disk what it knows.
async fn stored(lab: &Lab, node: &Node) -> Result<()> {
    let stored = || Ok(files_of(&lab.data_dir(node.name()), is_kept)?.len() == 3);
    until(STORED_WITHIN, stored).await.with_context(|| format!("{} has not stored what it knows", node.name()))
}

/// Waits until a node has put its registry on its disk since then.
async fn stored_since(lab: &Lab, node: &Node, since: SystemTime) -> Result<()> {
    let is_newer = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).is_ok_and(|at| at > since);
    let is_registry = |name: &str| is_kept(name) && name.starts_with("registry-");
    let stored = || Ok(files_of(&lab.data_dir(node.name()), is_registry)?.iter().any(is_newer));
    until(STORED_WITHIN, stored).await.with_context(|| format!("{} has not stored its registry anew", node.name()))
}

async fn until(within: Duration, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !holds()? {
        must!(begin.elapsed() < within, "not after {within:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Waits until a node that no entry has told of itself is connected to so many others.
async fn finds(node: &Node, others: u64) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        // Over its socket, which it does not have in its first moments.
        let status = ask_socket(&node.control_socket(), get("/status")).await.map(|answer| answer.json());
        let connected = status.ok().and_then(|status| status["mesh"][0]["coordinators"].as_u64());
        if connected >= Some(others) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > FOUND_WITHIN {
            bail!("{} is connected to {connected:?} others after {FOUND_WITHIN:?}", node.name());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn without_entry(lab: Arc<Lab>) -> Result<String> {
    let mut mesh = Mesh::start(&lab, &[], 3, &[]).await?;
    for node in &mesh.coordinators {
        stored(&lab, node).await?;
    }
    // What it has on disk then knows the others.
    let last = mesh.coordinators.len() - 1;
    mesh.coordinators[last].process.signal(Signal::TERM)?;
    mesh.coordinators[last].process.exited(READY_WITHIN).await?;
    let since = SystemTime::now();
    mesh.start_again(last).await?;
    stored_since(&lab, &mesh.coordinators[last], since).await?;
    mesh.entry.process.kill();
    let id = mesh.coordinators[last].id.clone();
    mesh.coordinators[last].start_again()?;
    let took = finds(&mesh.coordinators[last], 2).await?;
    let status = mesh.coordinators[last].status().await?;
    must!(status["node_id"].as_str() == Some(&*id), "it is another node now");
    mesh.coordinators[last].listen =
        Some(status["listen"].as_str().context("it listens nowhere")?.parse().context("no address")?);
    let equal = agree(&mesh.own_ports()?, FOUND_WITHIN, |_| true).await?;
    Ok(format!("connected to both others {} after its start, equal registries {} later", human(took), human(equal)))
}

/// What a disk does to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Empty,
    Torn,
    Flipped,
    Directory,
}

impl Damage {
    fn to(self, path: &Path) -> Result<()> {
        let length = path.metadata()?.len();
        let file = std::fs::File::options().read(true).write(true).open(path)?;
        match self {
            Self::Empty => file.set_len(0)?,
            Self::Torn => file.set_len(length * 2 / 3)?,
            Self::Flipped => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, length / 2)?;
                file.write_all_at(&[byte[0] ^ 0x10], length / 2)?;
            }
            Self::Directory => {
                std::fs::remove_file(path)?;
                std::fs::create_dir(path)?;
            }
        }
        Ok(())
    }
}

async fn damaged(lab: Arc<Lab>) -> Result<String> {
    let mut mesh = Mesh::start(&lab, &[], 2, &[]).await?;
    stored(&lab, &mesh.coordinators[1]).await?;
    let directory = lab.data_dir(mesh.coordinators[1].name());
    let id = mesh.coordinators[1].id.clone();
    let mut count = 0;
    for damage in [Damage::Empty, Damage::Torn, Damage::Flipped, Damage::Directory] {
        let victim = &mesh.coordinators[1];
        victim.process.signal(Signal::TERM)?;
        victim.process.exited(READY_WITHIN).await?;
        let files = files_of(&directory, is_kept)?;
        must!(files.len() == 3, "it keeps {files:?}");
        for file in &files {
            damage.to(file)?;
        }
        let said_before = victim.process.log().len();
        mesh.start_again(1).await.with_context(|| format!("{damage:?}"))?;
        let log = mesh.coordinators[1].process.log();
        let said = log.get(said_before..).unwrap_or_default();
        for file in &files {
            let name = file.display().to_string();
            must!(said.contains(&format!("{name}.corrupt-")), "{damage:?}: {name} is not named in the log:\n{said}");
        }
        count += files.len();
        must!(mesh.coordinators[1].id == id, "{damage:?}: it is another node now");
    }
    let aside = files_of(&directory, |name| name.contains(".corrupt-"))?.len();
    must!(aside == count, "{aside} of {count} damaged files were set aside");
    // The one file that cannot be done without.
    let (key, victim) = (directory.join("identity.key"), &mut mesh.coordinators[1]);
    victim.process.kill();
    let whole = std::fs::read(&key)?;
    std::fs::write(&key, &whole[..whole.len() / 2])?;
    victim.start_again()?;
    let status = victim.process.exited(READY_WITHIN).await?;
    must!(status.code() == Some(1), "with half a key it ended with {status}");
    must!(std::fs::read(&key)? == whole[..whole.len() / 2], "half a key was written over");
    std::fs::write(&key, &whole)?;
    mesh.start_again(1).await?;
    must!(mesh.coordinators[1].id == id, "with its key it is another node");
    Ok(format!(
        "{count} files set aside, each named in the log; with half a key it does not start, and leaves it as it is"
    ))
}

async fn killed(lab: Arc<Lab>) -> Result<String> {
    let mut mesh = Mesh::start(&lab, &[], 2, &[]).await?;
    stored(&lab, &mesh.coordinators[1]).await?;
    let directory = lab.data_dir(mesh.coordinators[1].name());
    let id = mesh.coordinators[1].id.clone();
    for kill in 0..KILLS {
        mesh.coordinators[1].start_again()?;
        // Not for anything: it is the moment that is tried, each time another one.
        tokio::time::sleep(Duration::from_millis(7 + 13 * kill)).await;
        mesh.coordinators[1].process.kill();
    }
    mesh.start_again(1).await?;
    must!(mesh.coordinators[1].id == id, "it is another node now");
    let log = mesh.coordinators[1].process.log();
    must!(!log.contains("damaged"), "a file was damaged:\n{}", mesh.coordinators[1].process.log_tail(20));
    let left = files_of(&directory, |name| name.ends_with(".tmp") || name.contains(".corrupt-"))?;
    must!(left.is_empty(), "there is left over: {left:?}");
    Ok(format!("{KILLS} kills within {} ms of a start: all files whole, nothing left over", 7 + 13 * KILLS))
}

/// From now on no file of this process grows beyond so much, as on a full disk. Of the limit that may be raised again.
fn files_grow_to(node: &Node, bytes: Option<u64>) -> Result<()> {
    let pid = Pid::from_raw(node.process.pid());
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).context("its limit cannot be set")?;
    Ok(())
}

fn said(node: &Node, words: &str) -> usize {
    node.process.log().lines().filter(|line| line.contains(words)).count()
}

async fn full_disk(lab: Arc<Lab>) -> Result<String> {
    let mesh = Mesh::start(&lab, &[], 1, &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    // Its log is no regular file, which would grow as little as the others.
    let node =
        lab.node(NodeSpec::both("node").offers("kit", kit.listen, 64).outlives_file_limits(), &mesh.entry).await?;
    files_grow_to(&node, Some(0))?;
    let path = "/service/kit/hello".to_owned();
    let target = Target { label: "GET", method: "GET", path, body: Default::default(), expected: "hello", weight: 1 };
    let rest = Duration::from_millis(10);
    let load = Load::start(Plan { to: mesh.entry.http, targets: vec![target], clients: 4, rest, total: None });
    let waits_for = async |words: &str, within: Duration| -> Result<Duration> {
        let begin = Instant::now();
        while said(&node, words) == 0 {
            must!(node.process.is_running(), "the node has ended\n{}", node.process.log_tail(20));
            must!(begin.elapsed() < within, "after {within:?} its log has no {words:?}\n{}", node.process.log_tail(20));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(begin.elapsed())
    };
    waits_for("is not on disk", TRIED_AGAIN_WITHIN).await?;
    // Whatever it tries to write begins as a file of another name beside.
    let tried = || anyhow::Ok(lab.data_dir(node.name()).metadata()?.modified()?);
    let before = tried()?;
    until(TRIED_AGAIN_WITHIN, || Ok(tried()? != before)).await.context("it does not try to write again")?;
    files_grow_to(&node, None)?;
    let again = waits_for("is on disk again", TRIED_AGAIN_WITHIN).await?;
    must!(said(&node, "is not on disk") == 1, "it is said again and again\n{}", node.process.log_tail(20));
    let samples = load.stop().await;
    let failed = reasons(&samples);
    must!(failed.is_empty() && !samples.is_empty(), "requests failed meanwhile: {failed:?}");
    Ok(format!(
        "said once, over {} after there was room; {} requests meanwhile, none failed",
        human(again),
        samples.len()
    ))
}
