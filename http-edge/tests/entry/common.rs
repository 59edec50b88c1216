//! An entry as a process, and clients that say exactly what the test wants said.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long anything may take on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Asks again and again until there is something.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    in_time(what, async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// The binary, with nothing of the test's environment that would mean something to it.
pub(crate) fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-entry"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEDGEROW_") {
            command.env_remove(name);
        }
    }
    command.env("RUST_LOG", "info,hedgerow_entry=debug").current_dir(directory).stdin(Stdio::null());
    command
}

/// Runs it to its end, which should come by itself.
pub(crate) fn run(directory: &Path, arguments: &[&str]) -> Output {
    let child = command(directory).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

/// What it printed, and that it ended with this code.
pub(crate) fn fails(directory: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(directory, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// An entry that runs.
pub(crate) struct Entry {
    child: Child,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) ready: serde_json::Value,
    pub(crate) http: SocketAddr,
    pub(crate) tunnel: SocketAddr,
    pub(crate) admin: SocketAddr,
}

const ANYWHERE: [&str; 3] = ["127.0.0.1:0"; 3];

impl Entry {
    /// On free ports.
    pub(crate) async fn start(extra: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), ANYWHERE, extra).await
    }

    /// In this directory, where its key is, at these addresses.
    pub(crate) async fn start_in(directory: tempfile::TempDir, at: [&str; 3], extra: &[&str]) -> Self {
        let file = directory.path().join("ready.json");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.path().join("log")).unwrap();
        let child = command(directory.path())
            .args(["--listen", at[0], "--tunnel-listen", at[1], "--admin-listen", at[2]])
            .args(["--key-file", "entry.key", "--ready-file", "ready.json", "--threads", "2"])
            .args(extra)
            .stderr(log)
            .spawn()
            .unwrap();
        let mut child = KillOnDrop(Some(child));
        let ready: serde_json::Value = until("the entry listens", async || {
            let ended = child.0.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{}", std::fs::read_to_string(directory.path().join("log")).unwrap());
            // The file appears whole or not at all.
            std::fs::read(&file).ok().map(|text| serde_json::from_slice(&text).unwrap())
        })
        .await;
        let address = |text: &serde_json::Value| text.as_str().unwrap().parse().unwrap();
        Self {
            http: address(&ready["listen"][0]),
            tunnel: address(&ready["tunnel"]),
            admin: address(&ready["admin"]),
            child: child.0.take().unwrap(),
            directory,
            ready,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, as `kill` does.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the entry ends", async || child.try_wait().unwrap()).await
    }

    /// Kills it, and hands over what is left of it: where its key is, and where it was.
    pub(crate) fn kill(mut self) -> (tempfile::TempDir, [String; 3]) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(self.path("ready.json")).unwrap();
        let at = [self.http, self.tunnel, self.admin].map(|address| address.to_string());
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        (directory, at)
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        get(self.http, target).await
    }

    pub(crate) async fn admin(&self, target: &str) -> Answer {
        get(self.admin, target).await
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All that came back until the entry closed the connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// That it is a problem of this status and code.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!((body["status"].as_u64(), body["code"].as_str()), (Some(status.into()), Some(code)), "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 20), "{body}");
    }
}

/// Says these bytes on a connection of its own, and listens to the end of it.
pub(crate) async fn say(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    in_time("an answer and the end of the connection", async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        // The entry may hang up before it has heard everything.
        let _ = stream.write_all(bytes).await;
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        all
    })
    .await
}

pub(crate) async fn get(from: SocketAddr, target: &str) -> Answer {
    let request = format!("GET {target} HTTP/1.1\r\nhost: entry.test\r\nconnection: close\r\n\r\n");
    Answer::parse(&say(from, request.as_bytes()).await)
}

/// How long something took, with it.
pub(crate) async fn timed<T>(future: impl Future<Output = T>) -> (Duration, T) {
    let begin = Instant::now();
    let outcome = future.await;
    (begin.elapsed(), outcome)
}
