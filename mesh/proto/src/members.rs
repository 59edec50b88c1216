//! The nodes that have a tunnel to one entry: which connections each holds, and what it last said of itself.
//!
//! Pure: a connection is any `C` (a tunnel, or a test's number), a source any `S`, and what is to be closed is handed back.
//! One node is one process: connections of one *incarnation*. When a second process comes with the same key, the one whose
//! record has the higher version is the newer (its epoch is raised on disk at each start); the older one is told that its key
//! is in use, and then decides what to do.

use std::collections::BTreeMap;

use crate::frame::{Reject, RejectReason};
use crate::id::NodeId;
use crate::record::{NodeRecord, Signed, Version};

/// Bounds of the table.
#[derive(Debug, Clone, Copy)]
pub struct MemberLimits {
    /// Nodes at once: each costs some 100 KiB of tunnels and records.
    pub nodes_max: usize,
    /// Nodes of one source (an address prefix): keys are free, addresses are not.
    pub nodes_per_source_max: usize,
    /// Connections of one node: the lanes that a node opens, and room for a change of them.
    pub lanes_max: usize,
}

/// A node with its connections.
#[derive(Debug)]
pub struct Member<C, S> {
    /// Of the process that holds the connections.
    pub incarnation: u64,
    /// Of its record.
    pub version: Version,
    /// What it says of itself.
    pub record: NodeRecord,
    /// The same, as it signed it.
    pub signed: Signed,
    /// It has said Leave: no new requests.
    pub leaving: bool,
    source: Option<S>,
    lanes: BTreeMap<u16, Lane<C>>,
}

/// One of a node's connections.
#[derive(Debug, Clone)]
pub struct Lane<C> {
    /// A number of its own in this process.
    pub id: u64,
    /// The thread that holds it.
    pub shard: usize,
    /// The connection itself.
    pub connection: C,
}

/// Who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival<S> {
    /// The node.
    pub node: NodeId,
    /// Random for each run of it.
    pub incarnation: u64,
    /// Of its record.
    pub version: Version,
    /// Which of its connections this is.
    pub lane: u16,
    /// Where it comes from; none for what no quota by source is for.
    pub source: Option<S>,
}

/// The table.
#[derive(Debug)]
pub struct Members<C, S> {
    limits: MemberLimits,
    nodes: BTreeMap<NodeId, Member<C, S>>,
    sources: BTreeMap<S, usize>,
}

impl<C, S> Member<C, S> {
    /// The node's connections, in order of lane; at least one.
    pub fn lanes(&self) -> impl ExactSizeIterator<Item = &Lane<C>> {
        self.lanes.values()
    }
}

impl<C, S: Ord + Copy> Members<C, S> {
    /// Nobody yet.
    pub fn new(limits: MemberLimits) -> Self {
        Self { limits, nodes: BTreeMap::new(), sources: BTreeMap::new() }
    }

    /// One node.
    pub fn node(&self, node: &NodeId) -> Option<&Member<C, S>> {
        self.nodes.get(node)
    }

    /// Every node, in order of id.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Member<C, S>)> {
        self.nodes.iter()
    }

    /// Whether this connection may become one of the table's. Asked before it is welcomed, and again by [`Self::join`].
    pub fn admit(&self, arrival: &Arrival<S>) -> Result<(), Reject> {
        let overloaded = |message: String| Reject { reason: RejectReason::Overloaded, message, record: None };
        let Some(member) = self.nodes.get(&arrival.node) else {
            if self.nodes.len() >= self.limits.nodes_max {
                return Err(overloaded(format!("this entry holds {} nodes and takes no more", self.nodes.len())));
            }
            let neighbours = arrival.source.and_then(|source| self.sources.get(&source)).copied().unwrap_or(0);
            if neighbours >= self.limits.nodes_per_source_max {
                return Err(overloaded(format!(
                    "{neighbours} nodes are here from your network already, and no more are taken from one"
                )));
            }
            return Ok(());
        };
        if member.incarnation != arrival.incarnation && arrival.version <= member.version {
            return Err(Reject {
                reason: RejectReason::KeyInUse,
                message: "another process with this node's key has a newer tunnel: two nodes must not share a data \
                          directory or a copy of it"
                    .into(),
                record: Some(member.signed.bytes().to_vec()),
            });
        }
        let full = member.lanes.len() >= self.limits.lanes_max && !member.lanes.contains_key(&arrival.lane);
        if member.incarnation == arrival.incarnation && full {
            return Err(overloaded(format!("this node has {} connections here already", member.lanes.len())));
        }
        Ok(())
    }

    /// Takes a welcomed connection in. Returns those whose place it takes, for the caller to close.
    pub fn join(
        &mut self,
        arrival: &Arrival<S>,
        lane: Lane<C>,
        signed: Signed,
        record: NodeRecord,
    ) -> Result<Vec<C>, Reject> {
        self.admit(arrival)?;
        let mut replaced = Vec::new();
        if self.nodes.get(&arrival.node).is_some_and(|member| member.incarnation != arrival.incarnation) {
            replaced.extend(self.remove(&arrival.node));
        }
        if !self.nodes.contains_key(&arrival.node) {
            if let Some(source) = arrival.source {
                *self.sources.entry(source).or_default() += 1;
            }
            let member = Member {
                incarnation: arrival.incarnation,
                version: arrival.version,
                record: record.clone(),
                signed: signed.clone(),
                leaving: false,
                source: arrival.source,
                lanes: BTreeMap::new(),
            };
            self.nodes.insert(arrival.node, member);
        }
        if let Some(member) = self.nodes.get_mut(&arrival.node) {
            // Lanes of one process may arrive in any order.
            member.hear(arrival.version, signed, record);
            replaced.extend(member.lanes.insert(arrival.lane, lane).map(|lane| lane.connection));
        }
        Ok(replaced)
    }

    /// A node's new record. Returns whether it changed anything: old news, and news of a process that has been replaced, do
    /// not.
    pub fn record(
        &mut self,
        node: &NodeId,
        incarnation: u64,
        version: Version,
        signed: Signed,
        record: NodeRecord,
    ) -> bool {
        let member = self.nodes.get_mut(node).filter(|member| member.incarnation == incarnation);
        member.is_some_and(|member| member.hear(version, signed, record))
    }

    /// A node leaves. Returns whether that is news.
    pub fn leave(&mut self, node: &NodeId, incarnation: u64) -> bool {
        let member = self.nodes.get_mut(node).filter(|member| member.incarnation == incarnation && !member.leaving);
        member.map(|member| member.leaving = true).is_some()
    }

    /// A connection is no more. Returns whether it was one of the table's.
    pub fn closed(&mut self, node: &NodeId, lane: u16, id: u64) -> bool {
        let Some(member) = self.nodes.get_mut(node) else { return false };
        if member.lanes.get(&lane).is_none_or(|lane| lane.id != id) {
            return false;
        }
        member.lanes.remove(&lane);
        if member.lanes.is_empty() {
            self.remove(node);
        }
        true
    }

    fn remove(&mut self, node: &NodeId) -> Vec<C> {
        let Some(member) = self.nodes.remove(node) else { return Vec::new() };
        if let Some(source) = member.source
            && let Some(count) = self.sources.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
        member.lanes.into_values().map(|lane| lane.connection).collect()
    }
}

impl<C, S> Member<C, S> {
    fn hear(&mut self, version: Version, signed: Signed, record: NodeRecord) -> bool {
        let newer = version > self.version;
        if newer {
            self.version = version;
            self.record = record;
            self.signed = signed;
        }
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::FederationId;
    use crate::key::SecretKey;
    use crate::record::{Body, Roles};

    const LIMITS: MemberLimits = MemberLimits { nodes_max: 3, nodes_per_source_max: 2, lanes_max: 2 };

    fn record(location: &str) -> NodeRecord {
        NodeRecord {
            roles: Roles::Worker,
            location: location.into(),
            version: "1".into(),
            services: vec![],
            multiaddrs: vec![],
            home: None,
            candidacy: Default::default(),
            hardware: Default::default(),
        }
    }

    fn version(epoch: u64, seq: u64) -> Version {
        Version { epoch, seq }
    }

    fn arrival(node: u8, incarnation: u64, epoch: u64, lane: u16) -> Arrival<&'static str> {
        let source = Some("a network");
        let node = SecretKey::from_seed([node; 32]).id();
        Arrival { node, incarnation, version: version(epoch, 1), lane, source }
    }

    fn signed(node: u8, version: Version, record: &NodeRecord) -> Signed {
        let key = SecretKey::from_seed([node; 32]);
        Signed::sign(&key, FederationId([0; 32]), 1, version, &Body::Node(record.clone())).unwrap()
    }

    struct Table(Members<u64, &'static str>);

    impl Table {
        fn new() -> Self {
            Self(Members::new(LIMITS))
        }

        fn join(&mut self, seed: u8, incarnation: u64, epoch: u64, lane: u16, id: u64) -> Result<Vec<u64>, Reject> {
            let (arrival, record) = (arrival(seed, incarnation, epoch, lane), record("a"));
            let signed = signed(seed, arrival.version, &record);
            self.0.join(&arrival, Lane { id, shard: 0, connection: id }, signed, record)
        }
    }

    fn reason(outcome: Result<Vec<u64>, Reject>) -> RejectReason {
        outcome.unwrap_err().reason
    }

    #[test]
    fn the_newest_connection_of_a_lane_replaces_the_old() {
        let mut table = Table::new();
        assert_eq!(table.join(1, 7, 1, 0, 10), Ok(vec![]));
        assert_eq!(table.join(1, 7, 1, 1, 11), Ok(vec![]));
        assert_eq!(table.join(1, 7, 1, 0, 12), Ok(vec![10]));
        let node = arrival(1, 7, 1, 0).node;
        assert!(!table.0.closed(&node, 0, 10), "the end of what was replaced is no news");
        assert!(table.0.closed(&node, 1, 11) && table.0.closed(&node, 0, 12));
        assert_eq!(table.0.iter().count(), 0);
    }

    #[test]
    fn a_newer_process_replaces_all_of_the_older_and_the_older_does_not_come_back() {
        let mut table = Table::new();
        table.join(1, 7, 1, 0, 10).unwrap();
        table.join(1, 7, 1, 1, 11).unwrap();
        assert_eq!(table.join(1, 8, 2, 0, 12), Ok(vec![10, 11]));
        assert_eq!(reason(table.join(1, 7, 1, 0, 13)), RejectReason::KeyInUse);
        assert_eq!(reason(table.join(1, 9, 2, 0, 14)), RejectReason::KeyInUse, "a copy of the data directory");
        assert_eq!(table.join(1, 7, 3, 0, 15), Ok(vec![12]), "who jumps above is the newer");
    }

    #[test]
    fn news_are_taken_in_order_and_from_the_present_process_alone() {
        let mut table = Table::new();
        table.join(1, 7, 1, 0, 10).unwrap();
        let node = arrival(1, 7, 1, 0).node;
        let mut hear = |incarnation, version, location: &str| {
            let record = record(location);
            table.0.record(&node, incarnation, version, signed(1, version, &record), record)
        };
        assert!(hear(7, version(1, 3), "c"));
        assert!(!hear(7, version(1, 2), "b"), "old news");
        assert!(!hear(6, version(1, 9), "d"), "of another process");
        assert_eq!(table.0.iter().next().unwrap().1.record.location, "c");
        assert!(!table.0.leave(&node, 6));
        assert!(table.0.leave(&node, 7) && !table.0.leave(&node, 7));
    }

    #[test]
    fn every_bound_holds_and_room_comes_back() {
        let mut table = Table::new();
        table.join(1, 7, 1, 0, 10).unwrap();
        table.join(2, 7, 1, 0, 20).unwrap();
        assert_eq!(reason(table.join(3, 7, 1, 0, 30)), RejectReason::Overloaded, "one source");
        table.join(1, 7, 1, 1, 11).unwrap();
        assert_eq!(reason(table.join(1, 7, 1, 2, 12)), RejectReason::Overloaded, "lanes");
        assert!(table.0.closed(&arrival(2, 7, 1, 0).node, 0, 20));
        assert_eq!(table.join(3, 7, 1, 0, 30), Ok(vec![]));
        let mut other = arrival(4, 7, 1, 0);
        other.source = None;
        assert_eq!(table.0.admit(&other), Ok(()));
        table.0.limits.nodes_max = 2;
        assert_eq!(table.0.admit(&other).unwrap_err().reason, RejectReason::Overloaded);
    }
}
