//! The coordinators that a worker has heard of: from its entries, from its homes, and on its LAN. Hints, kept until better ones come: a
//! worker whose home dies at night must know whom to ask.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::id::{FederationId, NodeId};
use crate::limits::Limits;
use crate::record::{Record, Signed, Version};

/// Coordinators that are remembered. Over it the one that was heard of longest ago goes.
pub const REMEMBERED_MAX: usize = 64;
/// Of those that nobody's record tells of, and that are only said to be on the LAN: anybody there may say so, and each costs an
/// attempt.
pub const UNSIGNED_MAX: usize = 8;

/// What a coordinator's own record tells a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    node: NodeId,
    version: Version,
    addresses: Vec<String>,
}

impl Told {
    /// Of a signed record that somebody has told of. What is none, or not a coordinator's, is no hint.
    pub fn open(bytes: Bytes, federation: FederationId, limits: &Limits) -> Option<Self> {
        Self::of(Signed::open(bytes, federation, limits).ok()?.record())
    }

    /// Of a record whose signature is good.
    pub fn of(record: &Record) -> Option<Self> {
        let node = record.node().filter(|node| node.roles.coordinates() && !node.multiaddrs.is_empty())?;
        Some(Self { node: record.writer, version: record.version, addresses: node.multiaddrs.clone() })
    }
}

/// One coordinator.
#[derive(Debug, Clone)]
struct Hint {
    version: Version,
    addresses: Vec<String>,
    heard: u64,
}

/// Those that have been heard of.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    known: BTreeMap<NodeId, Hint>,
    /// Where somebody may be on the LAN, by anybody's word.
    on_lan: BTreeMap<NodeId, Vec<String>>,
}

impl Hints {
    /// Takes in what somebody has told, all at once. Returns whether there is something new in it: then the seeker wants to
    /// hear of it ([`super::seeker::Event::Heard`]).
    pub fn learn(&mut self, told: impl IntoIterator<Item = Told>) -> bool {
        let heard = self.known.values().map(|hint| hint.heard).max().unwrap_or(0) + 1;
        let mut news = false;
        for Told { node, version, addresses } in told {
            let newer = self.known.get(&node).is_none_or(|hint| hint.version < version);
            news |= newer;
            match self.known.get_mut(&node) {
                Some(hint) if !newer => hint.heard = heard,
                _ => drop(self.known.insert(node, Hint { version, addresses, heard })),
            }
        }
        while self.known.len() > REMEMBERED_MAX {
            let oldest = self.known.iter().min_by_key(|(_, hint)| hint.heard).map(|(node, _)| *node);
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        news
    }

    /// These may be on the LAN, at these addresses, and no others. Returns whether that is new, as [`Hints::learn`] does.
    pub fn find_on_lan(&mut self, found: BTreeMap<NodeId, Vec<String>>) -> bool {
        let news = self.on_lan != found;
        self.on_lan = found;
        news
    }

    /// All of them, in order of id, each with its addresses as it wrote them, and those on the LAN: not all need be any that can be
    /// dialled.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, Vec<String>)> {
        let on_lan = |node| self.on_lan.get(node).into_iter().flatten();
        let signed = self
            .known
            .iter()
            .map(move |(node, hint)| (*node, hint.addresses.iter().chain(on_lan(node)).cloned().collect()));
        let unsigned = self.on_lan.iter().filter(|(node, _)| !self.is_signed(node));
        signed.chain(unsigned.take(UNSIGNED_MAX).map(|(node, addresses)| (*node, addresses.clone())))
    }

    /// Whether a coordinator is among them.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.is_signed(node) || self.on_lan.contains_key(node)
    }

    /// Whether a coordinator's own record tells of it.
    pub fn is_signed(&self, node: &NodeId) -> bool {
        self.known.contains_key(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;
    use crate::record::{Body, NodeRecord, Roles};

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

    fn hear(hints: &mut Hints, records: Vec<Vec<u8>>) -> bool {
        hints.learn(records.into_iter().filter_map(|record| Told::open(record.into(), FEDERATION, &Limits::PRODUCTION)))
    }

    #[test]
    fn the_newest_word_of_each_coordinator_is_kept_and_no_more_than_so_many() {
        let mut hints = Hints::default();
        let records = vec![
            record(1, 2, Roles::Coordinator, "/ip4/127.0.0.1/tcp/2"),
            record(1, 1, Roles::Coordinator, "/ip4/127.0.0.1/tcp/1"),
            record(2, 1, Roles::Worker, "/ip4/127.0.0.1/tcp/3"),
            b"nonsense".to_vec(),
        ];
        assert!(hear(&mut hints, records.clone()));
        assert!(!hear(&mut hints, records), "no news the second time");
        let addresses: Vec<String> = hints.all().flat_map(|(_, addresses)| addresses).collect();
        assert_eq!(addresses, ["/ip4/127.0.0.1/tcp/2"]);
        for n in 10..200 {
            hear(&mut hints, vec![record(n, 1, Roles::Coordinator, "/ip4/127.0.0.1/tcp/9")]);
        }
        assert_eq!(hints.all().count(), REMEMBERED_MAX);
        assert!(!hints.contains(&SecretKey::from_seed([1; 32]).id()), "the oldest went");
    }

    #[test]
    fn who_is_on_the_lan_has_one_more_address_and_few_of_whom_nobody_has_heard_are_believed_to_be() {
        let mut hints = Hints::default();
        hear(&mut hints, vec![record(1, 1, Roles::Coordinator, "/ip4/192.0.2.1/tcp/1")]);
        let known = SecretKey::from_seed([1; 32]).id();
        let at = vec!["/ip4/192.168.1.7/tcp/1".to_owned()];
        let mut found: BTreeMap<_, _> = (2..100).map(|n| (NodeId([n; 32]), at.clone())).collect();
        found.insert(known, at.clone());
        assert!(hints.find_on_lan(found.clone()));
        assert!(!hints.find_on_lan(found));
        let all: BTreeMap<_, _> = hints.all().collect();
        assert_eq!(all.len(), 1 + UNSIGNED_MAX);
        assert_eq!(all[&known], ["/ip4/192.0.2.1/tcp/1", "/ip4/192.168.1.7/tcp/1"]);
        assert!(hints.is_signed(&known) && !hints.is_signed(&NodeId([2; 32])));
        assert!(hints.find_on_lan(BTreeMap::new()));
        assert_eq!(hints.all().count(), 1);
    }
}
