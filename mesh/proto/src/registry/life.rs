//! Who is there, on this replica's own clock.
//!
//! A writer shows signs of life by a tunnel that this process holds, by a lease that runs, or, a worker, by being
//! attached to a home that is there. Without any it lapses after `lapse_after`, and is forgotten `mark_kept` later.

use std::time::Duration;

use super::Registry;
use super::quota::{self, Class};
use super::views::Presence;
use super::writer::Writer;
use crate::clock::Time;
use crate::id::NodeId;
use crate::record::{AttachmentState, Signed};

/// Why the registry wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A coordinator's lease runs out.
    LeaseExpires,
    /// A node has shown no sign of life for so long that it is not shown any more.
    Lapses,
    /// The mark of one of its records has been kept long enough.
    MarkExpires,
    /// All marks of a node have been kept long enough.
    Forgets,
}

impl Registry {
    /// When to call [`Registry::handle_timeout`], about whom, and why.
    pub fn poll_timeout(&self) -> Option<(Time, NodeId, Wake)> {
        self.timers.first_key_value().map(|(&(at, id), &wake)| (at, id, wake))
    }

    /// Draws the conclusions that are due, each as of when it was due: being called late changes nothing.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((at, id, _)) = self.poll_timeout()
            && at <= now
        {
            self.settle(at, id);
        }
    }

    /// A tunnel or an authenticated connection to this node has come up; also for the process's own node.
    pub fn meet(&mut self, now: Time, id: NodeId) {
        self.handle_timeout(now);
        let writer = self.writers.entry(id).or_default();
        writer.met += 1;
        if let Some(lease) = &mut writer.lease {
            lease.provisional = false;
        }
        self.generation += 1;
        self.settle(now, id);
    }

    /// One that [`Registry::meet`] told of has gone.
    pub fn part(&mut self, now: Time, id: NodeId) {
        self.handle_timeout(now);
        if let Some(writer) = self.writers.get_mut(&id) {
            writer.met = writer.met.saturating_sub(1);
            self.generation += 1;
            self.settle(now, id);
        }
    }

    /// The machine was suspended for so long that renewals were missed: nobody is dead for it. Every lease of others that
    /// ran stands for its time to live once more, and is provisional. To be called before anything else of that moment.
    pub fn suspended(&mut self, now: Time) {
        let lapse_and_mark = self.limits.lapse_after + self.limits.mark_kept;
        let mut spared = Vec::new();
        for (id, writer) in &mut self.writers {
            if let Some(lease) = writer.lease.as_deref_mut().filter(|lease| lease.running && writer.met == 0) {
                lease.provisional = true;
                lease.expires = now + lease.ttl;
                spared.push(*id);
            }
            if let Some(forget_at) = writer.forget_at.as_mut().filter(|_| !writer.lapsed) {
                *forget_at = now + lapse_and_mark;
                spared.push(*id);
            }
        }
        for id in spared {
            self.generation += 1;
            self.settle(now, id);
        }
        self.handle_timeout(now);
    }

    /// Whether a worker's home holds it: the home that the worker itself names, at the very move that it counts. An
    /// attachment that quotes another number says nothing: a lower one is out of date, and a higher one, if it were
    /// believed, would let a coordinator take any worker. Nor does one from an earlier run of the coordinator, whose
    /// connections ended with it.
    pub(super) fn home_holds(&self, id: &NodeId) -> Option<(NodeId, Presence)> {
        let (_, node) = self.writers.get(id)?.node()?;
        let home = node.home?;
        let coordinator = self.writers.get(&home.coordinator)?;
        let attachment = coordinator.attachment_now(id)?;
        let held = attachment.state == AttachmentState::Attached && attachment.home_seq == home.home_seq;
        held.then(|| (home.coordinator, coordinator.presence()))
    }

    /// Draws the conclusions about one writer, and about those whose home it is.
    pub(super) fn settle(&mut self, now: Time, id: NodeId) {
        if self.settle_one(now, id) {
            self.settle_workers_of(now, id);
        }
    }

    /// Whether their home is there, or holds them, has changed. They are nobody's home in their turn: what a worker's home
    /// says of it does not make it a coordinator.
    pub(super) fn settle_workers_of(&mut self, now: Time, id: NodeId) {
        let workers: Vec<NodeId> = self.homes.get(&id).into_iter().flatten().copied().collect();
        for worker in workers {
            self.settle_one(now, worker);
        }
    }

    /// Returns whether the writer's standing as a home has changed.
    fn settle_one(&mut self, now: Time, id: NodeId) -> bool {
        let attached = matches!(self.home_holds(&id), Some((_, presence)) if presence != Presence::Absent);
        let Some(writer) = self.writers.get_mut(&id) else { return false };
        let before = (writer.presence_seen, writer.class == Class::Coordinator, writer.lapsed);
        let expired = writer.tombstones.iter().take_while(|(until, _)| *until <= now);
        let expired: Vec<Signed> = expired.map(|(_, placed)| placed.0.clone()).collect();
        writer.run_lease(now);
        let (lapse_after, mark_kept) = (self.limits.lapse_after, self.limits.mark_kept);
        writer.run_life(now, attached, lapse_after, mark_kept);
        let forgotten = writer.forget_at.is_some_and(|forget_at| forget_at <= now);
        let gone = if forgotten { writer.all_signed() } else { expired };
        // From the end, so that little is left behind each to be moved.
        gone.iter().rev().for_each(|signed| self.remove_entry(signed));
        let after = self.reclassify(now, id);
        self.reschedule(now, id);
        if before != after {
            self.generation += 1;
            self.nodes_generation += 1;
        }
        before != after
    }

    /// Puts a writer in the class that it is in by now, or drops it if nothing is left of it. Returns its presence,
    /// whether it counts as a coordinator, and whether it has lapsed.
    fn reclassify(&mut self, now: Time, id: NodeId) -> (Presence, bool, bool) {
        const NOBODY: (Presence, bool, bool) = (Presence::Absent, false, false);
        let Some(writer) = self.writers.get(&id) else { return NOBODY };
        let class = match quota::speaks_as(Some(writer), None) {
            _ if writer.entries.is_empty() => Class::None,
            speaks if writer.lapsed || writer.only_left() => {
                let sponsor = match (writer.class, self.sponsored(speaks)) {
                    (Class::Worker { sponsor } | Class::Mark { sponsor, .. }, _) => sponsor,
                    (_, Class::Worker { sponsor }) => sponsor,
                    _ => None,
                };
                Class::Mark { sponsor, until: writer.marks_until(now) }
            }
            speaks => self.sponsored(speaks),
        };
        let Some(writer) = self.writers.get_mut(&id) else { return NOBODY };
        self.quotas.change(id, writer.class, class);
        writer.class = class;
        writer.presence_seen = writer.presence();
        let after = (writer.presence_seen, class == Class::Coordinator, writer.lapsed);
        if class == Class::None && writer.met == 0 {
            self.forget(id);
        }
        if let Class::Mark { sponsor, .. } = class {
            self.shed_marks(sponsor);
        }
        after
    }

    fn forget(&mut self, id: NodeId) {
        let Some(writer) = self.writers.remove(&id) else { return };
        if let Some(at) = writer.timer {
            self.timers.remove(&(at, id));
        }
        if let Some(prefix) = writer.prefix {
            self.quotas.remove_prefix(prefix);
        }
    }

    fn reschedule(&mut self, now: Time, id: NodeId) {
        let mark_kept = self.limits.mark_kept;
        let Some(writer) = self.writers.get_mut(&id) else { return };
        if let Some(at) = writer.timer.take() {
            self.timers.remove(&(at, id));
        }
        if let Some((at, wake)) = writer.next_wake(now, mark_kept) {
            writer.timer = Some(at);
            self.timers.insert((at, id), wake);
        }
    }

    /// Marks over their limit go, the oldest first.
    fn shed_marks(&mut self, sponsor: Option<NodeId>) {
        while let Some(id) = self.quotas.surplus_mark(&self.limits, sponsor) {
            let marks = self.writers.get(&id).map(|writer| writer.all_signed()).unwrap_or_default();
            marks.iter().rev().for_each(|signed| self.remove_entry(signed));
            if let Some(writer) = self.writers.get_mut(&id) {
                self.quotas.change(id, writer.class, Class::None);
                writer.class = Class::None;
                if writer.met == 0 {
                    self.forget(id);
                }
            }
        }
    }
}

impl Writer {
    pub(super) fn presence(&self) -> Presence {
        match &self.lease {
            _ if self.met > 0 => Presence::Here,
            Some(lease) if lease.running && !lease.provisional => Presence::Here,
            Some(lease) if lease.running => Presence::Provisional,
            _ => Presence::Absent,
        }
    }

    /// Copies of all that it said.
    fn all_signed(&self) -> Vec<Signed> {
        self.entries.iter().map(|entry| entry.signed.clone()).collect()
    }

    fn run_lease(&mut self, now: Time) {
        if let Some(lease) = &mut self.lease {
            lease.running = now < lease.expires;
        }
    }

    fn run_life(&mut self, now: Time, attached: bool, lapse_after: Duration, mark_kept: Duration) {
        if self.entries.is_empty() || attached || self.presence() != Presence::Absent {
            self.forget_at = None;
        } else {
            self.forget_at.get_or_insert(now + lapse_after + mark_kept);
        }
        self.lapsed = self.forget_at.is_some_and(|forget_at| forget_at <= now + mark_kept);
    }

    /// Whether it has left, and said nothing since but what is a tombstone too.
    fn only_left(&self) -> bool {
        self.left().is_some() && self.tombstones.len() == self.entries.len()
    }

    /// When the last of its marks goes.
    fn marks_until(&self, now: Time) -> Time {
        let tombstones = self.tombstones.last().map(|(until, _)| *until);
        self.forget_at.max(tombstones).unwrap_or(now)
    }

    fn next_wake(&self, now: Time, mark_kept: Duration) -> Option<(Time, Wake)> {
        let lease =
            self.lease.as_deref().filter(|lease| lease.running).map(|lease| (lease.expires, Wake::LeaseExpires));
        let mark = self.tombstones.first().map(|(until, _)| (*until, Wake::MarkExpires));
        let life = self.forget_at.map(|forget_at| match self.lapsed {
            true => (forget_at, Wake::Forgets),
            // Not below `now`: it has not lapsed.
            false => (now + forget_at.since(now).saturating_sub(mark_kept), Wake::Lapses),
        });
        [lease, mark, life].into_iter().flatten().min()
    }
}
