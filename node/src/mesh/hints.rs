//! The coordinators that a worker has heard of: from its entries, and from its homes. Hints, kept until better ones come: a
//! worker whose home dies at night must know whom to ask.

use std::collections::BTreeMap;

use hedgerow_mesh::host::Multiaddr;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Signed, Version};
use tokio::sync::watch;

/// Coordinators that are remembered. Over it the one that was heard of longest ago goes.
const REMEMBERED_MAX: usize = 64;

/// One coordinator.
#[derive(Debug, Clone)]
struct Hint {
    version: Version,
    addresses: Vec<Multiaddr>,
    heard: u64,
}

/// Those that have been heard of.
#[derive(Debug)]
pub struct Hints {
    federation: FederationId,
    known: watch::Sender<BTreeMap<NodeId, Hint>>,
}

impl Hints {
    /// Nobody yet.
    pub fn new(federation: FederationId) -> Self {
        Self { federation, known: watch::Sender::new(BTreeMap::new()) }
    }

    /// Takes records in that somebody has told of. What is none, or not a coordinator's, is no hint.
    pub fn hear(&self, records: &[Vec<u8>]) {
        let limits = Limits::PRODUCTION;
        let opened = records.iter().filter_map(|bytes| {
            let (_, record) = Signed::open(bytes.clone().into(), self.federation, &limits).ok()?;
            let node = record.node().filter(|node| node.roles.coordinates() && !node.multiaddrs.is_empty())?;
            let addresses = node.multiaddrs.iter().filter_map(|address| address.parse().ok()).collect();
            Some((record.writer, record.version, addresses))
        });
        let opened: Vec<_> = opened.collect();
        self.known.send_if_modified(|known| {
            let heard = known.values().map(|hint| hint.heard).max().unwrap_or(0) + 1;
            let mut news = false;
            for (node, version, addresses) in opened {
                let newer = known.get(&node).is_none_or(|hint| hint.version < version);
                news |= newer;
                match known.get_mut(&node) {
                    Some(hint) if !newer => hint.heard = heard,
                    _ => drop(known.insert(node, Hint { version, addresses, heard })),
                }
            }
            while known.len() > REMEMBERED_MAX {
                let oldest = known.iter().min_by_key(|(_, hint)| hint.heard).map(|(node, _)| *node);
                if let Some(oldest) = oldest {
                    known.remove(&oldest);
                }
            }
            news
        });
    }

    /// All of them, with their addresses.
    pub fn all(&self) -> Vec<(NodeId, Vec<Multiaddr>)> {
        self.known.borrow().iter().map(|(node, hint)| (*node, hint.addresses.clone())).collect()
    }

    /// Ready when there is something new.
    pub async fn changed(&self) {
        // The sender is ours: it cannot have gone.
        let _ = self.known.subscribe().changed().await;
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::record::{Body, NodeRecord, Roles};

    use super::*;

    const FEDERATION: FederationId = FederationId([1; 32]);

    fn record(n: u8, seq: u64, roles: Roles, address: &str) -> Vec<u8> {
        let body = Body::Node(NodeRecord {
            roles,
            location: String::new(),
            version: "1".into(),
            services: vec![],
            multiaddrs: vec![address.into()],
            home: None,
            candidacy: Default::default(),
            hardware: Default::default(),
        });
        let version = Version { epoch: 1, seq };
        Signed::sign(&SecretKey::from_seed([n; 32]), FEDERATION, 1, version, &body).unwrap().bytes().to_vec()
    }

    #[test]
    fn the_newest_word_of_each_coordinator_is_kept_and_no_more_than_so_many() {
        let hints = Hints::new(FEDERATION);
        hints.hear(&[
            record(1, 2, Roles::Coordinator, "/ip4/127.0.0.1/tcp/2"),
            record(1, 1, Roles::Coordinator, "/ip4/127.0.0.1/tcp/1"),
            record(2, 1, Roles::Worker, "/ip4/127.0.0.1/tcp/3"),
            b"nonsense".to_vec(),
        ]);
        let addresses: Vec<String> = hints.all().iter().map(|(_, addresses)| addresses[0].to_string()).collect();
        assert_eq!(addresses, ["/ip4/127.0.0.1/tcp/2"]);
        for n in 10..200 {
            hints.hear(&[record(n, 1, Roles::Coordinator, "/ip4/127.0.0.1/tcp/9")]);
        }
        assert_eq!(hints.all().len(), REMEMBERED_MAX);
        assert!(hints.all().iter().all(|(node, _)| *node != SecretKey::from_seed([1; 32]).id()), "the oldest went");
    }
}
