//! Coordinators that nobody can dial: they are in the mesh by way of the entry, and are reached there by nobody whom they do not want.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::homes::settled;
use super::https::{certificates, curl};
use super::{Check, must};
use crate::federation::mesh::Mesh;
use crate::federation::{Lab, Node, NodeSpec, READY_WITHIN, bound};
use crate::process::Launch;
use crate::service::Kind;
use crate::terminal::human;

/// A few seconds are promised, of a machine that does nothing else.
const TOGETHER_WITHIN: Duration = Duration::from_secs(20);
/// Until all have noticed that an entry has gone: a tunnel that is up and passes nothing is given up after some seconds.
const APART_WITHIN: Duration = Duration::from_secs(60);
/// A peer that says nothing is let go of after 10 s.
const SILENT_GONE_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Connections to one coordinator at once.
const PER_TARGET_MAX: usize = 64;
const NOWHERE: [&str; 2] = ["--mesh-listen", "off"];

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "mesh-by-entry",
            "three coordinators that listen nowhere, given only the entry's URL, are one mesh, and again after the entry's restart",
            &[],
            by_entry,
        ),
        Check::new(
            "mesh-by-https-entry",
            "the same over https, with an authority of the operator's own",
            &["openssl"],
            by_https_entry,
        ),
        Check::new(
            "mesh-peer-bounds",
            "who asks an entry for a coordinator's libp2p without need, or too often, is refused in words",
            &["curl"],
            bounds,
        ),
    ]
}

/// Waits until each has these connections to other coordinators, all of them by way of an entry.
async fn connected(coordinators: &[Node], others: u64, within: Duration) -> Result<Duration> {
    let begin = Instant::now();
    for node in coordinators {
        loop {
            let mesh = node.on_the_mesh().await?;
            let peers = mesh["peers"].as_array().context("a status without peers")?;
            if mesh["coordinators"].as_u64() == Some(others) {
                let direct = peers.iter().find(|peer| peer["part"] == "coordinator" && peer["path"] != "entry");
                must!(direct.is_none(), "{} listens nowhere, and is connected like this: {direct:?}", node.name());
                break;
            }
            if begin.elapsed() > within {
                bail!("{} is connected like this after {within:?}: {mesh}", node.name());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(begin.elapsed())
}

async fn by_entry(lab: Arc<Lab>) -> Result<String> {
    let begin = Instant::now();
    let mut mesh = Mesh::start(&lab, &[], 3, &NOWHERE).await?;
    connected(&mesh.coordinators, 2, TOGETHER_WITHIN).await?;
    let together = begin.elapsed();
    let bootstrap = mesh.entry.get("/mesh/bootstrap").await?.json();
    let addresses: Vec<&str> = bootstrap["coordinators"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|coordinator| coordinator["multiaddrs"][0].as_str())
        .collect();
    let at = format!("/ip4/127.0.0.1/tcp/{}/x-parity-ws/%2Fmesh%2Fpeer%2F", mesh.entry.http.port());
    must!(
        addresses.len() == 3 && addresses.iter().all(|address| address.starts_with(&at)),
        "they are at {addresses:?}"
    );

    // A worker reaches its home in the same way.
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 16), &mesh.entry).await?;
    settled(&worker, None, READY_WITHIN).await?;
    let home = worker.on_the_mesh().await?["peers"][0].clone();
    must!(home["path"] == "entry" && home["part"] == "coordinator", "a worker is at home like this: {home}");
    let (code, said) = worker.command(&["status"]).await?;
    must!(code == 0 && said.contains("it names no address of its own"), "a person sees no reason:\n{said}");

    mesh.entry.process.kill();
    let killed = Instant::now();
    connected(&mesh.coordinators, 0, APART_WITHIN).await.context("after the entry was killed")?;
    let apart = killed.elapsed();
    mesh.entry.start_again()?;
    mesh.entry.process.ready(READY_WITHIN).await?;
    let back = Instant::now();
    connected(&mesh.coordinators, 2, TOGETHER_WITHIN).await.context("after the entry was started again")?;
    let again = back.elapsed();
    mesh.agree(TOGETHER_WITHIN).await?;
    settled(&worker, None, READY_WITHIN).await?;
    Ok(format!(
        "one mesh {} after the first start, by way of the entry alone, and a worker at home there; entry killed: apart after {}, \
         one mesh {} after it was ready again",
        human(together),
        human(apart),
        human(again)
    ))
}

async fn by_https_entry(lab: Arc<Lab>) -> Result<String> {
    let (authority, certificate, key) = certificates(lab.workdir.path(), "own").await?;
    let anywhere = "127.0.0.1:0";
    let entry = Launch::new("entry", &lab.binaries.entry)
        .args(["--listen", anywhere, "--tunnel-listen", anywhere, "--key-file"])
        .arg(lab.workdir.path().join("entry.key"))
        .arg("--tls-cert")
        .arg(&certificate)
        .arg("--tls-key")
        .arg(&key)
        .ready_file(&lab.workdir)
        .start(&lab.workdir)?;
    let port = bound(&entry.ready(READY_WITHIN).await?, "listen")?.port();
    let (url, ca) = (format!("https://localhost:{port}"), authority.display().to_string());
    let begin = Instant::now();
    let mut coordinators = Vec::new();
    for number in 1..=2 {
        let spec = NodeSpec::coordinator(&format!("coordinator-{number}")).extra(&NOWHERE).extra(&["--entry-ca", &ca]);
        coordinators.push(lab.start_node_at(spec, std::slice::from_ref(&url))?);
    }
    for coordinator in &mut coordinators {
        coordinator.joined().await?;
    }
    connected(&coordinators, 1, TOGETHER_WITHIN).await?;
    Ok(format!(
        "two coordinators are connected {} after their start, by way of an entry over TLS",
        human(begin.elapsed())
    ))
}

/// How curl asks for a WebSocket.
const UPGRADE: [&str; 9] = [
    "--http1.1",
    "-H",
    "Connection: Upgrade",
    "-H",
    "Upgrade: websocket",
    "-H",
    "Sec-WebSocket-Version: 13",
    "-H",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

async fn bounds(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let peer = |id: &str| format!("{}/mesh/peer/{id}", entry.url());
    let refused = async |more: &[&str], url: &str, status: u16, code: &str| -> Result<()> {
        let answer = curl(&[more, &[url]].concat()).await?;
        let (head, body) = answer.split_at(answer.find('{').context(answer.clone())?);
        let problem: serde_json::Value = serde_json::from_str(body).context(answer.clone())?;
        must!(
            head.contains(&format!(" {status} ")) && problem["code"] == code && problem["detail"].is_string(),
            "expected {status} {code}: {answer}"
        );
        Ok(())
    };
    refused(&UPGRADE, &peer("any"), 503, "no-coordinator").await?;
    let node = lab.node(NodeSpec::coordinator("coordinator").extra(&NOWHERE), &entry).await?;
    refused(&[], &peer(&node.id), 426, "websocket-required").await?;
    refused(&["-X", "POST", "-d", ""], &peer(&node.id), 405, "method").await?;
    refused(&UPGRADE, &peer("me"), 404, "bad-node-id").await?;
    refused(&UPGRADE, &peer(&"0".repeat(64)), 404, "unknown-peer").await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 16), &entry).await?;
    refused(&UPGRADE, &peer(&worker.id), 404, "unknown-peer").await?;

    // Many who are let through and say nothing.
    let path = format!("/mesh/peer/{}", node.id);
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        entry.http
    );
    let mut silent = Vec::new();
    let begin = Instant::now();
    while silent.len() < PER_TARGET_MAX {
        let mut stream = TcpStream::connect(entry.http).await?;
        stream.write_all(head.as_bytes()).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        if &answer != b"HTTP/1.1 101" {
            // The worker is connected as well, perhaps.
            break;
        }
        silent.push(stream);
    }
    must!(silent.len() + 2 >= PER_TARGET_MAX, "only {} were let through", silent.len());
    refused(&UPGRADE, &peer(&node.id), 503, "peers-full").await?;
    // The coordinator does not wait for them for ever.
    for mut stream in silent {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SILENT_GONE_WITHIN, stream.read_to_end(&mut rest));
        // A reset is an end as well.
        let _ = ended.await.context("a peer that says nothing is still connected")?;
    }
    let gone = begin.elapsed();
    let mut stream = TcpStream::connect(entry.http).await?;
    stream.write_all(head.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    must!(&answer == b"HTTP/1.1 101", "there is no room again: {}", String::from_utf8_lossy(&answer));
    Ok(format!("7 refusals; {PER_TARGET_MAX} silent peers filled it, and were gone {}", human(gone)))
}
