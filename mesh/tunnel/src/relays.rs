//! The way to a worker that has no tunnel here, by way of its home: each stream is one that the coordinator passes on
//! ([`StreamKind::Relay`]), and above it everything is as down a tunnel of the worker's own. An entry opens them down the
//! coordinator's tunnel, another coordinator over libp2p.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_proto::frame::{StreamKind, close};
use hedgerow_proto::id::{NodeId, RequestId};
use tokio::sync::watch;

use crate::accept::Tunnel;
use crate::link::{BoxFuture, BoxStream, Link, LinkClosed};
use crate::streams;

/// A connection to a worker that its home passes on.
struct RelayLink {
    via: Tunnel,
    worker: NodeId,
    /// Nobody needs it any more.
    closed: watch::Sender<Option<LinkClosed>>,
}

impl Link for RelayLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            // The exchange above has the request's number.
            let opened = streams::open(&self.via, StreamKind::Relay, Some(self.worker), RequestId(0)).await;
            opened.map_err(|error| LinkClosed { code: None, reason: error.to_string() })
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        // A worker opens nothing towards somebody whom it does not see.
        Box::pin(async move { Err(self.closed().await) })
    }

    fn close(&self, code: u32, reason: &str) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| LinkClosed { code: Some(code), reason: reason.to_owned() });
            first
        });
    }

    fn is_closed(&self) -> bool {
        self.closed.borrow().is_some() || self.via.is_closed()
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(async move {
            let mut closed = self.closed.subscribe();
            tokio::select! {
                closed = closed.wait_for(Option::is_some) => {
                    // The sender is ours: it cannot have gone.
                    let reason = closed.ok().and_then(|closed| closed.clone());
                    reason.unwrap_or_else(|| LinkClosed { code: None, reason: io::ErrorKind::NotConnected.to_string() })
                }
                closed = self.via.closed() => closed,
            }
        })
    }

    fn peer(&self) -> NodeId {
        self.worker
    }

    fn remote(&self) -> Option<SocketAddr> {
        None
    }

    fn received(&self) -> u64 {
        0
    }

    fn rtt(&self) -> Duration {
        // To the coordinator and, as far as anybody knows, as far again.
        self.via.rtt() * 2
    }
}

/// The ways that are in use: the same from one snapshot to the next, so that streams are used again.
#[derive(Debug, Default)]
pub struct Relays {
    /// By worker: the tunnel of its home by its number, and the way.
    ways: BTreeMap<NodeId, (u64, Tunnel)>,
}

impl Relays {
    /// The way to a worker down this tunnel of its home.
    pub fn way(&mut self, worker: NodeId, via: &Tunnel) -> Tunnel {
        match self.ways.get(&worker) {
            Some((id, way)) if *id == via.id() => way.clone(),
            _ => {
                let link = RelayLink { via: via.clone(), worker, closed: watch::Sender::new(None) };
                let way = Tunnel::passed_on(Arc::new(link), via.clone());
                self.forget(&worker);
                self.ways.insert(worker, (via.id(), way.clone()));
                way
            }
        }
    }

    /// The way to a worker, if there is one.
    pub fn get(&self, worker: &NodeId) -> Option<&Tunnel> {
        self.ways.get(worker).map(|(_, way)| way)
    }

    /// Keeps the ways to these workers, and closes all others: what runs on them goes on or fails by itself, and nothing new
    /// begins.
    pub fn keep_only(&mut self, wanted: impl Fn(&NodeId) -> bool) {
        let unwanted: Vec<NodeId> = self.ways.keys().filter(|worker| !wanted(worker)).copied().collect();
        for worker in &unwanted {
            self.forget(worker);
        }
    }

    fn forget(&mut self, worker: &NodeId) {
        if let Some((_, way)) = self.ways.remove(worker) {
            way.close(close::GOING, "the worker is not reached this way any more");
        }
    }
}
