//! Which coordinators to be connected to, and when to try: pure.
//!
//! In a small federation everybody is connected to everybody, so that news takes one hop and everybody is met. In a larger one
//! each keeps connections to some, chosen by rendezvous hash (Thaler and Ravishankar, 1998): the choice is the same after a
//! restart, spreads evenly, and moves little when somebody comes or goes. Gossipsub and the synchronisation do the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Time;
use crate::id::NodeId;
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

/// Who there is, who is being tried, and who has failed.
#[derive(Debug)]
pub(super) struct Neighbours {
    me: NodeId,
    /// The others that are known to be dialable, the closest first.
    known: Vec<NodeId>,
    trying: BTreeSet<NodeId>,
    failed: BTreeMap<NodeId, Failed>,
    /// Whether anything has changed since it was last looked who is due.
    changed: bool,
}

impl Neighbours {
    pub(super) fn new(me: NodeId) -> Self {
        Self { me, known: Vec::new(), trying: BTreeSet::new(), failed: BTreeMap::new(), changed: true }
    }

    /// These coordinators are known to be dialable.
    pub(super) fn know(&mut self, known: BTreeSet<NodeId>) {
        if self.known.len() == known.iter().filter(|node| **node != self.me).count()
            && self.known.iter().all(|node| known.contains(node))
        {
            return;
        }
        self.failed.retain(|node, _| known.contains(node));
        self.known = known.into_iter().filter(|node| *node != self.me).collect();
        // A hash for each, and so once for each change.
        self.known.sort_by_cached_key(|node| std::cmp::Reverse(affinity(&self.me, node)));
        self.changed = true;
    }

    /// Those that should be dialled now, given who is `connected`. Nothing changes between two looks but by the calls of this
    /// type and time, so that a look at a quiet federation costs nothing.
    pub(super) fn due(&mut self, now: Time, connected: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let again = self.failed.values().any(|failed| failed.again_at <= now);
        if !self.changed && !again {
            return Vec::new();
        }
        let mut wanted = self.known.clone();
        if wanted.len() > ALL_OF {
            // Those that cannot be reached are no neighbours: the next one takes their place.
            let reachable = |node: &NodeId| connected.contains(node) || !self.failed.contains_key(node);
            let (mut near, far): (Vec<_>, Vec<_>) = wanted.into_iter().partition(reachable);
            near.truncate(SOUGHT);
            near.extend(far.into_iter().take(SOUGHT));
            wanted = near;
        }
        let mut due: Vec<NodeId> = wanted
            .into_iter()
            .filter(|node| !connected.contains(node) && !self.trying.contains(node))
            .filter(|node| self.failed.get(node).is_none_or(|failed| failed.again_at <= now))
            .collect();
        self.changed = due.len() > AT_ONCE;
        due.truncate(AT_ONCE);
        self.trying.extend(due.iter().copied());
        due
    }

    /// Those of the `connected` to be in step with. In a large federation only the closest: with them a connection stays, and the
    /// others, which came up for some other reason, fall idle.
    pub(super) fn near(&self, connected: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        if self.known.len() <= ALL_OF {
            return connected.clone();
        }
        self.known.iter().filter(|node| connected.contains(node)).take(SOUGHT).copied().collect()
    }

    /// A connection has gone: another may be wanted.
    pub(super) fn lost(&mut self) {
        self.changed = true;
    }

    /// Those that have failed may not fail now.
    pub(super) fn try_again(&mut self) {
        self.failed.clear();
        self.changed = true;
    }

    /// A connection has come up.
    pub(super) fn reached(&mut self, node: &NodeId) {
        self.trying.remove(node);
        self.failed.remove(node);
        self.changed = true;
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
        self.changed = true;
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

    fn due(
        neighbours: &mut Neighbours,
        now: Time,
        known: &BTreeSet<NodeId>,
        connected: &BTreeSet<NodeId>,
    ) -> Vec<NodeId> {
        neighbours.know(known.clone());
        neighbours.due(now, connected)
    }

    #[test]
    fn a_small_federation_is_a_full_mesh() {
        let mut neighbours = Neighbours::new(id(0));
        let known = ids(0..10);
        let connected = ids(1..4);
        assert_eq!(
            due(&mut neighbours, Time::ORIGIN, &known, &connected).into_iter().collect::<BTreeSet<_>>(),
            ids(4..10)
        );
        assert!(due(&mut neighbours, Time::ORIGIN, &known, &connected).is_empty(), "they are being tried");
    }

    #[test]
    fn a_large_federation_is_connected_and_nobody_has_many_neighbours() {
        let known = ids(0..300);
        let mut edges: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for node in &known {
            for other in due(&mut Neighbours::new(*node), Time::ORIGIN, &known, &BTreeSet::new()) {
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
        let first = due(&mut neighbours, Time::ORIGIN, &known, &BTreeSet::new());
        for node in &first {
            neighbours.missed(Time::ORIGIN, *node, 1.0);
        }
        let second = due(&mut neighbours, Time::ORIGIN, &known, &BTreeSet::new());
        assert_eq!(second.len(), SOUGHT);
        assert!(second.iter().all(|node| !first.contains(node)));
        let mut alone = Neighbours::new(id(0));
        let (mut now, mut attempts) = (Time::ORIGIN, 0);
        let one = ids(0..2);
        while now < Time::from_origin(Duration::from_secs(3600)) {
            for node in due(&mut alone, now, &one, &BTreeSet::new()) {
                attempts += 1;
                alone.missed(now, node, 0.0);
            }
            now = now + Duration::from_millis(250);
        }
        assert!((100..300).contains(&attempts), "{attempts}");
        alone.missed(now, id(1), 1.0);
        alone.try_again();
        assert_eq!(due(&mut alone, now, &one, &BTreeSet::new()), [id(1)], "what kept it away may be over");
        alone.reached(&id(1));
        assert_eq!(
            due(&mut alone, now, &one, &BTreeSet::new()),
            [id(1)],
            "a connection that is lost is sought again at once"
        );
    }
}
