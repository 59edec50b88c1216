//! What the registry holds of one writer.

use std::collections::BTreeSet;
use std::time::Duration;

use super::conflict::Conflicts;
use super::entries::{Entries, Entry, Placed};
use super::quota::{Class, SourcePrefix};
use super::views::Presence;
use crate::clock::Time;
use crate::id::NodeId;
use crate::record::{Attachment, AttachmentState, Body, GuestStatus, Kind, NodeRecord, Record, Version};

/// Whether the record is a tombstone from the start: it only says that something is not, or is no more.
pub(super) fn is_tombstone(record: &Record) -> bool {
    record.body.kind() == Kind::LEAVE
        || match &record.body {
            Body::Attachment(attachment) => attachment.state == AttachmentState::Detached,
            Body::Guest(guest) => guest.details.status == GuestStatus::Gone,
            _ => false,
        }
}

/// A coordinator's lease, on this replica's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseClock {
    pub(super) ttl: Duration,
    pub(super) expires: Time,
    /// It may be old news: nobody has seen it advance, and nobody has met the coordinator.
    pub(super) provisional: bool,
    /// Whether it runs, as of the last look.
    pub(super) running: bool,
    /// It was received by this process, which so would notice if it advanced; not read from a snapshot.
    pub(super) watched: bool,
}

/// How many records of each kind there are, tombstones aside. Those of all kinds that this version does not know count together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts([u32; Kind::LEAVE.0 as usize + 1]);

impl Counts {
    pub(super) fn of(&mut self, kind: Kind) -> &mut u32 {
        &mut self.0[Self::at(kind)]
    }

    /// The first place is that of the unknown kinds: no kind of ours has its number.
    fn at(kind: Kind) -> usize {
        if kind.is_known() { usize::from(kind.0) } else { 0 }
    }
}

/// One writer. There are as many as there are nodes, so what few of them have is boxed.
#[derive(Debug, Clone, Default)]
pub(super) struct Writer {
    pub(super) entries: Entries,
    pub(super) counts: Counts,
    /// The tombstones among the entries, by the time at which they may be forgotten.
    pub(super) tombstones: BTreeSet<(Time, Placed)>,
    /// The newest that it is known to have said.
    pub(super) newest: Option<Version>,
    pub(super) lease: Option<Box<LeaseClock>>,
    /// How many tunnels or connections of it this process holds.
    pub(super) met: usize,
    /// Without a sign of life: when all that it said may be forgotten. It lapses `mark_kept` before that.
    pub(super) forget_at: Option<Time>,
    pub(super) lapsed: bool,
    /// Whether it was there, as of the last look.
    pub(super) presence_seen: Presence,
    pub(super) conflicts: Option<Box<Conflicts>>,
    pub(super) prefix: Option<SourcePrefix>,
    pub(super) class: Class,
    /// The entry in the registry's timers.
    pub(super) timer: Option<Time>,
}

impl Writer {
    pub(super) fn entry(&self, kind: Kind, subject: &[u8]) -> Option<&Entry> {
        self.entries.get(kind, subject)
    }

    /// What it says of itself, with the record that says so.
    pub(super) fn node(&self) -> Option<(&Record, &NodeRecord)> {
        let record = self.entry(Kind::NODE, &[])?.record();
        Some((record, record.node()?))
    }

    /// What it says about a worker in the run that it is in.
    pub(super) fn attachment_now(&self, worker: &NodeId) -> Option<&Attachment> {
        let record = self.entry(Kind::ATTACHMENT, &worker.0)?.record();
        match &record.body {
            Body::Attachment(attachment) if !self.is_of_earlier_run(record) => Some(attachment),
            _ => None,
        }
    }

    /// Whether it has started again since: each run has an epoch of its own.
    pub(super) fn is_of_earlier_run(&self, record: &Record) -> bool {
        self.newest.is_some_and(|newest| record.version.epoch < newest.epoch)
    }

    /// Attachments of an earlier run are as good as gone: they are tombstones from now on.
    pub(super) fn retire_attachments(&mut self, until: Time) {
        let newest = self.newest;
        let earlier = |entry: &Entry| newest.is_some_and(|newest| entry.signed.version().epoch < newest.epoch);
        for entry in self.entries.of_kind_mut(Kind::ATTACHMENT) {
            if entry.until.is_none() && earlier(entry) {
                entry.until = Some(until);
                self.tombstones.insert((until, Placed(entry.signed.clone())));
                *self.counts.of(Kind::ATTACHMENT) -= 1;
            }
        }
    }

    /// The mark below which nothing that it said counts.
    pub(super) fn left(&self) -> Option<Version> {
        // A Leave is a tombstone, and most writers have none.
        let entry = (!self.tombstones.is_empty()).then(|| self.entry(Kind::LEAVE, &[]));
        Some(entry??.signed.version())
    }

    /// How many records it has beside what it says of itself, tombstones too.
    pub(super) fn extra(&self) -> usize {
        let own = [Kind::NODE, Kind::LEASE, Kind::LEAVE].into_iter().filter(|kind| self.entry(*kind, &[]).is_some());
        self.entries.len() - own.count()
    }

    /// How many records of this kind there are, tombstones aside: of an unknown kind, those of all unknown kinds.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.counts.0[Counts::at(kind)] as usize
    }
}
