//! What must hold all the time, looked at each second: what the core level holds its replicas to, and that nothing runs twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::Signed;
use hedgerow_proto::registry::{Presence, Registry};
use hedgerow_sim_core::safety::{self, Broken};
use hedgerow_sim_model::results::Violation;

use super::World;
use super::words::Words;
use crate::time;

/// So many are told: what is wrong once is wrong at every look.
const TOLD_MAX: usize = 100;

/// What has been seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What each coordinator's replica held at the last look.
    held: BTreeMap<u32, Held>,
    /// When a node was seen running for the last time.
    up_at: BTreeMap<u32, Duration>,
    /// Since when a node's clock has told the same time as others', and its process has run: leases run once more after it was not so.
    steady_since: BTreeMap<u32, Duration>,
    /// Whose words are not to be trusted: those that keep no rule, and those whose key is, or was, that of two processes.
    untrusted: BTreeSet<NodeId>,
    /// Those of them that keep no rule, and whether an honest coordinator has taken them for a coordinator that is there.
    hostile: BTreeMap<NodeId, bool>,
    /// What all others have said.
    pub(super) words: Words,
    pub(super) violations: Vec<Violation>,
}

#[derive(Debug, Default)]
struct Held {
    generation: u64,
    /// By writer.
    of: BTreeMap<NodeId, Vec<Signed>>,
}

impl Seen {
    /// The process of this node, or its clock, begins anew.
    pub(super) fn begins_anew(&mut self, node: u32) {
        self.held.remove(&node);
        self.steady_since.insert(node, time::now().since_origin());
    }

    /// Its process stands still until it [begins anew](Self::begins_anew): nothing lapses there meanwhile.
    pub(super) fn stands_still(&mut self, node: u32) {
        self.steady_since.insert(node, Duration::MAX);
    }

    /// Another process has this key.
    pub(super) fn is_cloned(&mut self, id: NodeId) {
        self.untrusted.insert(id);
    }

    /// Whoever has this key keeps no rule.
    pub(super) fn is_hostile(&mut self, id: NodeId) {
        self.untrusted.insert(id);
        self.hostile.insert(id, false);
    }

    /// How many that keep no rule have been taken for coordinators; nothing where there was none.
    pub(super) fn let_in(&self) -> Option<usize> {
        (!self.hostile.is_empty()).then(|| self.hostile.values().filter(|let_in| **let_in).count())
    }

    fn tell(&mut self, rule: &str, node: Option<u32>, what: String) {
        if self.violations.len() < TOLD_MAX {
            let at_s = time::now().since_origin().as_secs_f64();
            self.violations.push(Violation { rule: rule.to_owned(), at_s, node, what });
        }
    }
}

impl World {
    /// Looks at every replica.
    pub(super) fn look_for_harm(&mut self) {
        let now = time::now().since_origin();
        let mut seen = std::mem::take(&mut self.seen);
        seen.words.catch_up();
        let ids: BTreeMap<NodeId, u32> = self.all_ids();
        for (node, running) in self.all_running() {
            seen.up_at.insert(node, now);
            if !running.coordinates() {
                continue;
            }
            for (rule, what) in running.membership.replica.read(|registry| {
                let mut wrong = seen.changes(node, registry, &ids);
                wrong.extend(seen.live_on(now, node, registry, &ids));
                wrong.extend(safety::bounded(registry));
                seen.note_let_in(registry);
                wrong
            }) {
                seen.tell(rule, Some(node), what);
            }
        }
        self.seen = seen;
    }

    /// Which node has which key, of all that ever ran.
    fn all_ids(&self) -> BTreeMap<NodeId, u32> {
        self.places.iter().filter_map(|(node, place)| Some((place.id?, *node))).collect()
    }
}

impl Seen {
    fn changes(&mut self, node: u32, registry: &Registry, ids: &BTreeMap<NodeId, u32>) -> Vec<Broken> {
        let held = self.held.entry(node).or_default();
        if held.generation == registry.generation() {
            return Vec::new();
        }
        held.generation = registry.generation();
        // With tiny limits there may be no room for all.
        let has_room = *registry.limits() == Limits::PRODUCTION;
        let mut wrong = Vec::new();
        let writers: BTreeSet<NodeId> = ids.keys().chain(&self.untrusted).copied().collect();
        for writer in writers {
            let before = held.of.entry(writer).or_default();
            if registry.records_of(&writer).eq(before.iter()) {
                continue;
            }
            let after: Vec<Signed> = registry.records_of(&writer).cloned().collect();
            let trusted = !self.untrusted.contains(&writer);
            if trusted && self.words.are_all_of(&writer) {
                wrong.extend(safety::forged(writer, &after, |hash| self.words.have(hash)));
            }
            wrong.extend(safety::went_on(writer, before, &after, trusted && has_room));
            *before = after;
        }
        wrong
    }

    fn note_let_in(&mut self, registry: &Registry) {
        for (id, let_in) in self.hostile.iter_mut().filter(|(_, let_in)| !**let_in) {
            *let_in = registry.coordinators().any(|coordinator| coordinator.record.writer == *id);
        }
    }

    /// Coordinators that seem to be there long after they were.
    fn live_on(&self, now: Duration, node: u32, registry: &Registry, ids: &BTreeMap<NodeId, u32>) -> Vec<Broken> {
        let bound = safety::seems_there_max(registry);
        if self.steady_since.get(&node).is_some_and(|since| now < since.saturating_add(bound)) {
            return Vec::new();
        }
        let gone = ids.iter().filter_map(|(id, other)| Some((id, now.saturating_sub(*self.up_at.get(other)?))));
        let gone = gone.filter(|(id, gone_for)| *gone_for > bound && !self.untrusted.contains(id));
        let seems = gone.filter_map(|(id, gone_for)| {
            let presence = registry.presence(id);
            let what =
                || format!("coordinator {} counts as {presence:?} {gone_for:?} after it was there last", id.short());
            (presence != Presence::Absent).then(|| ("lives-on", what()))
        });
        seems.collect()
    }
}
