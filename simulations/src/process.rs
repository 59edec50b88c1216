//! One process: started, watched, signalled, measured, and certain to be gone when the harness is.
//!
//! Three nets: dropping a [`Process`] kills its group; the guard ([`crate::guard`]) has the kernel end it when the harness dies;
//! and each stands in a group of its own, so that Ctrl-C reaches the harness alone, which then decides.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::guard::End;

mod stat;

/// How often a file or an exit is looked for. Both come from other processes, which cannot wake us.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where processes of one run live: their logs, ready files and data, removed with it.
#[derive(Debug)]
pub struct Workdir {
    directory: tempfile::TempDir,
    guard: PathBuf,
}

impl Workdir {
    /// A new, empty one. `guard` is the `hedgerow-sim` binary.
    pub fn new(guard: &Path) -> Result<Self> {
        Self::named(guard, "hedgerow-")
    }

    /// The same, in a directory whose name begins with this.
    pub fn named(guard: &Path, prefix: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir().context("no temporary directory")?;
        Ok(Self { directory, guard: guard.to_owned() })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The last lines of each process's log.
    pub fn log_tails(&self, lines: usize) -> String {
        let entries = std::fs::read_dir(self.path()).into_iter().flatten().flatten();
        let mut logs: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
        logs.sort();
        logs.iter().map(|log| tail_of(log, lines)).collect()
    }
}

/// A process that is to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    ready: Option<PathBuf>,
    piped: bool,
    end: End,
    namespace: Option<PathBuf>,
}

impl Launch {
    /// `name` is what its log is called.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            ready: None,
            piped: false,
            end: End::Kill,
            namespace: None,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Gives it `--ready-file`, for [`Process::ready`].
    #[must_use]
    pub fn ready_file(mut self, workdir: &Workdir) -> Self {
        let path = workdir.path().join(format!("{}.ready.json", self.name));
        self = self.arg("--ready-file").arg(&path);
        self.ready = Some(path);
        self
    }

    /// Its standard output comes to us ([`Process::take_stdout`]) instead of its log.
    #[must_use]
    pub fn piped(mut self) -> Self {
        self.piped = true;
        self
    }

    /// It is ended by SIGTERM if the harness dies, since it has processes of its own.
    #[must_use]
    pub fn ends_by_itself(mut self) -> Self {
        self.end = End::Terminate;
        self
    }

    /// It runs inside the network namespace that this file stands for.
    #[must_use]
    pub fn inside(mut self, namespace: &Path) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Starts it.
    pub fn start(self, workdir: &Workdir) -> Result<Process> {
        let log = workdir.path().join(format!("{}.log", self.name));
        let output = File::options().create(true).append(true).open(&log).context("no log file")?;
        if let Some(ready) = &self.ready {
            // A process that was killed has left its own there.
            let _ = std::fs::remove_file(ready);
        }
        let mut command = Command::new(&workdir.guard);
        command.args(["guard", "--end", self.end.as_str(), "--parent", &std::process::id().to_string()]);
        if let Some(namespace) = &self.namespace {
            command.arg("--namespace").arg(namespace);
        }
        command
            .arg("--")
            .arg(&self.program)
            .args(&self.arguments)
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(if self.piped { Stdio::piped() } else { output.try_clone()?.into() })
            .stderr(output);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = spawn_from_the_lasting_thread(command)
            .with_context(|| format!("cannot start {} ({})", self.name, self.program.display()))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process id of zero")?;
        Ok(Process { name: self.name, pid, log, ready: self.ready, child: Mutex::new(child) })
    }
}

/// A process that runs, or has ended. Dropped, it is killed with all of its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    ready: Option<PathBuf>,
    child: Mutex<Child>,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// CPU time in user and system, all threads.
    pub cpu: Duration,
}

impl Process {
    /// What its log is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for its ready file and returns what stands there. Fails early if the process ends.
    pub async fn ready(&self, within: Duration) -> Result<serde_json::Value> {
        let path = self.ready.as_deref().context("it was started without a ready file")?;
        let deadline = Instant::now() + within;
        loop {
            if let Ok(text) = std::fs::read(path) {
                return serde_json::from_slice(&text)
                    .with_context(|| format!("the ready file of {} is no JSON", self.name));
            }
            if let Some(status) = self.exit_status()? {
                bail!("{} ended ({status}) before it was ready\n{}", self.name, self.log_tail(20));
            }
            if Instant::now() > deadline {
                bail!("{} was not ready within {within:?}\n{}", self.name, self.log_tail(20));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Its status if it has ended.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child.lock().map_err(|_| anyhow!("a thread panicked"))?.try_wait()?)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.exit_status(), Ok(None))
    }

    /// Waits until it has ended by itself.
    pub async fn exited(&self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {within:?}\n{}", self.name, self.log_tail(20));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sends it a signal. One that has ended gets none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_running() {
            kill_process(self.pid, signal).with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// SIGKILL to it and its group, and waits until it is gone.
    pub fn kill(&self) {
        if self.is_running() {
            let _ = kill_process_group(self.pid, Signal::KILL);
            if let Ok(mut child) = self.child.lock() {
                let _ = child.wait();
            }
        }
    }

    /// Its standard output, if it was asked for with [`Launch::piped`] and not taken yet.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.child.lock().ok()?.stdout.take()
    }

    /// Memory and CPU now.
    pub fn usage(&self) -> Result<Usage> {
        stat::usage(self.pid()).with_context(|| format!("cannot measure {}", self.name))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of its log, to be shown when something went wrong.
    pub fn log_tail(&self, lines: usize) -> String {
        tail_of(&self.log, lines)
    }
}

/// The last lines of a log file, each behind the name of its process.
fn tail_of(log: &Path, lines: usize) -> String {
    let name = log.file_stem().unwrap_or_default().to_string_lossy();
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all[from..].iter().map(|line| format!("    {name} │ {line}\n")).collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a process from the one thread that lives as long as the harness: the kernel ends a guarded process when the thread that
/// started it ends, and threads of a runtime do end.
fn spawn_from_the_lasting_thread(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static ORDERS: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = mpsc::channel();
    orders
        .lock()
        .map_err(|_| anyhow!("a thread panicked"))?
        .send((command, answer))
        .context("the starting thread ended")?;
    Ok(result.recv().context("the starting thread ended")??)
}
