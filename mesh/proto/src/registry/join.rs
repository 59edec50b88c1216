//! What was said: for each key, the newest record.
//!
//! The order of a key's records is (epoch, seq), and between two that a writer gave the same place, the smaller hash.
//! A Leave stands above all records of its writer up to its own place in the order. So the state is the least upper
//! bound of what has come in, however often and in whatever order: a join semilattice (Shapiro et al., "Conflict-free
//! replicated data types", SSS 2011), as long as no limit is reached and no mark has grown old.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use super::Registry;
use super::entries::{Entry, Placed};
use super::index::KeyHash;
use super::quota::{self, Class, Refused, SourcePrefix};
use super::writer::{LeaseClock, Writer, is_tombstone};
use crate::clock::Time;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::mutation::{self, Mutation};
use crate::record::{Body, Kind, Record, RecordKey, Signed, Version};

/// How a record came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This process says it.
    Own,
    /// The writer itself, over a connection that proves its key, from this address if there is one.
    Direct(Option<IpAddr>),
    /// Somebody passes it on, with its age as far as that is known: see [`Registry::age`].
    Passed(Duration),
    /// From this process's own snapshot, with its age when that was written. Nobody knows how long ago that was.
    Snapshot(Duration),
}

impl Source {
    fn age(self) -> Duration {
        match self {
            Self::Own | Self::Direct(_) => Duration::ZERO,
            Self::Passed(age) | Self::Snapshot(age) => age,
        }
    }
}

/// What became of a record. Only the first three change the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was none of its key.
    New,
    /// It is newer than what was here.
    Advanced,
    /// The writer has said something else in the same place, and this is what stands.
    ConflictTaken,
    /// The writer has said something else in the same place, which stays.
    ConflictIgnored,
    /// It was here.
    Known,
    /// Something newer was here.
    Older,
    /// Its writer has left since.
    Left,
}

impl Outcome {
    /// Whether the registry has changed, so that it is worth passing on.
    pub fn is_news(self) -> bool {
        matches!(self, Self::New | Self::Advanced | Self::ConflictTaken)
    }
}

impl Registry {
    /// Joins one record with what is here. The signature has been verified, or made, by whoever made the [`Signed`].
    pub fn insert(&mut self, now: Time, signed: Signed, source: Source) -> Result<Outcome, Refused> {
        let record = signed.read(self.federation, &self.limits)?;
        self.handle_timeout(now);
        let outcome = self.place(now, &signed);
        if outcome.is_news() {
            self.admit(record, source)?;
            self.take(now, &signed, source);
        }
        Ok(outcome)
    }

    /// Where it stands against what is here.
    fn place(&mut self, now: Time, signed: &Signed) -> Outcome {
        let record = signed.record();
        let Some(writer) = self.writers.get_mut(&record.writer) else { return Outcome::New };
        let (kind, version) = (record.body.kind(), record.version);
        let comes_back = mutation::is_active(Mutation::ResurrectingTombstone);
        if kind != Kind::LEAVE && writer.left().is_some_and(|left| version <= left) && !comes_back {
            return Outcome::Left;
        }
        let Some(entry) = writer.entry(kind, record.body.subject()) else { return Outcome::New };
        let order = |signed: &Signed| (signed.version(), Reverse(signed.hash()));
        let here = entry.signed.version();
        let taken = order(signed) > order(&entry.signed);
        if version == here && signed.hash() != entry.signed.hash() {
            writer.conflicts.get_or_insert_default().add(now);
            return if taken { Outcome::ConflictTaken } else { Outcome::ConflictIgnored };
        }
        let order = version.cmp(&here);
        match if mutation::is_active(Mutation::OlderVersionWins) { order.reverse() } else { order } {
            std::cmp::Ordering::Greater => Outcome::Advanced,
            std::cmp::Ordering::Equal => Outcome::Known,
            std::cmp::Ordering::Less => Outcome::Older,
        }
    }

    /// Whether there is room for it.
    fn admit(&self, record: &Record, source: Source) -> Result<(), Refused> {
        let limits = &self.limits;
        let writer = self.writers.get(&record.writer).map(|writer| &**writer);
        let age = source.age();
        let dead_after = match &record.body {
            _ if is_tombstone(record) => Duration::ZERO,
            Body::Lease(lease) => lease.ttl + limits.lapse_after,
            _ => limits.lapse_after,
        };
        if age >= dead_after + limits.mark_kept {
            return Err(Refused::Expired);
        }
        per_writer(writer, record, limits)?;
        self.share(writer, record)?;
        // A tombstone takes the place of something, or is a mark; what comes in dead is a mark.
        if record.body.kind() == Kind::LEAVE || (age >= dead_after && writer.is_none()) {
            return Ok(());
        }
        let from = writer.map_or(Class::None, |writer| writer.class);
        self.quotas.check(limits, from, self.sponsored(quota::speaks_as(writer, Some(record))))?;
        match prefix_of(source) {
            Some(prefix) if writer.is_none_or(|writer| writer.prefix.is_none()) => {
                self.quotas.check_prefix(limits, prefix)
            }
            _ => Ok(()),
        }
    }

    /// Whether a writer may have one more record beside what it says of itself, however many all have.
    fn share(&self, writer: Option<&Writer>, record: &Record) -> Result<(), Refused> {
        let kind = record.body.kind();
        let is_here = |writer: &Writer| writer.entry(kind, record.body.subject()).is_some();
        if !quota::is_extra(kind) || !self.quotas.extra_is_full(&self.limits) || writer.is_some_and(is_here) {
            return Ok(());
        }
        let share = quota::share(&self.limits, kind);
        if writer.map_or(0, Writer::extra) < share {
            Ok(())
        } else {
            Err(Refused::Share { writer: record.writer, share })
        }
    }

    /// A worker has a sponsor if the home that it names is a coordinator that is known here.
    pub(super) fn sponsored(&self, class: Class) -> Class {
        let known = |id: &NodeId| self.writers.get(id).is_some_and(|home| home.class == Class::Coordinator);
        match class {
            Class::Worker { sponsor } => Class::Worker { sponsor: sponsor.filter(known) },
            other => other,
        }
    }

    /// Puts it in its place.
    fn take(&mut self, now: Time, signed: &Signed, source: Source) {
        let record = signed.record();
        let (id, kind) = (record.writer, signed.kind());
        let age = source.age();
        let stale =
            kind == Kind::ATTACHMENT && self.writers.get(&id).is_some_and(|writer| writer.is_of_earlier_run(record));
        let until = (stale || is_tombstone(record)).then(|| now + self.limits.mark_kept.saturating_sub(age));
        let lease_before = self.writers.get(&id).and_then(|writer| writer.lease.as_deref().copied());
        self.remove_entry(signed);
        self.index.insert(signed.clone());
        self.link_home(record);

        let lapse_and_mark = self.limits.lapse_after + self.limits.mark_kept;
        let writer = self.writers.entry(id).or_default();
        let speaks = writer.newest.is_none_or(|newest| record.version > newest);
        let (mut silent_for, mut restarted) = (age, false);
        if let Body::Lease(lease) = &record.body {
            // First receipt, less the age that the sender states; never again for the same lease.
            let at_first_hand = matches!(source, Source::Own | Source::Direct(_)) || writer.met > 0;
            writer.lease = Some(Box::new(LeaseClock {
                ttl: lease.ttl,
                expires: now + lease.ttl.saturating_sub(age),
                provisional: !at_first_hand && lease_before.is_none_or(|before| !before.watched),
                running: age < lease.ttl,
                watched: !matches!(source, Source::Snapshot(_)),
            }));
            silent_for = age.saturating_sub(lease.ttl);
        }
        if speaks {
            // It has said something new, so it has been there of late. What it said earlier proves nothing.
            let forget_at = now + lapse_and_mark.saturating_sub(silent_for);
            writer.forget_at = Some(writer.forget_at.map_or(forget_at, |at| at.max(forget_at)));
            restarted = writer.newest.is_some_and(|newest| newest.epoch < record.version.epoch);
            writer.newest = Some(record.version);
            if restarted {
                writer.retire_attachments(now + self.limits.mark_kept);
            }
        }
        if writer.prefix.is_none()
            && let Some(prefix) = prefix_of(source)
        {
            writer.prefix = Some(prefix);
            self.quotas.add_prefix(prefix);
        }
        match until {
            Some(until) => _ = writer.tombstones.insert((until, Placed(signed.clone()))),
            None => *writer.counts.of(kind) += 1,
        }
        let concerns = match &record.body {
            Body::Attachment(attachment) => Some(attachment.worker),
            _ => None,
        };
        writer.entries.insert(Entry { signed: signed.clone(), until });
        if quota::is_extra(kind) {
            self.quotas.add_extra();
        }
        if kind == Kind::LEAVE {
            self.bury(&id, record.version);
        }
        self.changes(kind);
        self.settle(now, id);
        if restarted {
            self.settle_workers_of(now, id);
        } else if let Some(worker) = concerns {
            self.settle(now, worker);
        }
        self.trim_tombstones(now, id);
    }

    /// Removes what a writer said up to the Leave that now stands above it.
    fn bury(&mut self, id: &NodeId, left: Version) {
        let Some(writer) = self.writers.get(id) else { return };
        let signed = writer.entries.iter().map(|entry| &entry.signed);
        let buried: Vec<Signed> =
            signed.filter(|signed| signed.kind() != Kind::LEAVE && signed.version() <= left).cloned().collect();
        // From the end, so that little is left behind each to be moved.
        buried.iter().rev().for_each(|signed| self.remove_entry(signed));
    }

    /// Removes the record that stands in the place of this one, and all that hangs on it. The caller settles the writer.
    pub(super) fn remove_entry(&mut self, place_of: &Signed) {
        let (id, kind) = (place_of.writer(), place_of.kind());
        let Some(writer) = self.writers.get_mut(&id) else { return };
        let Some(entry) = writer.entries.remove(kind, place_of.subject()) else { return };
        match entry.until {
            Some(until) => _ = writer.tombstones.remove(&(until, Placed(entry.signed.clone()))),
            None => *writer.counts.of(kind) -= 1,
        }
        if kind == Kind::LEASE {
            writer.lease = None;
        }
        if quota::is_extra(kind) {
            self.quotas.remove_extra();
        }
        self.index.remove(&entry.signed);
        if let Some(home) = entry.record().node().and_then(|node| node.home)
            && let Some(workers) = self.homes.get_mut(&home.coordinator)
        {
            workers.remove(&id);
            if workers.is_empty() {
                self.homes.remove(&home.coordinator);
            }
        }
        self.changes(kind);
    }

    fn link_home(&mut self, record: &Record) {
        if let Some(home) = record.node().and_then(|node| node.home) {
            self.homes.entry(home.coordinator).or_default().insert(record.writer);
        }
    }

    /// The tombstones of one writer are bounded: the oldest go.
    fn trim_tombstones(&mut self, now: Time, id: NodeId) {
        while let Some(writer) = self.writers.get(&id)
            && writer.tombstones.len() > self.limits.marks_per_sponsor_max
            && let Some((_, Placed(oldest))) = writer.tombstones.first().cloned()
        {
            self.remove_entry(&oldest);
            self.settle(now, id);
        }
    }

    /// A record by the hash of its key, with its age, as a synchronisation states it.
    pub(crate) fn by_hash(&self, now: Time, at: &KeyHash) -> Option<(&Signed, Duration)> {
        let signed = self.index.leaf(at)?;
        let writer = self.writers.get(&signed.writer())?;
        let entry = writer.entry(signed.kind(), signed.subject())?;
        Some((signed, self.age_of(now, writer, entry)))
    }

    /// Every record with its age.
    pub(crate) fn records(&self, now: Time) -> impl Iterator<Item = (&Signed, Duration)> {
        self.writers.values().flat_map(move |writer| {
            writer.entries.iter().map(move |entry| (&entry.signed, self.age_of(now, writer, entry)))
        })
    }

    /// How old a record is, for whoever it is passed on to: of a lease, the time since it was signed, as far as is
    /// known; of a tombstone, the time since it died; of anything else, the time for which there has been no sign of
    /// life of its writer.
    pub fn age(&self, now: Time, key: &RecordKey) -> Option<Duration> {
        let writer = self.writers.get(&key.writer)?;
        let entry = writer.entry(key.kind, &key.subject)?;
        Some(self.age_of(now, writer, entry))
    }

    pub(super) fn age_of(&self, now: Time, writer: &Writer, entry: &Entry) -> Duration {
        if let Some(until) = entry.until {
            return self.limits.mark_kept.saturating_sub(until.since(now));
        }
        let silent_for = writer.forget_at.map_or(Duration::ZERO, |forget_at| {
            (self.limits.lapse_after + self.limits.mark_kept).saturating_sub(forget_at.since(now))
        });
        if mutation::is_active(Mutation::ThirdPartyRenewsLeases) && matches!(entry.record().body, Body::Lease(_)) {
            return Duration::ZERO;
        }
        match (&entry.record().body, writer.lease.as_deref()) {
            (Body::Lease(_), Some(lease)) if now < lease.expires => lease.ttl.saturating_sub(lease.expires.since(now)),
            (Body::Lease(lease), _) => lease.ttl.saturating_add(silent_for),
            _ => silent_for,
        }
    }
}

fn prefix_of(source: Source) -> Option<SourcePrefix> {
    match source {
        Source::Direct(Some(address)) => Some(SourcePrefix::of(address)),
        _ => None,
    }
}

/// Whether a writer may have one more of this kind.
fn per_writer(writer: Option<&Writer>, record: &Record, limits: &Limits) -> Result<(), Refused> {
    let kind = record.body.kind();
    let (what, max) = match kind {
        Kind::ATTACHMENT => ("attachments", limits.attachments_per_sponsor_max),
        Kind::GUEST => ("guests", limits.guests_per_sponsor_max),
        _ if kind.is_known() => return Ok(()),
        _ => ("records of unknown kinds", limits.unknown_per_writer_max),
    };
    let Some(writer) = writer else { return Ok(()) };
    if writer.entry(kind, record.body.subject()).is_some() || is_tombstone(record) {
        return Ok(());
    }
    // Tombstones have a bound of their own.
    if writer.count(kind) >= max { Err(Refused::PerWriter { writer: record.writer, what, max }) } else { Ok(()) }
}
