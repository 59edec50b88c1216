//! What this node says of itself: its signed record, said anew whenever one of its services changes, and its last word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hedgerow_mesh::host::{HostStatus, Multiaddr};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Body, NodeRecord, RecordError, Roles, Signed, Version};
use tokio::sync::watch;
use tracing::{debug, error};

use crate::services::LocalServices;

/// Signs what a node says in one federation. Each statement is newer than the one before.
pub struct Author {
    key: SecretKey,
    federation: FederationId,
    incarnation: u64,
    epoch: u64,
    said: AtomicU64,
}

/// The part of a node's record that stays the same while it runs.
#[derive(Debug, Clone)]
pub struct Profile {
    /// What it is.
    pub roles: Roles,
    /// Where it is.
    pub location: String,
    /// Where other coordinators can dial it.
    pub mesh_listen: Option<Multiaddr>,
}

impl Author {
    /// For one run of a node: `epoch` has been raised on disk, `incarnation` is random.
    pub fn new(key: SecretKey, federation: FederationId, incarnation: u64, epoch: u64) -> Self {
        Self { key, federation, incarnation, epoch, said: AtomicU64::new(0) }
    }

    /// Signs one statement.
    pub fn sign(&self, body: &Body) -> Result<Bytes, RecordError> {
        let version = Version { epoch: self.epoch, seq: self.said.fetch_add(1, Ordering::Relaxed) };
        Signed::sign(&self.key, self.federation, self.incarnation, version, body).map(|signed| signed.bytes().clone())
    }

    /// The node's record as its services and its libp2p addresses are now.
    pub fn node(
        &self,
        profile: &Profile,
        services: &LocalServices,
        addresses: &[Multiaddr],
    ) -> Result<Bytes, RecordError> {
        self.sign(&Body::Node(NodeRecord {
            roles: profile.roles,
            location: profile.location.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: services.offers(),
            multiaddrs: addresses
                .iter()
                .take(Limits::PRODUCTION.multiaddrs_per_node_max)
                .map(ToString::to_string)
                .collect(),
            home: None,
        }))
    }
}

/// The record now, and again whenever the health of a service changes or the addresses of the node's libp2p host do.
pub fn publish(
    author: Arc<Author>,
    profile: Profile,
    services: Arc<LocalServices>,
    mut host: watch::Receiver<HostStatus>,
) -> Result<watch::Receiver<Bytes>, RecordError> {
    let mut changes = services.health_changes();
    changes.mark_unchanged();
    let mut addresses = host.borrow_and_update().listening.clone();
    let (sender, receiver) = watch::channel(author.node(&profile, &services, &addresses)?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Ok(()) = host.changed() => {
                    let now = &host.borrow_and_update().listening;
                    if *now == addresses {
                        continue;
                    }
                    addresses.clone_from(now);
                }
                () = sender.closed() => return,
            }
            match author.node(&profile, &services, &addresses) {
                Ok(record) => {
                    debug!("the record is said anew");
                    sender.send_replace(record);
                }
                Err(error) => error!(%error, "the node's record cannot be signed any more"),
            }
        }
    });
    Ok(receiver)
}
