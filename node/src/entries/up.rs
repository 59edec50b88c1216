//! The entries whose tunnel is up: where others reach this node by way of them.

use std::net::{IpAddr, SocketAddr};

use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_tunnel::link::Transport;
use hedgerow_tunnel::{TunnelState, TunnelStatus};
use tokio::time::Instant;

use super::{Entries, lock};
use crate::entry_url::EntryUrl;

/// An entry whose tunnel is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpEntry {
    /// Its key.
    pub entry: NodeId,
    /// As the operator wrote it.
    pub url: EntryUrl,
    /// Its federation.
    pub federation: FederationId,
    /// Where its name leads.
    pub addresses: Vec<IpAddr>,
    /// Its UDP port, which says from where datagrams come: where the tunnel goes over TCP none comes there.
    pub observer: Option<SocketAddr>,
    /// Since when it is up.
    pub since: Instant,
}

impl UpEntry {
    /// This entry, if its tunnel is up.
    pub fn of(
        (entry, url, federation): (NodeId, &EntryUrl, FederationId),
        addresses: impl IntoIterator<Item = IpAddr>,
        status: &TunnelStatus,
    ) -> Option<Self> {
        let TunnelState::Up(up) = &status.state else { return None };
        Some(Self {
            entry,
            url: url.clone(),
            federation,
            addresses: addresses.into_iter().collect(),
            observer: up.remote.filter(|_| up.transport == Transport::Quic),
            since: up.since,
        })
    }
}

impl Entries {
    /// Those whose tunnel is up, in order of key.
    pub fn up(&self) -> Vec<UpEntry> {
        let tunnels = lock(&self.tunnels);
        let up = tunnels.iter().filter_map(|(id, followed)| {
            let entry = (*id, &followed.url, followed.federation);
            UpEntry::of(entry, followed.addresses.keys().copied(), &followed.status.borrow())
        });
        up.collect()
    }
}
