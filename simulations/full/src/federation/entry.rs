//! One entry of the domain: the product's, without sockets, over the simulated network; and the node's way to it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hedgerow_entry::embedded::Embedded;
use hedgerow_node::entry_url::{EntryUrl, Scheme};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::registry::Digest;
use hedgerow_tunnel::link::{BoxFuture, Link, LinkClosed};
use hedgerow_tunnel::{Directory, Target, TunnelError, Way};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span, info};

use super::node::NodeError;
use crate::narrator;
use crate::net::{Network, accept_link, address, dial_link};

/// Where clients come in.
pub(super) const HTTP_PORT: u16 = 80;
/// Where tunnels come in.
pub(super) const TUNNEL_PORT: u16 = 443;

/// What an entry is, whatever happens to it.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) node: u32,
    pub(super) federation: FederationId,
    pub(super) limits: Limits,
    pub(super) key: SecretKey,
}

/// An entry that runs.
pub(super) struct RunningEntry {
    embedded: Rc<Embedded>,
    task: JoinHandle<()>,
    /// In which all that it says is said.
    span: Span,
}

impl Entry {
    /// Where it takes tunnels in.
    pub(super) fn tunnels(&self) -> SocketAddr {
        address::of(self.node, TUNNEL_PORT)
    }

    /// Where clients ask.
    pub(super) fn clients(&self) -> SocketAddr {
        address::of(self.node, HTTP_PORT)
    }

    /// As an operator would write it.
    pub(super) fn url(&self) -> EntryUrl {
        let at = self.clients();
        EntryUrl { scheme: Scheme::Http, host: at.ip().to_string(), port: at.port() }
    }

    /// Starts it; it knows nothing.
    pub(super) fn start(&self, network: &Network, incarnation: u64) -> Result<RunningEntry, NodeError> {
        let start = |reason: String| NodeError::Start { node: self.node, reason };
        let embedded =
            Embedded::new(self.key.clone(), self.federation, incarnation, self.limits.clone(), self.tunnels());
        let embedded = Rc::new(embedded.map_err(|failure| start(failure.to_string()))?);
        let listen = |port| network.listen(self.node, port).map_err(|error| start(error.to_string()));
        let (http, tunnels) = (listen(HTTP_PORT)?, listen(TUNNEL_PORT)?);
        let (network, me) = (network.clone(), self.key.id());
        let running = embedded.clone();
        let serving = async move {
            let clients = async {
                while let Ok((stream, from)) = http.accept().await {
                    running.serve_client(stream, from);
                }
            };
            let nodes = async {
                while let Ok((first, from)) = tunnels.accept().await {
                    // One that says nothing holds up nobody but itself.
                    let network = network.clone();
                    let link = async move { accept_link(&network, first, me, from).await.map_err(not_reached) };
                    running.take_in(link, from.ip());
                }
            };
            tokio::select! {
                never = running.run() => match never {},
                ((), ()) = async { tokio::join!(clients, nodes) } => {}
            }
        };
        let span = narrator::span(self.node);
        span.in_scope(|| info!("an entry starts"));
        let task = tokio::task::spawn_local(serving.instrument(span.clone()));
        Ok(RunningEntry { embedded, task, span })
    }
}

impl RunningEntry {
    /// Of its registry.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.embedded.digest()
    }

    /// Kills it.
    pub(super) async fn kill(self) {
        self.span.in_scope(|| info!("an entry is killed"));
        self.task.abort();
        // It was aborted: that is what it says.
        let _ = self.task.await;
    }
}

fn not_reached(error: std::io::Error) -> TunnelError {
    TunnelError::Closed(LinkClosed { code: None, reason: error.to_string() })
}

/// A node's way to an entry.
pub(super) struct WayTo {
    pub(super) entry: Entry,
    pub(super) network: Network,
    pub(super) from: u32,
    pub(super) me: NodeId,
}

impl Directory for WayTo {
    fn target(&self) -> BoxFuture<'_, Result<Target, String>> {
        Box::pin(async move {
            // The bootstrap over HTTP, as far as it can fail.
            let answered = self.network.dial(self.from, self.entry.clients()).await;
            answered.map_err(|error| format!("the entry does not answer: {error}"))?;
            Ok(Target {
                ways: vec![Way::Quic(self.entry.tunnels())],
                entry: self.entry.key.id(),
                federation: self.entry.federation,
            })
        })
    }

    fn dial<'a>(
        &'a self,
        _: &'a SecretKey,
        _: NodeId,
        way: &'a Way,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, TunnelError>> {
        Box::pin(async move {
            let link = dial_link(&self.network, self.from, self.me, way.address()).await.map_err(not_reached)?;
            Ok(Arc::new(link) as Arc<dyn Link>)
        })
    }
}
