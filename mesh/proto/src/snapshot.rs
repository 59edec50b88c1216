//! The registry as one string of bytes, for the disk: every record with its age, and a hash over all.
//!
//! ```text
//!  0     MAGIC            8 bytes
//!  8     FORMAT           1
//!  9     federation       32
//! 41     records          each: age in ms (8, big-endian), length (2), the exact bytes
//!        SHA-256          32, of everything above
//! ```
//!
//! What it says is as old as it is, and nobody knows how old that is: leases in it are provisional, and marks are marks.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::clock::Time;
use crate::id::FederationId;
use crate::record::{Kind, Signed};
use crate::registry::{Registry, Source};

/// How often a replica goes on disk, if it has changed: what is lost in a crash is asked of a neighbour again.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// How soon the first one of a process does: from then on it can find the others by itself, also if it is killed.
pub const FIRST_AFTER: Duration = Duration::from_secs(5);

const MAGIC: &[u8; 8] = b"hedgerow";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 32;
const HASH_BYTES: usize = 32;
/// In front of each record: its age and its length.
const RECORD_HEADER_BYTES: usize = 8 + 2;

/// Why a snapshot is no good. Nothing of it has been taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Longer than what the registry may hold.
    #[error("a snapshot of {got_bytes} bytes, over the limit of {max_bytes}")]
    TooLong {
        /// Its length in bytes.
        got_bytes: usize,
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// It is something else.
    #[error("not a snapshot of a registry")]
    NotASnapshot,
    /// Of another version.
    #[error("snapshot format {0}, this program reads format {FORMAT}")]
    Format(u8),
    /// Of another federation.
    #[error("the snapshot is of another federation")]
    Federation,
    /// Torn, or changed since it was written.
    #[error("the snapshot's hash does not fit: it was torn or changed")]
    Hash,
    /// The hash fits, and what is in it does not: it was written by something else.
    #[error("the snapshot is malformed at byte {0}")]
    Malformed(usize),
}

/// What was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Records that are in the registry now.
    pub taken: usize,
    /// Records that are not: over a limit, or dead for too long.
    pub refused: usize,
}

/// A registry as it was at one moment. Taking one is short work, for which a shell may hold a lock; it shares the records.
#[derive(Debug, Clone)]
pub struct Snapshot {
    federation: FederationId,
    records: Vec<(Signed, Duration)>,
}

impl Snapshot {
    /// The registry as it is now.
    pub fn take(registry: &Registry, now: Time) -> Self {
        let mut records = Vec::with_capacity(registry.len());
        records.extend(registry.records(now).map(|(signed, age)| (signed.clone(), age)));
        Self { federation: registry.federation(), records }
    }

    /// The federation that it is of.
    pub fn federation(&self) -> FederationId {
        self.federation
    }

    /// The bytes for the disk.
    pub fn encode(&self) -> Vec<u8> {
        let records_bytes = self.records.iter().map(|(signed, _)| RECORD_HEADER_BYTES + signed.bytes().len());
        let mut out = Vec::with_capacity(HEADER_BYTES + records_bytes.sum::<usize>() + HASH_BYTES);
        out.extend_from_slice(MAGIC);
        out.push(FORMAT);
        out.extend_from_slice(&self.federation.0);
        // Leases first: a worker whose sponsor is known counts as that one's.
        let is_lease = |(signed, _): &&(Signed, Duration)| signed.kind() == Kind::LEASE;
        let (leases, others) = (self.records.iter().filter(is_lease), self.records.iter().filter(|one| !is_lease(one)));
        for (signed, age) in leases.chain(others) {
            let bytes = signed.bytes();
            // A record is far below 64 KiB, by `record_bytes_max`; one that is not would not be read again.
            let Ok(length) = u16::try_from(bytes.len()) else { continue };
            out.extend_from_slice(&u64::try_from(age.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(bytes);
        }
        let hash = Sha256::digest(&out);
        out.extend_from_slice(&hash);
        out
    }
}

/// The registry as bytes.
pub fn encode(registry: &Registry, now: Time) -> Vec<u8> {
    Snapshot::take(registry, now).encode()
}

/// Joins what a snapshot holds with what is in the registry: all of it or, if it is damaged, nothing.
pub fn restore(bytes: Vec<u8>, registry: &mut Registry, now: Time) -> Result<Restored, SnapshotError> {
    let max_bytes = registry.limits().snapshot_bytes_max;
    if bytes.len() > max_bytes {
        return Err(SnapshotError::TooLong { got_bytes: bytes.len(), max_bytes });
    }
    if bytes.len() < HEADER_BYTES + HASH_BYTES || !bytes.starts_with(MAGIC) {
        return Err(SnapshotError::NotASnapshot);
    }
    let end = bytes.len() - HASH_BYTES;
    if Sha256::digest(&bytes[..end]).as_slice() != &bytes[end..] {
        return Err(SnapshotError::Hash);
    }
    if bytes[8] != FORMAT {
        return Err(SnapshotError::Format(bytes[8]));
    }
    if bytes[9..HEADER_BYTES] != registry.federation().0 {
        return Err(SnapshotError::Federation);
    }
    let bytes = Bytes::from(bytes);
    let mut records = Vec::new();
    let mut at = HEADER_BYTES;
    while at < end {
        let (age, record, next) = record_at(&bytes, at, end).ok_or(SnapshotError::Malformed(at))?;
        records.push((age, record));
        at = next;
    }
    let mut restored = Restored::default();
    for (age, record) in records {
        // Each in an allocation of its own: one that lives on must not hold the whole snapshot.
        let record = Bytes::copy_from_slice(&record);
        let opened = registry.open(record);
        let inserted = opened.is_ok_and(|signed| registry.insert(now, signed, Source::Snapshot(age)).is_ok());
        if inserted {
            restored.taken += 1;
        } else {
            restored.refused += 1;
        }
    }
    Ok(restored)
}

/// The age and the bytes of the record at `at`, and where the next one is.
fn record_at(bytes: &Bytes, at: usize, end: usize) -> Option<(Duration, Bytes, usize)> {
    let header = bytes[..end].get(at..at + RECORD_HEADER_BYTES)?;
    let age_ms = u64::from_be_bytes(header[..8].try_into().ok()?);
    let length = usize::from(u16::from_be_bytes(header[8..].try_into().ok()?));
    let start = at + RECORD_HEADER_BYTES;
    let next = start + length;
    (next <= end).then(|| (Duration::from_millis(age_ms), bytes.slice(start..next), next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::FederationId;
    use crate::limits::Limits;
    use crate::record::{Body, Roles};
    use crate::registry::tests::{
        FEDERATION, HOUR, MINUTE, any_record, at, held, id, insert, lease, node, registry, say,
    };
    use crate::registry::{Outcome, Presence, Refused};

    fn some() -> Registry {
        let mut registry = registry();
        let start = at(Duration::ZERO);
        insert(&mut registry, start, &say(0, 1, 1, &lease()));
        insert(&mut registry, start, &say(2, 1, 1, &node(Roles::Worker, None)));
        insert(&mut registry, start, &say(3, 1, 1, &node(Roles::Worker, None)));
        insert(&mut registry, start, &say(3, 1, 2, &Body::Leave));
        registry
    }

    #[test]
    fn a_torn_or_flipped_snapshot_is_noticed_and_nothing_of_it_is_taken() {
        let bytes = encode(&some(), at(Duration::ZERO));
        for end in 0..bytes.len() {
            let mut registry = registry();
            assert!(restore(bytes[..end].to_vec(), &mut registry, at(Duration::ZERO)).is_err(), "cut at {end}");
            assert!(registry.is_empty());
        }
        for flip in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[flip] ^= 1 << (flip % 8);
            let mut registry = registry();
            assert!(restore(flipped, &mut registry, at(Duration::ZERO)).is_err(), "byte {flip}");
            assert!(registry.is_empty());
        }
    }

    #[test]
    fn a_snapshot_of_another_federation_or_too_long_is_refused_by_name() {
        let bytes = encode(&some(), at(Duration::ZERO));
        let mut other = Registry::new(FederationId([1; 32]), Limits::PRODUCTION);
        assert_eq!(restore(bytes.clone(), &mut other, at(Duration::ZERO)), Err(SnapshotError::Federation));
        let mut small = Registry::new(FEDERATION, Limits { snapshot_bytes_max: 64, ..Limits::TINY });
        assert!(matches!(restore(bytes, &mut small, at(Duration::ZERO)), Err(SnapshotError::TooLong { .. })));
    }

    #[test]
    fn a_snapshot_with_a_right_hash_and_wrong_records_is_refused() {
        let mut bytes = encode(&registry(), at(Duration::ZERO));
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        let hash = Sha256::digest(&bytes);
        bytes.extend_from_slice(&hash);
        let error = restore(bytes, &mut registry(), at(Duration::ZERO));
        assert_eq!(error, Err(SnapshotError::Malformed(HEADER_BYTES)));
    }

    #[test]
    fn leases_are_provisional_and_the_dead_stay_dead_in_what_is_restored() {
        let mut before = some();
        let later = at(MINUTE / 2);
        let bytes = encode(&before, later);
        let mut after = registry();
        let restored = restore(bytes, &mut after, later).unwrap();
        assert_eq!(restored, Restored { taken: 3, refused: 0 });
        assert_eq!(after.presence(&id(0)), Presence::Provisional);
        assert_eq!(insert(&mut after, later, &say(3, 1, 1, &node(Roles::Worker, None))), Outcome::Left);
        // The worker lapses when it would have.
        after.handle_timeout(at(MINUTE * 10));
        assert!(after.node(&id(2)).is_none());
        // What had lapsed when it was written stays hidden, and is forgotten in its time.
        let later = at(MINUTE * 10 + HOUR * 24) - MINUTE;
        before.handle_timeout(later);
        let mut after = registry();
        restore(encode(&before, later), &mut after, later).unwrap();
        assert!(after.node(&id(2)).is_none());
        after.handle_timeout(later + MINUTE);
        let expired: Result<Outcome, Refused> =
            after.insert(later, say(9, 1, 1, &Body::Leave), Source::Snapshot(HOUR * 25));
        assert_eq!(expired, Err(Refused::Expired));
        assert!(
            !after.records(later).any(|(signed, _)| signed.hash() == say(2, 1, 1, &node(Roles::Worker, None)).hash())
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_written_is_what_is_restored(
            records in proptest::collection::vec(any_record(), 0..16),
            wait_minutes in 0..1500_u32,
        ) {
            let mut before = registry();
            for signed in &records {
                insert(&mut before, at(Duration::ZERO), signed);
            }
            let now = at(MINUTE * wait_minutes);
            before.handle_timeout(now);
            let mut after = registry();
            let restored = restore(encode(&before, now), &mut after, now).unwrap();
            prop_assert_eq!(restored, Restored { taken: before.len(), refused: 0 });
            prop_assert_eq!(held(&after), held(&before));
            prop_assert_eq!(after.digest(), before.digest());
            // Nothing resurrects through it.
            let shown = |registry: &Registry| registry.nodes().cloned().collect::<Vec<_>>();
            prop_assert_eq!(shown(&after), shown(&before));
        }
    }
}
