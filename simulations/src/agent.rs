//! `hedgerow-sim agent`: an agent of the existing contract, which speaks plain HTTP and knows nothing of ours.
//!
//! ```text
//! health ─▶ register ─▶ bootstrap ─▶ serves its own HTTP ─▶ heartbeats … SIGTERM ─▶ unregister
//! ```
//!
//! It registers once and never again by itself, as those agents do: what becomes of it afterwards is the federation's to mend.
//! Each step is one line of JSON on standard output ([`Step`]), so that whoever started it can see what it was told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use hedgerow_process::ready_file::ReadyFile;
use hedgerow_process::shutdown::Shutdown;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::service::{Kind, Service, serve};

mod coordinator;
mod machine;

pub use coordinator::{CoordinatorUrl, Step};

/// How long most answers may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// How long the answer to a registration may take: who is slower has lost this agent.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);
/// How long the answer to a heartbeat may take.
const HEARTBEAT_WITHIN: Duration = Duration::from_secs(5);
/// Requests that it calls a full load.
const FULL_LOAD: f64 = 10.0;
/// Connections that wait until they are accepted.
const BACKLOG: u32 = 128;

/// Arguments of `hedgerow-sim agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The entry or coordinator to register with: http://HOST:PORT
    #[arg(long)]
    coordinator: CoordinatorUrl,
    /// The id to register under; left out, one is given to it
    #[arg(long)]
    worker_id: Option<String>,
    /// What sort of machine it says it is
    #[arg(long = "type", value_enum, default_value_t)]
    kind: WorkerKind,
    /// Where it says it is
    #[arg(long, default_value = "")]
    location: String,
    /// Where it serves its own HTTP
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Seconds between two heartbeats
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    heartbeat_seconds: u64,
    /// Gets `{"listen": …, "worker_id": …, "services": […]}` once it serves
    #[arg(long)]
    ready_file: Option<PathBuf>,
}

/// The types of worker that the contract knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum WorkerKind {
    /// With a GPU.
    Gpu,
    /// Without one.
    #[default]
    Cpu,
    /// With much disk.
    Storage,
}

impl WorkerKind {
    /// The word of the contract.
    fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
            Self::Storage => "storage",
        }
    }
}

/// Lives until SIGINT or SIGTERM; an error if the coordinator is not healthy or does not take it.
pub async fn run(args: AgentArgs) -> Result<()> {
    let shutdown = Shutdown::on_signals().context("signals cannot be listened for")?;
    let socket = if args.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Bound, so that the port can be named at registration, but nobody can connect before it serves.
    socket.bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let url = format!("http://{}", socket.local_addr()?);
    let ready = args.ready_file.as_deref().map(ReadyFile::at).transpose()?;
    let mut agent = Agent { args, url, registered: None };
    let lived = tokio::select! {
        lived = agent.live(socket, ready) => lived,
        () = shutdown.draining() => Ok(()),
    };
    let left = tokio::select! {
        () = agent.unregister() => lived,
        () = shutdown.stopping() => bail!("stopped before it had unregistered"),
    };
    Step::new("exit").say();
    left
}

/// What a coordinator answered to the registration.
#[derive(Debug, Clone)]
struct Registered {
    worker_id: String,
    services: Vec<String>,
}

struct Agent {
    args: AgentArgs,
    /// Where it says that it is reached.
    url: String,
    registered: Option<Registered>,
}

impl Agent {
    async fn live(&mut self, socket: TcpSocket, ready: Option<ReadyFile>) -> Result<()> {
        let coordinator = self.args.coordinator.clone();
        let health = coordinator.ask("health", "GET", "/health", None, ASK_WITHIN).await;
        if health.status != Some(200) {
            bail!("{coordinator} is not healthy");
        }
        let registered = self.register(&coordinator).await?;
        coordinator.ask("bootstrap", "GET", "/api/dht/bootstrap", None, ASK_WITHIN).await;

        let service = Service::new(Kind::Kit, registered.worker_id.clone());
        let listener = socket.listen(BACKLOG)?;
        let listen = listener.local_addr()?;
        let said = json!({ "listen": listen, "worker_id": registered.worker_id, "services": registered.services });
        // It goes with this process, or with the future that is dropped when a signal comes.
        let _ready = match ready {
            Some(mut file) => {
                file.write(&said)?;
                Some(file)
            }
            None => None,
        };
        Step { answer: said, ..Step::new("serving") }.say();
        tokio::select! {
            () = serve(listener, service.clone()) => Ok(()),
            () = self.send_heartbeats(&coordinator, &registered, &service) => Ok(()),
        }
    }

    /// Once. What is refused, or takes too long, is not tried again.
    async fn register(&mut self, coordinator: &CoordinatorUrl) -> Result<Registered> {
        let said = self.registration();
        let step = coordinator.ask("register", "POST", "/api/worker/register", Some(said), REGISTER_WITHIN).await;
        if !step.status.is_some_and(|status| (200..300).contains(&status)) {
            bail!("{coordinator} does not take this agent: {}", step.why());
        }
        let worker_id = step.answer["worker_id"].as_str().map(str::to_owned).or(self.args.worker_id.clone());
        let assigned = step.answer["assigned_services"].as_array().into_iter().flatten();
        let services = assigned.filter_map(Value::as_str).map(str::to_owned).collect();
        let worker_id = worker_id.context("it brought no worker id and was given none")?;
        let registered = Registered { worker_id, services };
        self.registered = Some(registered.clone());
        Ok(registered)
    }

    fn registration(&self) -> Value {
        let kind = self.args.kind;
        let mut said = json!({
            "worker_type": kind.as_str(),
            "tunnel_url": self.url,
            "location": self.args.location,
            "vpn_ip": null,
            // It offers what it is given to offer.
            "services": [],
            "capabilities": machine::capabilities(kind),
        });
        if let Some(worker_id) = &self.args.worker_id {
            said["worker_id"] = worker_id.as_str().into();
        }
        said
    }

    /// For ever, whatever the answers are: agents of this contract do not mend anything themselves.
    async fn send_heartbeats(&self, coordinator: &CoordinatorUrl, registered: &Registered, service: &Service) {
        let mut ticks = tokio::time::interval(Duration::from_secs(self.args.heartbeat_seconds));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let running = service.evidence().running;
            let states = registered.services.iter().map(|name| (name.clone(), json!("healthy")));
            let said = json!({
                "worker_id": registered.worker_id,
                "status": "healthy",
                "current_load": (running as f64 / FULL_LOAD).min(1.0),
                "active_requests": running,
                "loaded_models": [],
                "services_status": states.collect::<serde_json::Map<_, _>>(),
            });
            coordinator.ask("heartbeat", "POST", "/api/worker/heartbeat", Some(said), HEARTBEAT_WITHIN).await;
        }
    }

    /// Says that it goes, if anybody knows it.
    async fn unregister(&self) {
        if let Some(registered) = &self.registered {
            let path = format!("/api/worker/unregister/{}", registered.worker_id);
            self.args.coordinator.ask("unregister", "DELETE", &path, None, ASK_WITHIN).await;
        }
    }
}
