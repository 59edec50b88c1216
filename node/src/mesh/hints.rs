//! The coordinators that this node has heard of ([`hedgerow_proto::home::hints`]), for all tasks that hear or want to know.

use std::collections::BTreeMap;

use hedgerow_mesh::host::Multiaddr;
use hedgerow_proto::home::{self, Told};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use tokio::sync::watch;

/// Those that have been heard of.
#[derive(Debug)]
pub struct Hints {
    federation: FederationId,
    limits: Limits,
    known: watch::Sender<home::Hints>,
}

impl Hints {
    /// Nobody yet. Records of others are read within these bounds.
    pub fn new(federation: FederationId, limits: Limits) -> Self {
        Self { federation, limits, known: watch::Sender::new(home::Hints::default()) }
    }

    /// Takes records in that somebody has told of.
    pub fn hear(&self, records: &[Vec<u8>]) {
        let open = |bytes: &Vec<u8>| Told::open(bytes.clone().into(), self.federation, &self.limits);
        // The signatures are the dear part, and need no lock.
        let told: Vec<Told> = records.iter().filter_map(open).collect();
        self.known.send_if_modified(|known| known.learn(told));
    }

    /// These may be on the LAN, by the word of anybody there.
    pub fn find_on_lan(&self, found: &BTreeMap<NodeId, Vec<Multiaddr>>) {
        let written = |addresses: &Vec<Multiaddr>| addresses.iter().map(ToString::to_string).collect();
        let found = found.iter().map(|(node, addresses)| (*node, written(addresses))).collect();
        self.known.send_if_modified(|known| known.find_on_lan(found));
    }

    /// What is known, and when there is something new.
    pub fn watch(&self) -> watch::Receiver<home::Hints> {
        self.known.subscribe()
    }
}
