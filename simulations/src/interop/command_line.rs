//! Mistakes of the person who starts a process: a clear error, the right exit code, and nothing half-done.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Check, must};
use crate::federation::{Lab, NodeSpec, READY_WITHIN};
use crate::process::{Launch, Process};
use crate::service::Kind;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("wrong-flag", "a wrong flag is named and ends the process with code 2", &[], wrong_flag),
        Check::new(
            "unknown-key",
            "an unknown key of a configuration file is an error that names the nearest one",
            &[],
            unknown_key,
        ),
        Check::new("port-in-use", "a port that is in use is said, with the port", &[], port_in_use),
        Check::new(
            "unreachable-entry",
            "a node whose entry is not there keeps trying, says so seldom, and joins once it is",
            &[],
            unreachable_entry,
        ),
        Check::new(
            "data-dir-in-use",
            "a second node in the same data directory ends with a clear error",
            &[],
            data_dir_in_use,
        ),
        Check::new("corrupt-key", "a corrupt key is an error and is never overwritten", &[], corrupt_key),
    ]
}

/// Starts it, waits for its end, and returns the exit code and what it said.
async fn fails(lab: &Lab, launch: Launch) -> Result<(i32, String)> {
    let process: Process = launch.start(&lab.workdir)?;
    let status = process.exited(READY_WITHIN).await?;
    must!(!status.success(), "it should have failed and said\n{}", process.log());
    Ok((status.code().unwrap_or(-1), process.log()))
}

fn says(log: &str, words: &[&str]) -> Result<()> {
    for word in words {
        must!(log.contains(word), "the error does not say {word:?}:\n{log}");
    }
    must!(!log.contains("panicked"), "it panicked:\n{log}");
    Ok(())
}

async fn wrong_flag(lab: Arc<Lab>) -> Result<String> {
    for (name, program) in [("entry", &lab.binaries.entry), ("node", &lab.binaries.node)] {
        let arguments: &[&str] = if name == "entry" {
            &["--lisen", "127.0.0.1:0"]
        } else {
            &["join", "http://127.0.0.1:1", "--servise", "x"]
        };
        let (code, log) = fails(&lab, Launch::new(name, program).args(arguments)).await?;
        must!(code == 2, "{name} ended with {code}\n{log}");
        says(&log, &[arguments[arguments.len() - 2]])?;
    }
    let bad =
        Launch::new("bad-service", &lab.binaries.node).args(["join", "http://127.0.0.1:1", "--service", "no-url"]);
    let (code, log) = fails(&lab, bad).await?;
    must!(code == 2, "a bad --service ended with {code}\n{log}");
    says(&log, &["no-url"])?;
    Ok("both binaries end with code 2 and name the flag".to_owned())
}

async fn unknown_key(lab: Arc<Lab>) -> Result<String> {
    let path = lab.workdir.path().join("wrong.toml");
    std::fs::write(&path, "lisen = \"127.0.0.1:0\"\n")?;
    let launch = Launch::new("entry", &lab.binaries.entry).arg("--config").arg(&path);
    let (code, log) = fails(&lab, launch).await?;
    says(&log, &["lisen", "listen"])?;
    must!(code == 2, "the entry ended with {code}\n{log}");
    std::fs::write(&path, "data_di = \"x\"\n")?;
    let launch = Launch::new("node", &lab.binaries.node).args(["join", "http://127.0.0.1:1", "--config"]).arg(&path);
    let (code, log) = fails(&lab, launch).await?;
    must!(code == 2, "the node ended with {code}\n{log}");
    says(&log, &["data_di", "data"])?;
    Ok("both binaries name the key and the nearest one".to_owned())
}

async fn port_in_use(lab: Arc<Lab>) -> Result<String> {
    let first = lab.entry("entry-1", &[]).await?;
    let anywhere = "127.0.0.1:0";
    let http = first.http.to_string();
    let command =
        lab.entry_command("entry-2").args(["--listen", &http, "--tunnel-listen", anywhere, "--admin-listen", anywhere]);
    let (_, log) = fails(&lab, command).await?;
    says(&log, &[&http])?;
    let tunnel = first.tunnel.to_string();
    let command = lab.entry_command("entry-3").args([
        "--listen",
        anywhere,
        "--tunnel-listen",
        &tunnel,
        "--admin-listen",
        anywhere,
    ]);
    let (_, log) = fails(&lab, command).await?;
    says(&log, &[&tunnel])?;
    let answer = first.get("/health").await?;
    must!(answer.status == 200, "the first entry was harmed: {}", answer.summary());
    Ok("named for the HTTP port and the tunnel port; the first entry goes on".to_owned())
}

async fn unreachable_entry(lab: Arc<Lab>) -> Result<String> {
    // An entry that was there, so that its port is free.
    let mut entry = lab.entry("entry", &[]).await?;
    let service = lab.service("hello", Kind::Hello).await?;
    entry.process.kill();
    let mut node = lab.start_node(NodeSpec::worker("worker").offers("hello", service.listen, 4), &[&entry])?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    must!(node.process.is_running(), "the node gave up\n{}", node.process.log());
    let log = node.process.log();
    let address = entry.http.to_string();
    let lines =
        log.lines().filter(|line| line.contains(&address) && (line.contains("WARN") || line.contains("ERROR"))).count();
    must!(lines >= 1, "the node does not say that it cannot reach {address}\n{log}");
    must!(lines <= 3, "the node says it {lines} times in 4 s\n{log}");
    entry.start_again()?;
    entry.process.ready(READY_WITHIN).await?;
    let begin = std::time::Instant::now();
    node.joined().await?;
    Ok(format!("said {lines} times in 4 s; joined {:.1} s after the entry was there", begin.elapsed().as_secs_f64()))
}

async fn data_dir_in_use(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let first = lab.node(NodeSpec::coordinator("worker"), &entry).await?;
    let directory = lab.data_dir("worker");
    let launch = Launch::new("second", &lab.binaries.node)
        .args(["join", &entry.url(), "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&directory);
    let (_, log) = fails(&lab, launch).await?;
    says(&log, &[&directory.display().to_string(), "in use"])?;
    must!(first.process.is_running(), "the first node was harmed");
    Ok("the second node names the directory and ends; the first goes on".to_owned())
}

async fn corrupt_key(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let node = lab.node(NodeSpec::coordinator("worker"), &entry).await?;
    node.process.kill();
    let key = std::fs::read_dir(lab.data_dir("worker"))?
        .flatten()
        .map(|file| file.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("key")))
        .ok_or_else(|| anyhow::anyhow!("no key in the data directory"))?;
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&key)?.permissions().mode() & 0o777;
    must!(mode == 0o600, "the key's mode is {mode:o}");
    std::fs::write(&key, "not a key")?;
    let launch = Launch::new("again", &lab.binaries.node)
        .args(["join", &entry.url(), "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(lab.data_dir("worker"));
    let (_, log) = fails(&lab, launch).await?;
    says(&log, &[&key.display().to_string()])?;
    must!(std::fs::read(&key)? == b"not a key", "the corrupt key was overwritten");
    Ok("named, mode 600, left as it was".to_owned())
}
