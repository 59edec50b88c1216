//! What is compared, each on loopback in front of the same service: an nginx that serves one small file from memory.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::cpu;
use crate::client::until;
use crate::federation::{Entry, Lab, Node, NodeSpec, READY_WITHIN};
use crate::interop::peers::{Peer, free_port, installed, listening, nginx};
use crate::process::{Launch, Process};

/// Workers or threads of each proxy: what this project's lab has cores.
const THREADS: usize = 2;

/// One side: what is loaded, and whose CPU is counted.
#[derive(Debug)]
pub(super) struct Side {
    /// What to call it.
    pub(super) name: &'static str,
    /// What is loaded.
    pub(super) url: String,
    processes: Vec<Process>,
    federation: Option<(Entry, Node)>,
}

/// A side, or the name of the program that it needs.
pub(super) type Found = std::result::Result<Side, &'static str>;

/// The service behind all sides.
pub(super) async fn origin(lab: &Lab, bytes: usize) -> Result<Peer> {
    let files = lab.workdir.path().join("origin-files");
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("file"), vec![b'x'; bytes])?;
    let server = format!(
        "open_file_cache max=10; keepalive_requests 1000000000; sendfile on; tcp_nopush on;\n\
         server {{ listen 127.0.0.1:PORT; root {}; }}",
        files.display()
    );
    nginx(lab, "origin", &server, 1).await
}

impl Side {
    /// CPU time of its processes so far.
    pub(super) fn cpu(&self) -> Result<std::time::Duration> {
        let handles = self.federation.iter().flat_map(|(entry, node)| [&entry.process, &node.process]);
        self.processes.iter().chain(handles).map(|process| cpu::of_group(process.pid())).sum()
    }

    /// Our entry and one node.
    pub(super) async fn hedgerow(lab: &Arc<Lab>, origin: SocketAddr) -> Result<Self> {
        let entry = lab.entry("entry", &[]).await?;
        let node = lab.node(NodeSpec::worker("worker").offers("origin", origin, 1024), &entry).await?;
        until(entry.http, "/service/origin/file", READY_WITHIN, |answer| answer.status == 200).await?;
        let url = format!("{}/service/origin/file", entry.url());
        Ok(Self { name: "hedgerow", url, processes: Vec::new(), federation: Some((entry, node)) })
    }

    /// nginx as a reverse proxy with kept connections.
    pub(super) async fn nginx(lab: &Lab, origin: SocketAddr) -> Result<Found> {
        let server = format!(
            "keepalive_requests 1000000000; upstream origin {{ server {origin}; keepalive 256; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:PORT reuseport; location / {{ proxy_pass http://origin; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; }} }}"
        );
        let peer = nginx(lab, "nginx", &server, THREADS).await?;
        let url = format!("http://{}/file", peer.listen);
        Ok(Ok(Self { name: "nginx", url, processes: vec![peer.process], federation: None }))
    }

    /// HAProxy with kept connections.
    pub(super) async fn haproxy(lab: &Lab, origin: SocketAddr) -> Result<Found> {
        if !installed("haproxy") {
            return Ok(Err("haproxy"));
        }
        let listen = free_port()?;
        let configuration = format!(
            "global\n  nbthread {THREADS}\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n  http-reuse always\nfrontend f\n  bind {listen}\n  default_backend b\nbackend b\n  server s {origin}\n"
        );
        let path = lab.workdir.path().join("haproxy.cfg");
        std::fs::write(&path, configuration)?;
        let process = Launch::new("haproxy", "haproxy").args(["-db", "-f"]).arg(&path).start(&lab.workdir)?;
        listening(&process, listen).await?;
        Ok(Ok(Self {
            name: "HAProxy",
            url: format!("http://{listen}/file"),
            processes: vec![process],
            federation: None,
        }))
    }

    /// rathole's two ends, plain or with noise.
    pub(super) async fn rathole(lab: &Lab, origin: SocketAddr, noise: bool) -> Result<Found> {
        if !installed("rathole") {
            return Ok(Err(if noise { "rathole (noise)" } else { "rathole" }));
        }
        let name = if noise { "rathole noise" } else { "rathole plain" };
        let (control, listen) = (free_port()?, free_port()?);
        let (server_transport, client_transport) = if noise {
            let (private, public) = noise_keys().await?;
            (
                format!(
                    "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"\n"
                ),
                format!(
                    "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"\n"
                ),
            )
        } else {
            (String::new(), String::new())
        };
        let server = format!(
            "[server]\nbind_addr = \"{control}\"\ndefault_token = \"t\"\n{server_transport}[server.services.s]\nbind_addr = \"{listen}\"\n"
        );
        let client = format!(
            "[client]\nremote_addr = \"{control}\"\ndefault_token = \"t\"\n{client_transport}[client.services.s]\nlocal_addr = \"{origin}\"\n"
        );
        let mut processes = Vec::new();
        for (end, configuration) in [("server", server), ("client", client)] {
            let path = lab.workdir.path().join(format!("rathole-{end}-{noise}.toml"));
            std::fs::write(&path, configuration)?;
            let log_name = format!("rathole-{end}-{noise}");
            processes.push(Launch::new(log_name, "rathole").arg(format!("--{end}")).arg(&path).start(&lab.workdir)?);
        }
        until(listen, "/file", READY_WITHIN, |answer| answer.status == 200)
            .await
            .context("rathole does not forward")?;
        Ok(Ok(Self { name, url: format!("http://{listen}/file"), processes, federation: None }))
    }
}

/// A key pair, as `rathole --genkey` prints it.
async fn noise_keys() -> Result<(String, String)> {
    let output = tokio::process::Command::new("rathole").arg("--genkey").output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let key = |label: &str| {
        let mut lines = text.lines().skip_while(move |line| !line.contains(label));
        lines.nth(1).map(|line| line.trim().to_owned())
    };
    Ok((key("Private Key").context("no private key")?, key("Public Key").context("no public key")?))
}
