//! One writer's records, in order of their place: the kind, then what they are about.
//!
//! A sorted vector, and not a map: nearly every writer is a worker, which has one record, and the smallest node of a map has room
//! for eleven. The longest is that of a coordinator with all the attachments and tombstones that it may have. There a record
//! that comes in moves some hundred KiB, which takes less time than to verify its signature has taken before. Where many go at once, they go from the end.

use std::cmp::Ordering;

use crate::clock::Time;
use crate::record::{Kind, Record, Signed};

/// One record.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) signed: Signed,
    /// For a tombstone: when it may be forgotten.
    pub(super) until: Option<Time>,
}

impl Entry {
    pub(super) fn record(&self) -> &Record {
        self.signed.record()
    }
}

/// A record in the order of places.
#[derive(Debug, Clone)]
pub(super) struct Placed(pub(super) Signed);

impl Placed {
    fn place(&self) -> (Kind, &[u8]) {
        (self.0.kind(), self.0.subject())
    }
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Placed {}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries(Vec<Entry>);

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.0.iter()
    }

    pub(super) fn get(&self, kind: Kind, subject: &[u8]) -> Option<&Entry> {
        // What is asked for most, a node's own record, is nearly always the first.
        if let Some(first) = self.0.first()
            && subject.is_empty()
            && first.signed.kind() == kind
            && first.signed.subject().is_empty()
        {
            return Some(first);
        }
        self.find(kind, subject).ok().map(|at| &self.0[at])
    }

    /// All of one kind, whatever they are about.
    pub(super) fn of_kind(&self, kind: Kind) -> &[Entry] {
        &self.0[self.range(kind)]
    }

    pub(super) fn of_kind_mut(&mut self, kind: Kind) -> &mut [Entry] {
        let range = self.range(kind);
        &mut self.0[range]
    }

    /// Puts a record in its place. Returns what it replaces.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        match self.find(entry.signed.kind(), entry.signed.subject()) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at], entry)),
            Err(at) => {
                // Most writers never have more than these few.
                if self.0.len() < 4 {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, entry);
                None
            }
        }
    }

    pub(super) fn remove(&mut self, kind: Kind, subject: &[u8]) -> Option<Entry> {
        self.find(kind, subject).ok().map(|at| self.0.remove(at))
    }

    fn find(&self, kind: Kind, subject: &[u8]) -> Result<usize, usize> {
        self.0.binary_search_by(|entry| (entry.signed.kind(), entry.signed.subject()).cmp(&(kind, subject)))
    }

    fn range(&self, kind: Kind) -> std::ops::Range<usize> {
        let start = self.0.partition_point(|entry| entry.signed.kind() < kind);
        start..start + self.0[start..].partition_point(|entry| entry.signed.kind() == kind)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::registry::tests::any_record;

    proptest! {
        #[test]
        fn it_holds_what_a_map_by_place_would_hold(
            steps in proptest::collection::vec((any_record(), any::<bool>()), 0..48),
        ) {
            let (mut entries, mut map) = (Entries::default(), BTreeMap::new());
            for (signed, comes) in steps {
                let place = (signed.kind(), signed.subject().to_vec());
                let before = match comes {
                    true => map.insert(place.clone(), signed.hash()),
                    false => map.remove(&place),
                };
                let replaced = match comes {
                    true => entries.insert(Entry { signed: signed.clone(), until: None }),
                    false => entries.remove(place.0, &place.1),
                };
                prop_assert_eq!(replaced.map(|entry| entry.signed.hash()), before);
                let hash = |entry: &Entry| entry.signed.hash();
                prop_assert_eq!(entries.get(place.0, &place.1).map(hash), map.get(&place).copied());
                prop_assert!(entries.iter().map(hash).eq(map.values().copied()));
                let of_kind = map.iter().filter(|((kind, _), _)| *kind == place.0).map(|(_, hash)| *hash);
                prop_assert!(entries.of_kind(place.0).iter().map(hash).eq(of_kind));
                prop_assert_eq!((entries.len(), entries.is_empty()), (map.len(), map.is_empty()));
            }
        }
    }
}
