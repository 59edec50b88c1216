//! Network namespaces: made, entered, and certain to be gone.
//!
//! Their names hold the process id of the lab and when it began (`hedgerow-lab-1234.567890-0-alder`), so that a later lab knows which
//! belong to one that is dead: those it removes. All else in a namespace (devices, routes, rules) goes with it.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps them.
const DIRECTORY: &str = "/run/netns";
/// What the names of all labs' namespaces begin with.
const PREFIX: &str = "hedgerow-lab-";
/// Of a connection inside one namespace.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// A namespace of this lab. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, with nothing in it but a loopback device that is up. No other one of this process has this label.
    pub(super) fn new(label: &str) -> Result<Self> {
        let name = format!("{}{label}", prefix_of_this_lab()?);
        tool("ip", &["netns", "add", &name], "")?;
        let made = Self { name };
        made.ip("link set lo up\n")?;
        Ok(made)
    }

    /// As `ip netns` calls it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub(super) fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Does something inside, on a thread of its own, which ends with it: so no other thread is ever in the wrong place. Sockets and
    /// processes that it makes stay inside.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || {
            enter(&self.path())?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(entered).join()).map_err(|_| anyhow!("a thread panicked"))?
    }

    /// Lines for `ip`, one command each.
    pub(super) fn ip(&self, lines: &str) -> Result<()> {
        tool("ip", &["-netns", &self.name, "-batch", "-"], lines).map(drop)
    }

    /// Runs one of the system's programs inside; what it says.
    pub(super) fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.within(|| tool(program, arguments, input)).with_context(|| format!("in {}", self.name))
    }

    /// Sets kernel parameters under `net`, as in `("ipv4/ip_forward", "1")`.
    pub(super) fn set(&self, parameters: &[(&str, &str)]) -> Result<()> {
        self.within(|| {
            parameters.iter().try_for_each(|(name, value)| {
                // The kernel shows the parameters of the namespace that the thread is in.
                std::fs::write(Path::new("/proc/sys/net").join(name), value)
                    .with_context(|| format!("cannot set net/{name}"))
            })
        })
    }

    /// A connection from inside, for the runtime of the caller.
    pub(super) fn connect(&self, to: SocketAddr) -> Result<tokio::net::TcpStream> {
        let stream = self.within(|| Ok(TcpStream::connect_timeout(&to, CONNECT_WITHIN)?))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(tokio::net::TcpStream::from_std(stream)?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Moves the calling thread into a namespace. Processes that it starts, and sockets that it makes, are inside.
pub(crate) fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("there is no network namespace {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter {}", path.display()))
}

/// Removes what labs have left that are dead (a crash, SIGKILL). The names of what was removed.
pub(super) fn remove_leftovers() -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return Ok(Vec::new()); // Nobody has ever made one on this machine.
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut removed = Vec::new();
    for name in names.filter(|name| owner(name).is_some_and(|owner| !owner.is_alive())) {
        remove(&name)?;
        removed.push(name);
    }
    Ok(removed)
}

fn remove(name: &str) -> Result<()> {
    match tool("ip", &["netns", "delete", name], "") {
        // Another lab that starts may have removed it.
        Err(_) if !Path::new(DIRECTORY).join(name).exists() => Ok(()),
        removed => removed.map(drop),
    }
}

/// What the names of this lab's namespaces, and of its directory, begin with.
pub(super) fn prefix_of_this_lab() -> Result<String> {
    let pid = std::process::id();
    let began = began(pid).context("/proc does not show this process")?;
    Ok(format!("{PREFIX}{pid}.{began}-"))
}

/// The process that a namespace belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pid: u32,
    began: u64,
}

impl Owner {
    /// Whether it runs. (A process id is given again; when a process began tells two of them apart.)
    pub(super) fn is_alive(self) -> bool {
        began(self.pid) == Some(self.began)
    }
}

/// Whose this name is, if it is a lab's.
pub(super) fn owner(name: &str) -> Option<Owner> {
    let (who, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let (pid, began) = who.split_once('.')?;
    Some(Owner { pid: pid.parse().ok()?, began: began.parse().ok()? })
}

/// When a process began, in ticks since the machine did. None if it has ended, even if nobody has collected it.
fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Runs one of the system's programs and gives it `input`; what it says. It fails with what it complains about.
fn tool(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends before it has read all says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_whose_it_is() {
        let name = format!("{}alder-1-router", prefix_of_this_lab().unwrap());
        let owner = owner(&name).unwrap();
        assert_eq!(owner.pid, std::process::id());
        assert!(owner.is_alive());
    }

    #[test]
    fn another_process_with_the_same_id_is_not_the_owner() {
        let name = format!("{PREFIX}{}.1-alder", std::process::id());
        assert!(!owner(&name).unwrap().is_alive());
        assert!(!owner("hedgerow-lab-4294967295.5-x").unwrap().is_alive());
    }

    #[test]
    fn what_others_have_made_is_nobodys_here() {
        for name in ["hedgerow-1.2-x", "hedgerow-lab-", "hedgerow-lab-x.1-y", "hedgerow-lab-1-y", "cni-1234"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
