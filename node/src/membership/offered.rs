//! What the tunnels of a membership can ask for: the services; of a coordinator also the registry, its libp2p host, and the workers that
//! are at home there.

use std::sync::Arc;

use hedgerow_mesh::replica::Replica;
use hedgerow_proto::frame::{Preface, Refusal, StreamKind};
use hedgerow_proto::sync::Session;
use hedgerow_tunnel::link::{BoxFuture, BoxStream};
use hedgerow_tunnel::serve::OtherStream;
use hedgerow_tunnel::{OpenService, Services, Tunnel};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tracing::debug;

use crate::contract::{Contract, serve_stream};
use crate::mesh::Mesh;
use crate::services::LocalServices;

/// What there is.
pub(super) struct Offered {
    pub(super) services: Arc<LocalServices>,
    pub(super) mesh: Arc<Mesh>,
    pub(super) contract: Arc<Contract>,
}

impl Services for Offered {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        self.services.open(preface)
    }

    fn other(&self, preface: &Preface) -> Option<OtherStream> {
        if !self.mesh.roles().coordinates() {
            return None;
        }
        match preface.kind {
            StreamKind::Sync => {
                let replica = self.mesh.replica.clone();
                Some(Box::new(move |stream| Box::pin(synchronise(replica, stream))))
            }
            StreamKind::Relay => {
                let worker = self.mesh.workers.tunnel(&preface.node?)?;
                Some(Box::new(move |stream| Box::pin(pass_on(worker, stream))))
            }
            StreamKind::MeshPeer => {
                let arrivals = self.mesh.host.borrow().as_ref()?.arrivals()?.clone();
                // What becomes of it is libp2p's matter from here on.
                Some(Box::new(move |stream| {
                    arrivals.arrive(stream);
                    Box::pin(std::future::ready(()))
                }))
            }
            StreamKind::Contract => {
                let contract = self.contract.clone();
                Some(Box::new(move |stream| Box::pin(serve_stream(contract, stream))))
            }
            _ => None,
        }
    }
}

async fn synchronise(replica: Replica, mut stream: BoxStream) {
    match replica.sync_over(&mut stream, Session::respond()).await {
        // The other end has all that it wanted: whether it hears that this one is done does not matter.
        Ok(_) => drop(stream.shutdown().await),
        Err(error) => debug!(%error, "a synchronisation broke off"),
    }
}

/// Copies bytes between an entry's stream and one to a worker, both ways, until both have ended. A break of one is the break of
/// the other: both are dropped, which resets them.
async fn pass_on(worker: Tunnel, mut from_entry: BoxStream) {
    let mut to_worker = match worker.open().await {
        Ok(stream) => stream,
        Err(error) => return debug!(worker = %worker.node().short(), %error, "a worker's stream is not to be had"),
    };
    let _busy = worker.in_flight();
    if let Err(error) = copy_bidirectional(&mut from_entry, &mut to_worker).await {
        debug!(worker = %worker.node().short(), %error, "a stream that is passed on has broken");
    }
}
