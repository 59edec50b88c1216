//! Who is told of which coordinators: what an entry does for its nodes, where there is none, or for who has no tunnel to one.

use super::super::node::Running;
use super::World;

/// How many coordinators somebody is told of.
const TOLD_OF_MAX: usize = 3;

impl World {
    /// Tells everybody of some coordinators, whom no entry tells.
    pub(super) fn tell_all(&mut self) {
        let nodes: Vec<u32> = self.places.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.tell(node));
        let hostiles: Vec<u32> = self.hostiles.keys().copied().collect();
        hostiles.into_iter().for_each(|node| self.tell_hostile(node));
    }

    pub(super) fn tell(&mut self, node: u32) {
        if !self.entries.is_empty() {
            return;
        }
        let records = self.introductions(node);
        let Some(running) = self.places.get(&node).and_then(|place| place.running.as_ref()) else { return };
        if !records.is_empty() {
            running.process.within(|| running.membership.mesh.hear_of_coordinators(records));
        }
    }

    pub(super) fn tell_hostile(&mut self, node: u32) {
        let records = self.introductions(node);
        if let Some(running) = self.hostiles.get(&node).filter(|_| !records.is_empty()) {
            running.hear_of_coordinators(records);
        }
    }

    /// What some coordinators say of themselves, but for this one.
    fn introductions(&mut self, but_for: u32) -> Vec<Vec<u8>> {
        let coordinators = self
            .places
            .iter()
            .filter(|(other, place)| **other != but_for && place.running.as_ref().is_some_and(Running::coordinates));
        let mut told: Vec<u32> = coordinators.map(|(other, _)| *other).collect();
        self.random.shuffle(&mut told);
        told.truncate(TOLD_OF_MAX);
        let introduction =
            |other: &u32| Some(self.places.get(other)?.running.as_ref()?.membership.replica.introduction());
        told.iter().filter_map(introduction).flatten().map(|record| record.to_vec()).collect()
    }
}
