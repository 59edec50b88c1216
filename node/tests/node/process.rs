//! The node as a process: its command line, its log, its end.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use hedgerow_node::status::Status;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// For whatever must happen sooner or later on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Looks again and again, for what gives no sign.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    in_time(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// A home of its own for each test: nothing of this machine is read or written.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path(".local/share/hedgerow")
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-node"));
        command.env_clear().env("HOME", self.directory.path()).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        in_time("the end of the command", self.command(arguments).output()).await.unwrap()
    }

    /// Runs it to its end, which must be a failure with this code; what it says.
    pub(crate) async fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "mistakes are said on standard error");
        said
    }

    /// Starts it, and reads its log.
    pub(crate) fn start(&self, arguments: &[&str]) -> Node {
        self.start_with(arguments, &[])
    }

    /// Starts it with these variables.
    pub(crate) fn start_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Node {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|log| log.push(line));
            }
        });
        Node { child, log }
    }

    pub(crate) async fn status(&self) -> Status {
        let output = self.run(&["status", "--json"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A running node. Killed when dropped.
pub(crate) struct Node {
    child: Child,
    log: watch::Receiver<Vec<String>>,
}

impl Node {
    /// Waits for a line with all of these words in it, and returns it.
    pub(crate) async fn says(&mut self, words: &[&str]) -> String {
        let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
        let said = format!("{words:?} in the log");
        let found = in_time(&said, self.log.wait_for(|log| log.iter().any(|line| has_all(&line)))).await;
        let line = found.ok().and_then(|log| log.iter().find(has_all).cloned());
        line.unwrap_or_else(|| panic!("the log ended without {words:?}:\n{}", self.log().join("\n")))
    }

    /// The log so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; what it had said by then.
    pub(crate) async fn ends(&mut self) -> (ExitStatus, Vec<String>) {
        let status = in_time("the end of the node", self.child.wait()).await.unwrap();
        // The log ends with the process.
        let closed = async { while self.log.changed().await.is_ok() {} };
        in_time("the end of the log", closed).await;
        (status, self.log())
    }
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
