//! A federation as real processes on this machine: entries, nodes and services, each with a handle that kills it when dropped.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::binaries::Binaries;
use crate::client::{Answer, ask, get, until};
use crate::process::{Launch, Process, Workdir};
use crate::service::Kind;
use crate::service::evidence::Evidence;

pub mod agent;
pub mod mesh;

/// How long a process may take to be ready on a machine that is busy with other things.
pub const READY_WITHIN: Duration = Duration::from_secs(20);

/// Where a federation's processes live.
#[derive(Debug)]
pub struct Lab {
    /// Their files.
    pub workdir: Workdir,
    /// What they run.
    pub binaries: Binaries,
}

/// An entry.
#[derive(Debug)]
pub struct Entry {
    lab: Arc<Lab>,
    name: String,
    extra: Vec<String>,
    /// The process.
    pub process: Process,
    /// Where the public speaks to it.
    pub http: SocketAddr,
    /// Where nodes dial (UDP).
    pub tunnel: SocketAddr,
    /// Where its operator asks it.
    pub admin: SocketAddr,
    /// What its ready file said.
    pub ready: serde_json::Value,
}

/// A node that is to join.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    name: String,
    role: &'static str,
    services: Vec<String>,
    extra: Vec<String>,
    outlives_file_limits: bool,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    lab: Arc<Lab>,
    spec: NodeSpec,
    join: Vec<String>,
    /// The process.
    pub process: Process,
    /// Its id; empty until it was ready.
    pub id: String,
    /// Its port for its LAN, if it has one.
    pub listen: Option<SocketAddr>,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub listen: SocketAddr,
}

impl Lab {
    /// A lab with nothing in it.
    pub fn new(binaries: &Binaries) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { workdir: Workdir::new(&binaries.sim)?, binaries: binaries.clone() }))
    }

    /// Starts an entry on free ports and waits until it listens.
    pub async fn entry(self: &Arc<Self>, name: &str, extra: &[&str]) -> Result<Entry> {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
        let process = self.launch_entry(name, &extra, [anywhere; 3])?;
        let ready = process.ready(READY_WITHIN).await?;
        let [http, tunnel, admin] = [bound(&ready, "listen")?, bound(&ready, "tunnel")?, bound(&ready, "admin")?];
        Ok(Entry { lab: self.clone(), name: name.to_owned(), extra, process, http, tunnel, admin, ready })
    }

    /// The last lines of each process's log.
    pub fn log_tails(&self, lines: usize) -> String {
        self.workdir.log_tails(lines)
    }

    /// The command of an entry, without `--listen` and the like.
    pub fn entry_command(&self, name: &str) -> Launch {
        Launch::new(name, &self.binaries.entry)
            .args(["--plain-http", "--key-file"])
            .arg(self.workdir.path().join(format!("{name}.key")))
    }

    fn launch_entry(&self, name: &str, extra: &[String], addresses: [SocketAddr; 3]) -> Result<Process> {
        let [http, tunnel, admin] = addresses.map(|address| address.to_string());
        self.entry_command(name)
            .args(["--listen", &http, "--tunnel-listen", &tunnel, "--admin-listen", &admin])
            .args(extra)
            .ready_file(&self.workdir)
            .start(&self.workdir)
    }

    /// Starts a service and waits until it listens.
    pub async fn service(&self, name: &str, kind: Kind) -> Result<Service> {
        let process = Launch::new(name, &self.binaries.sim)
            .args(["service", "--kind", kind.as_str(), "--name", name])
            .ready_file(&self.workdir)
            .start(&self.workdir)?;
        let listen = bound(&process.ready(READY_WITHIN).await?, "listen")?;
        Ok(Service { process, listen })
    }

    /// Starts a node; it may not have joined yet ([`Node::joined`]).
    pub fn start_node(self: &Arc<Self>, spec: NodeSpec, entries: &[&Entry]) -> Result<Node> {
        self.start_node_at(spec, &entries.iter().map(|entry| entry.url()).collect::<Vec<_>>())
    }

    /// Starts a node that joins entries at these URLs; it may not have joined yet.
    pub fn start_node_at(self: &Arc<Self>, spec: NodeSpec, urls: &[String]) -> Result<Node> {
        let process = self.launch_node(&spec, urls)?;
        Ok(Node { lab: self.clone(), spec, join: urls.to_vec(), process, id: String::new(), listen: None })
    }

    /// Starts a node and waits until its tunnel is up.
    pub async fn node(self: &Arc<Self>, spec: NodeSpec, entry: &Entry) -> Result<Node> {
        let mut node = self.start_node(spec, &[entry])?;
        node.joined().await?;
        entry.until_it_routes_to(&node).await?;
        Ok(node)
    }

    /// Where the node of this name keeps its key.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.workdir.path().join(format!("{name}.data"))
    }

    fn launch_node(&self, spec: &NodeSpec, join: &[String]) -> Result<Process> {
        let launch = match spec.outlives_file_limits {
            true => Launch::new(&spec.name, "bash")
                .args(["-c", r#"trap "" XFSZ; exec 2> >(exec cat >&2); exec "$0" "$@""#])
                .arg(&self.binaries.node),
            false => Launch::new(&spec.name, &self.binaries.node),
        };
        let mut launch = launch
            .arg("join")
            .args(join)
            .args(["--role", spec.role, "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data_dir(&spec.name));
        for service in &spec.services {
            launch = launch.args(["--service", service]);
        }
        launch.args(&spec.extra).ready_file(&self.workdir).start(&self.workdir)
    }
}

impl Entry {
    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Asks it for something.
    pub async fn get(&self, target: &str) -> Result<Answer> {
        ask(self.http, get(target)).await
    }

    /// Waits until it knows a node: a node is told a moment before the routes are that its tunnel is up.
    pub async fn until_it_routes_to(&self, node: &Node) -> Result<()> {
        until(self.http, "/mesh/registry", READY_WITHIN, |answer| nodes_up(&answer.json()).contains(&*node.id))
            .await
            .with_context(|| format!("the entry does not know {}", node.name()))?;
        Ok(())
    }

    /// Starts it again at the same addresses; its ready file tells when it listens.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = self.lab.launch_entry(&self.name, &self.extra, [self.http, self.tunnel, self.admin])?;
        Ok(())
    }
}

impl NodeSpec {
    /// A worker without services yet.
    pub fn worker(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: "worker",
            services: Vec::new(),
            extra: Vec::new(),
            outlives_file_limits: false,
        }
    }

    /// A coordinator.
    pub fn coordinator(name: &str) -> Self {
        Self { role: "coordinator", ..Self::worker(name) }
    }

    /// A node that offers services and may be elected a coordinator beside it.
    pub fn auto(name: &str) -> Self {
        Self { role: "auto", ..Self::worker(name) }
    }

    /// A worker that is a coordinator too.
    pub fn both(name: &str) -> Self {
        Self { role: "both", ..Self::worker(name) }
    }

    /// Offers a service.
    #[must_use]
    pub fn offers(mut self, name: &str, at: SocketAddr, capacity: usize) -> Self {
        self.services.push(format!("{name}=http://{at};capacity={capacity}"));
        self
    }

    /// The kernel does not end it when a file of its may not grow (SIGXFSZ), and its log goes through another process, which may write: so
    /// that the size of its files can be limited (RLIMIT_FSIZE) and the rest goes on as on a full disk.
    #[must_use]
    pub fn outlives_file_limits(mut self) -> Self {
        self.outlives_file_limits = true;
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn extra(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(ToString::to_string));
        self
    }
}

impl Node {
    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Waits until its tunnel is up.
    pub async fn joined(&mut self) -> Result<()> {
        let ready = self.process.ready(READY_WITHIN).await?;
        self.id = ready["node_id"].as_str().context("a ready file without a node id")?.to_owned();
        self.listen = bound(&ready, "listen").ok();
        Ok(())
    }

    /// Where its own user asks it how it is.
    pub fn control_socket(&self) -> PathBuf {
        self.lab.data_dir(&self.spec.name).join("control.sock")
    }

    /// Its port for its LAN, where a coordinator also answers agents.
    pub fn own_port(&self) -> Result<SocketAddr> {
        self.listen.with_context(|| format!("{} has not said where it listens", self.name()))
    }

    /// What `status --json` says.
    pub async fn status(&self) -> Result<serde_json::Value> {
        let (code, said) = self.command(&["status", "--json"]).await?;
        anyhow::ensure!(code == 0, "status of {} ended with {code}: {said}", self.name());
        // Each time it is asked its answer is added to the same log.
        let answers = serde_json::Deserializer::from_str(&said).into_iter::<serde_json::Value>();
        let last = answers.map_while(Result::ok).last();
        last.with_context(|| format!("the status of {} is no JSON: {said}", self.name()))
    }

    /// Its part on the mesh of its only federation, as its status tells.
    pub async fn on_the_mesh(&self) -> Result<serde_json::Value> {
        Ok(self.status().await?["mesh"][0].clone())
    }

    /// Starts it again with the same key.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = self.lab.launch_node(&self.spec, &self.join)?;
        Ok(())
    }

    /// One of the node's own commands (`status`, `leave`): exit code, standard output, and its log.
    pub async fn command(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let launch = Launch::new(format!("{}-{}", self.spec.name, arguments.join("-")), &self.lab.binaries.node)
            .args(arguments)
            .arg("--data-dir")
            .arg(self.lab.data_dir(&self.spec.name));
        let process = launch.start(&self.lab.workdir)?;
        let status = process.exited(READY_WITHIN).await?;
        Ok((status.code().unwrap_or(-1), process.log()))
    }
}

impl Service {
    /// What reached it, asked past the federation.
    pub async fn evidence(&self) -> Result<Evidence> {
        let answer = ask(self.listen, get("/evidence")).await?;
        serde_json::from_slice(&answer.body).context("evidence that is none")
    }

    /// Waits until the evidence is as wanted; how long that took.
    pub async fn until(&self, within: Duration, wanted: impl Fn(&Evidence) -> bool) -> Result<(Duration, Evidence)> {
        let begin = std::time::Instant::now();
        loop {
            let evidence = self.evidence().await?;
            if wanted(&evidence) {
                return Ok((begin.elapsed(), evidence));
            }
            anyhow::ensure!(begin.elapsed() < within, "after {within:?} the service had seen only {evidence:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The ids of the nodes that have a tunnel, by an entry's registry as JSON.
pub fn nodes_up(registry: &serde_json::Value) -> BTreeSet<&str> {
    let lists = ["coordinators", "workers"].iter().filter_map(|kind| registry[kind].as_array());
    lists.flatten().filter(|node| node["state"] == "up").filter_map(|node| node["node_id"].as_str()).collect()
}

/// An address of a ready file, which names one or a list of them.
pub(crate) fn bound(ready: &serde_json::Value, name: &str) -> Result<SocketAddr> {
    let value = &ready[name];
    let text = value.as_str().or_else(|| value[0].as_str()).with_context(|| format!("no {name} in {ready}"))?;
    text.parse().with_context(|| format!("{name} is no address: {text}"))
}
