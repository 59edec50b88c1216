//! Which coordinators to be connected to, and when to try: pure.
//!
//! In a small federation everybody is connected to everybody, so that news takes one hop and everybody is met. In a larger one
//! each keeps connections to some, chosen by rendezvous hash (Thaler and Ravishankar, 1998): the choice is the same after a
//! restart, spreads evenly, and moves little when somebody comes or goes. Gossipsub and the synchronisation do the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::NodeId;
use sha2::{Digest, Sha256};

/// Up to so many others: connected to all.
const ALL_OF: usize = 12;
/// In a larger federation: connections that each seeks; as many again come in.
const SOUGHT: usize = 8;
/// The pause after the first failure, doubled after each …
const RETRY_MIN: Duration = Duration::from_millis(500);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Attempts that begin at one look: a crowd is met over a few looks.
const AT_ONCE: usize = 16;

/// The pairwise weight of a rendezvous hash: the higher, the closer. Both ends see the same.
pub(super) fn affinity(one: &NodeId, other: &NodeId) -> u64 {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    let hash: [u8; 32] = Sha256::new().chain_update(low.0).chain_update(high.0).finalize().into();
    u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// An attempt that failed.
#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    again_at: Time,
}

/// Who is being tried, and who has failed.
#[derive(Debug)]
pub(super) struct Neighbours {
    me: NodeId,
    trying: BTreeSet<NodeId>,
    failed: BTreeMap<NodeId, Failed>,
}

impl Neighbours {
    pub(super) fn new(me: NodeId) -> Self {
        Self { me, trying: BTreeSet::new(), failed: BTreeMap::new() }
    }

    /// Those that should be dialled now, of the coordinators that are `known` to be dialable, given who is `connected`.
    pub(super) fn due(&mut self, now: Time, known: &BTreeSet<NodeId>, connected: &BTreeSet<NodeId>) -> Vec<NodeId> {
        self.failed.retain(|node, _| known.contains(node));
        let mut wanted: Vec<NodeId> = known.iter().copied().filter(|node| *node != self.me).collect();
        if wanted.len() > ALL_OF {
            wanted.sort_unstable_by_key(|node| std::cmp::Reverse(affinity(&self.me, node)));
            // Those that cannot be reached are no neighbours: the next one takes their place.
            let reachable = |node: &NodeId| connected.contains(node) || !self.failed.contains_key(node);
            let (mut near, far): (Vec<_>, Vec<_>) = wanted.into_iter().partition(reachable);
            near.truncate(SOUGHT);
            near.extend(far.into_iter().take(SOUGHT));
            wanted = near;
        }
        let due: Vec<NodeId> = wanted
            .into_iter()
            .filter(|node| !connected.contains(node) && !self.trying.contains(node))
            .filter(|node| self.failed.get(node).is_none_or(|failed| failed.again_at <= now))
            .take(AT_ONCE)
            .collect();
        self.trying.extend(due.iter().copied());
        due
    }

    /// A connection has come up.
    pub(super) fn reached(&mut self, node: &NodeId) {
        self.trying.remove(node);
        self.failed.remove(node);
    }

    /// An attempt has come to nothing, if one was being made; `jitter` is between 0 and 1.
    pub(super) fn missed(&mut self, now: Time, node: NodeId, jitter: f32) {
        if !self.trying.remove(&node) {
            return;
        }
        let failed = self.failed.entry(node).or_insert(Failed { times: 0, again_at: now });
        let pause = RETRY_MIN.saturating_mul(1 << failed.times.min(16)).min(RETRY_MAX);
        failed.times = failed.times.saturating_add(1);
        failed.again_at = now + pause.mul_f32(0.5 + 0.5 * jitter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u16) -> NodeId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        NodeId(id)
    }

    fn ids(range: std::ops::Range<u16>) -> BTreeSet<NodeId> {
        range.map(id).collect()
    }

    #[test]
    fn a_small_federation_is_a_full_mesh() {
        let mut neighbours = Neighbours::new(id(0));
        let known = ids(0..10);
        let connected = ids(1..4);
        assert_eq!(neighbours.due(Time::ORIGIN, &known, &connected), ids(4..10).into_iter().collect::<Vec<_>>());
        assert!(neighbours.due(Time::ORIGIN, &known, &connected).is_empty(), "they are being tried");
    }

    #[test]
    fn a_large_federation_is_connected_and_nobody_has_many_neighbours() {
        let known = ids(0..300);
        let mut edges: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for node in &known {
            for other in Neighbours::new(*node).due(Time::ORIGIN, &known, &BTreeSet::new()) {
                edges.entry(*node).or_default().insert(other);
                edges.entry(other).or_default().insert(*node);
            }
        }
        assert!(edges.values().all(|others| (SOUGHT..=4 * SOUGHT).contains(&others.len())));
        let (mut reached, mut from) = (BTreeSet::from([id(0)]), vec![id(0)]);
        while let Some(node) = from.pop() {
            from.extend(edges[&node].iter().copied().filter(|other| reached.insert(*other)));
        }
        assert_eq!(reached, known);
    }

    #[test]
    fn one_that_cannot_be_reached_is_tried_less_and_less_and_another_takes_its_place() {
        let known = ids(0..100);
        let mut neighbours = Neighbours::new(id(0));
        let first = neighbours.due(Time::ORIGIN, &known, &BTreeSet::new());
        for node in &first {
            neighbours.missed(Time::ORIGIN, *node, 1.0);
        }
        let second = neighbours.due(Time::ORIGIN, &known, &BTreeSet::new());
        assert_eq!(second.len(), SOUGHT);
        assert!(second.iter().all(|node| !first.contains(node)));
        let mut alone = Neighbours::new(id(0));
        let (mut now, mut attempts) = (Time::ORIGIN, 0);
        let one = ids(0..2);
        while now < Time::from_origin(Duration::from_secs(3600)) {
            for node in alone.due(now, &one, &BTreeSet::new()) {
                attempts += 1;
                alone.missed(now, node, 0.0);
            }
            now = now + Duration::from_millis(250);
        }
        assert!((100..300).contains(&attempts), "{attempts}");
        alone.reached(&id(1));
        assert_eq!(
            alone.due(now, &one, &BTreeSet::new()),
            [id(1)],
            "a connection that is lost is sought again at once"
        );
    }
}
