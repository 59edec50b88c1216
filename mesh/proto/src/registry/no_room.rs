//! Records for which there was no room, for a little while: a neighbour that had room for them tells of them at each synchronisation, and their
//! signatures need not be verified each time to find that there is still none.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Time;

/// So long one is not looked at again, at most; there may be room by then.
const FOR: Duration = Duration::from_secs(60);
/// As many as a neighbour can have room for and this replica has not; what is beyond is looked at each time.
const MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct NoRoom {
    /// The first half of each record's hash: nobody finds another record with the same.
    hashes: BTreeSet<[u8; 16]>,
    /// When all of them are forgotten.
    until: Time,
}

impl NoRoom {
    /// There is none for the record of this hash.
    pub(super) fn note(&mut self, now: Time, hash: [u8; 16]) {
        if self.until <= now {
            self.hashes.clear();
            self.until = now + FOR;
        }
        if self.hashes.len() < MAX {
            self.hashes.insert(hash);
        }
    }

    /// Whether there was room for all that is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether there was none a little while ago.
    pub(super) fn was_noted(&self, now: Time, hash: &[u8; 16]) -> bool {
        now < self.until && self.hashes.contains(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_found_no_room_is_looked_at_again_after_a_while_and_there_is_an_end_to_it() {
        let (mut no_room, start) = (NoRoom::default(), Time::from_origin(Duration::from_secs(9)));
        let hash = |n: usize| (n as u128).to_be_bytes();
        (0..2 * MAX).for_each(|n| no_room.note(start, hash(n)));
        assert_eq!(no_room.hashes.len(), MAX);
        assert!(no_room.was_noted(start + FOR / 2, &hash(0)) && !no_room.was_noted(start, &hash(2 * MAX)));
        assert!(!no_room.was_noted(start + FOR, &hash(0)));
        no_room.note(start + FOR, hash(1));
        assert!(no_room.was_noted(start + FOR, &hash(1)) && !no_room.was_noted(start + FOR, &hash(0)));
    }
}
