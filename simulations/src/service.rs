//! Small real HTTP services, each a process of its own (`hedgerow-sim service`), for what stands behind a worker.
//!
//! They keep evidence of what reached them ([`evidence`]), so that a check looks at the service and not at what the federation
//! says of itself. Evidence is read at `/evidence` on the service's own port, past the federation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use hedgerow_process::ready_file::ReadyFile;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

pub mod evidence;
mod routes;
mod websocket;

use evidence::Ledger;
pub(crate) use routes::hex;

/// Arguments of `hedgerow-sim service`.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Gets `{"listen": …}` once it listens
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// What it does
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// What it calls itself in its answers
    #[arg(long, default_value = "service")]
    name: String,
}

/// What a service does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Says who it is.
    Hello,
    /// Sends a request's body back while it still arrives.
    Echo,
    /// Server-sent events, ten a second.
    Events,
    /// All of them and more, by path; see the table in `routes.rs`.
    #[default]
    Kit,
}

impl Kind {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Echo => "echo",
            Self::Events => "events",
            Self::Kit => "kit",
        }
    }
}

/// A service's own state.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    name: String,
    ledger: Arc<Ledger>,
}

impl Service {
    /// One that nothing has reached yet. `name` is what it calls itself.
    pub fn new(kind: Kind, name: String) -> Arc<Self> {
        Arc::new(Self { kind, name, ledger: Arc::default() })
    }

    /// What has reached it.
    pub fn evidence(&self) -> evidence::Evidence {
        self.ledger.evidence()
    }
}

/// Serves until the process is ended.
pub async fn run(args: ServiceArgs) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let listen = listener.local_addr()?;
    let _ready = match &args.ready_file {
        Some(path) => {
            let mut file = ReadyFile::at(path)?;
            file.write(&serde_json::json!({ "listen": listen }))?;
            Some(file)
        }
        None => None,
    };
    serve(listener, Service::new(args.kind, args.name)).await;
    Ok(())
}

/// Answers everybody who connects, until it is dropped.
pub async fn serve(listener: TcpListener, service: Arc<Service>) {
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |request| routes::answer(service.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
        });
    }
}
