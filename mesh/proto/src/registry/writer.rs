//! What the registry holds of one writer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::conflict::Conflicts;
use super::quota::{Class, SourcePrefix};
use super::views::Presence;
use crate::clock::Time;
use crate::id::NodeId;
use crate::record::{Attachment, AttachmentState, Body, GuestStatus, Kind, NodeRecord, Record, Signed, Version};

/// Which of a writer's records: its kind, and what it is about.
pub(super) type Place = (Kind, Bytes);

/// One record.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) signed: Signed,
    pub(super) record: Record,
    /// For a tombstone: when it may be forgotten.
    pub(super) until: Option<Time>,
}

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

/// One writer.
#[derive(Debug, Clone, Default)]
pub(super) struct Writer {
    pub(super) entries: BTreeMap<Place, Entry>,
    /// How many entries of each kind, without the tombstones.
    pub(super) kinds: BTreeMap<Kind, usize>,
    /// The tombstones among the entries, by the time at which they may be forgotten.
    pub(super) tombstones: BTreeSet<(Time, Place)>,
    /// The newest that it is known to have said.
    pub(super) newest: Option<Version>,
    pub(super) lease: Option<LeaseClock>,
    /// How many tunnels or connections of it this process holds.
    pub(super) met: usize,
    /// Without a sign of life: when all that it said may be forgotten. It lapses `mark_kept` before that.
    pub(super) forget_at: Option<Time>,
    pub(super) lapsed: bool,
    /// Whether it was there, as of the last look.
    pub(super) presence_seen: Presence,
    pub(super) conflicts: Conflicts,
    pub(super) prefix: Option<SourcePrefix>,
    pub(super) class: Class,
    /// The entry in the registry's timers.
    pub(super) timer: Option<Time>,
}

impl Writer {
    pub(super) fn entry(&self, kind: Kind, subject: &[u8]) -> Option<&Entry> {
        self.entries.get(&(kind, Bytes::copy_from_slice(subject)))
    }

    /// What it says of itself, with the record that says so.
    pub(super) fn node(&self) -> Option<(&Record, &NodeRecord)> {
        let record = &self.entry(Kind::NODE, &[])?.record;
        Some((record, record.node()?))
    }

    /// What it says about a worker in the run that it is in.
    pub(super) fn attachment_now(&self, worker: &NodeId) -> Option<&Attachment> {
        let record = &self.entry(Kind::ATTACHMENT, &worker.0)?.record;
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
        let earlier = |entry: &Entry| newest.is_some_and(|newest| entry.record.version.epoch < newest.epoch);
        let range = (Kind::ATTACHMENT, Bytes::new())..(Kind(Kind::ATTACHMENT.0 + 1), Bytes::new());
        for (place, entry) in self.entries.range_mut(range) {
            if entry.until.is_none() && earlier(entry) {
                entry.until = Some(until);
                self.tombstones.insert((until, place.clone()));
                if let Some(count) = self.kinds.get_mut(&Kind::ATTACHMENT) {
                    *count -= 1;
                }
            }
        }
    }

    /// The mark below which nothing that it said counts.
    pub(super) fn left(&self) -> Option<Version> {
        Some(self.entry(Kind::LEAVE, &[])?.record.version)
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).copied().unwrap_or(0)
    }
}
