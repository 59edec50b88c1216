//! Programs of others: whether they are there, and how they are started.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::federation::{Lab, READY_WITHIN};
use crate::process::{Launch, Process};

/// Whether a program is on the path.
pub(crate) fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

/// A server of others.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its process.
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
}

/// `python3 -m http.server` in this directory.
pub(super) async fn python_files(lab: &Lab, name: &str, directory: &Path) -> Result<Peer> {
    let process = Launch::new(name, "python3")
        .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
        .arg(directory)
        .start(&lab.workdir)?;
    announced(process, " port ").await
}

/// One of the scripts beside this crate's sources, which print `listening on port N` if they serve.
pub(super) async fn python_script(lab: &Lab, name: &str, script: &str) -> Result<Peer> {
    let path = lab.workdir.path().join(format!("{name}.py"));
    std::fs::write(&path, script)?;
    announced(Launch::new(name, "python3").arg("-u").arg(&path).start(&lab.workdir)?, " port ").await
}

/// Waits for the port that a server prints after `marker`.
async fn announced(process: Process, marker: &str) -> Result<Peer> {
    let begin = Instant::now();
    loop {
        let log = process.log();
        let port =
            log.split_once(marker).map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        if let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) {
            return Ok(Peer { process, listen: SocketAddr::from(([127, 0, 0, 1], port)) });
        }
        if begin.elapsed() > READY_WITHIN || !process.is_running() {
            bail!("{} did not say where it listens\n{log}", process.name());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// nginx with this configuration, in which `PORT` and `DIRECTORY` stand for its port and a directory of its own.
pub(crate) async fn nginx(lab: &Lab, name: &str, server: &str, workers: usize) -> Result<Peer> {
    let directory = lab.workdir.path().join(name);
    std::fs::create_dir_all(&directory)?;
    let listen = free_port()?;
    let port = listen.port().to_string();
    let place = directory.display().to_string();
    let server = server.replace("PORT", &port).replace("DIRECTORY", &place);
    let configuration = format!(
        "daemon off; worker_processes {workers}; pid {place}/pid; error_log {place}/error.log warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         {server}\n}}\n"
    );
    let path = directory.join("nginx.conf");
    std::fs::write(&path, configuration)?;
    let process = Launch::new(name, "nginx")
        .arg("-e")
        .arg(directory.join("error.log"))
        .arg("-c")
        .arg(&path)
        .ends_by_itself()
        .start(&lab.workdir)?;
    listening(&process, listen).await?;
    Ok(Peer { process, listen })
}

/// Waits until something accepts connections there.
pub(crate) async fn listening(process: &Process, at: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    while tokio::net::TcpStream::connect(at).await.is_err() {
        if begin.elapsed() > READY_WITHIN || !process.is_running() {
            bail!("{} does not listen on {at}\n{}", process.name(), process.log_tail(20));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A port that was free a moment ago: for programs that cannot say which one they took.
pub(crate) fn free_port() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}
