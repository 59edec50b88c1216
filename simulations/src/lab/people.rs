//! The processes of the lab: the entry, nodes, and a service beside each node that serves. All are the real ones.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::netns;
use super::router::Router;
use super::scenario::{Member, Scenario};
use super::world::{World, entry_address};
use crate::binaries::Binaries;
use crate::client::{ask_socket, get};
use crate::federation::READY_WITHIN;
use crate::process::{Launch, Process, Workdir};
use crate::service::Kind;

/// As on the web, and what the strictest of firewalls let through.
pub(super) const ENTRY_PORT: u16 = 443;
/// Each is alone in its namespace, so their ports can be the same.
const OWN_PORT: u16 = 7000;
const SERVICE_PORT: u16 = 8000;
/// What services are called.
pub(super) const SERVICE: &str = "kit";
/// Requests that a service takes at once: never what a scenario is about.
const CAPACITY: usize = 256;

/// Everybody.
#[derive(Debug)]
pub(super) struct People {
    /// The entry.
    pub(super) entry: Actor,
    /// Nodes, in the order of the scenario.
    pub(super) nodes: Vec<Node>,
    /// When the last node was started.
    pub(super) started: Instant,
    /// From then until all had joined.
    pub(super) joined: Duration,
    /// Services, each with its node's namespace.
    _services: Vec<Process>,
    // Last: what their files are in goes after them.
    workdir: Workdir,
}

/// Somebody who can be killed and started again.
#[derive(Debug)]
pub(super) struct Actor {
    launch: Launch,
    process: Mutex<Arc<Process>>,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    /// As in the scenario.
    pub(super) member: Member,
    /// Its id.
    pub(super) id: String,
    /// Its process.
    pub(super) actor: Actor,
    data: PathBuf,
}

impl People {
    /// Starts all, and waits until all have joined.
    pub(super) async fn start(world: &World, scenario: &Scenario, binaries: &Binaries) -> Result<Self> {
        let workdir = Workdir::named(&binaries.sim, &netns::prefix_of_this_lab()?)?;
        let members = scenario.members();
        let v6 = members.iter().any(|member| member.router == Router::Ipv6Only);
        let entry = Actor::start(entry(world, &binaries.entry, v6, &workdir), &workdir)?;
        let ready = entry.process().ready(READY_WITHIN).await?;
        let key = ready["node_id"].as_str().context("an entry without an id")?;
        let mut services = Vec::new();
        for member in members.iter().filter(|member| member.role.serves()) {
            let namespace = world.host(&member.name)?.path();
            services.push(service(&member.name, &namespace, &binaries.sim, &workdir).start(&workdir)?);
        }
        for service in &services {
            service.ready(READY_WITHIN).await?;
        }
        let mut nodes = Vec::new();
        for member in members {
            let data = workdir.path().join(format!("{}.data", member.name));
            let launch = node(&member, &world.host(&member.name)?.path(), &binaries.node, key, &data, &workdir);
            nodes.push(Node { actor: Actor::start(launch, &workdir)?, member, id: String::new(), data });
        }
        let started = Instant::now();
        for node in &mut nodes {
            let ready = node.actor.process().ready(READY_WITHIN).await?;
            node.id = ready["node_id"].as_str().context("a ready file without a node id")?.to_owned();
        }
        Ok(Self { entry, nodes, started, joined: started.elapsed(), _services: services, workdir })
    }

    /// Where the entry serves, for clients.
    pub(super) fn door() -> SocketAddr {
        (entry_address(false), ENTRY_PORT).into()
    }

    /// Where their files are.
    pub(super) fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    /// A node by its id.
    pub(super) fn node_of(&self, id: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.id == id).with_context(|| format!("nobody has the id {id}"))
    }

    /// The process of a node, or of the entry.
    pub(super) fn actor(&self, name: &str) -> Result<&Actor> {
        if name == "entry" {
            return Ok(&self.entry);
        }
        let node = self.nodes.iter().find(|node| node.member.name == name);
        Ok(&node.with_context(|| format!("nobody is called {name}"))?.actor)
    }

    /// Nodes that serve.
    pub(super) fn serving(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.member.role.serves())
    }

    /// Nodes that are coordinators by their role, and run.
    pub(super) fn coordinators(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.member.role.coordinates() && node.actor.process().is_running())
    }
}

impl Actor {
    fn start(launch: Launch, workdir: &Workdir) -> Result<Self> {
        let process = launch.clone().start(workdir)?;
        Ok(Self { launch, process: Mutex::new(Arc::new(process)) })
    }

    /// The process as it is now.
    pub(super) fn process(&self) -> Arc<Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts it again, with the same key; its ready file tells when it is ready.
    pub(super) fn start_again(&self, workdir: &Workdir) -> Result<()> {
        self.process().kill();
        let process = Arc::new(self.launch.clone().start(workdir)?);
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }
}

impl Node {
    /// What it tells of its part on the mesh, over its socket and no network.
    pub(super) async fn on_the_mesh(&self) -> Result<Value> {
        let answer = ask_socket(&self.data.join("control.sock"), get("/status")).await?;
        Ok(answer.json()["mesh"][0].clone())
    }

    /// The id of its home, if it has one.
    pub(super) async fn home(&self) -> Result<Option<String>> {
        Ok(self.on_the_mesh().await?["home"].as_str().map(str::to_owned))
    }
}

/// Where each node serves its own machine.
pub(super) fn own_port() -> SocketAddr {
    ([127, 0, 0, 1], OWN_PORT).into()
}

fn entry(world: &World, program: &Path, v6: bool, workdir: &Workdir) -> Launch {
    let at = |v6| SocketAddr::from((entry_address(v6), ENTRY_PORT)).to_string();
    let mut launch =
        Launch::new("entry", program).inside(&world.entry().path()).args(["--plain-http", "--listen", &at(false)]);
    if v6 {
        launch = launch.args(["--listen", &at(true), "--tunnel-listen", &format!("[::]:{ENTRY_PORT}")]);
    }
    launch.arg("--key-file").arg(workdir.path().join("entry.key")).ready_file(workdir)
}

fn service(node: &str, namespace: &Path, program: &Path, workdir: &Workdir) -> Launch {
    let name = format!("{SERVICE}-{node}");
    let listen = SocketAddr::from(([127, 0, 0, 1], SERVICE_PORT)).to_string();
    Launch::new(&name, program)
        .inside(namespace)
        .args(["service", "--kind", Kind::Kit.as_str(), "--name", &name, "--listen", &listen])
        .ready_file(workdir)
}

fn node(member: &Member, namespace: &Path, program: &Path, entry_key: &str, data: &Path, workdir: &Workdir) -> Launch {
    let entry = SocketAddr::from((entry_address(member.router == Router::Ipv6Only), ENTRY_PORT));
    let mut launch = Launch::new(&member.name, program)
        .inside(namespace)
        .args(["join", &format!("http://{entry}"), "--entry-key", entry_key, "--role", member.role.as_str()])
        .args(["--lan-discovery", member.lan_discovery.as_str()])
        .args(["--listen", &own_port().to_string(), "--data-dir"])
        .arg(data);
    if member.role.serves() {
        launch = launch.args(["--service", &format!("{SERVICE}=http://127.0.0.1:{SERVICE_PORT};capacity={CAPACITY}")]);
    }
    launch.ready_file(workdir)
}
