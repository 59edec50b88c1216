//! The hash of all that happened in a run. Two runs with one hash did the same, byte for byte and nanosecond for nanosecond.

use std::time::Duration;

use sha2::{Digest, Sha256};

/// Hashes events in the order in which they happen.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    hash: Sha256,
    events: u64,
}

impl Trace {
    /// Something happened: when, between whom, what kind of thing, and the bytes of it. Lengths are hashed too, so that no two
    /// different events read the same.
    pub fn event(&mut self, at: Duration, from: u32, to: u32, kind: u8, bytes: &[u8]) {
        self.hash.update(at.as_nanos().to_be_bytes());
        self.hash.update(from.to_be_bytes());
        self.hash.update(to.to_be_bytes());
        self.hash.update([kind]);
        self.hash.update((bytes.len() as u64).to_be_bytes());
        self.hash.update(bytes);
        self.events += 1;
    }

    /// How many events.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The hash of what happened until now, in hexadecimal.
    pub fn hash(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_difference_in_when_who_what_and_order_shows() {
        let of = |events: &[(u64, u32, u32, u8, &[u8])]| {
            let mut trace = Trace::default();
            for (at, from, to, kind, bytes) in events {
                trace.event(Duration::from_nanos(*at), *from, *to, *kind, bytes);
            }
            trace.hash()
        };
        let (one, other): (&[u8], &[u8]) = (b"ab", b"c");
        let all = [
            of(&[(1, 1, 2, 0, one), (2, 2, 1, 0, other)]),
            of(&[(2, 2, 1, 0, other), (1, 1, 2, 0, one)]),
            of(&[(1, 1, 2, 0, one), (3, 2, 1, 0, other)]),
            of(&[(1, 1, 2, 0, one), (2, 2, 3, 0, other)]),
            of(&[(1, 1, 2, 0, one), (2, 2, 1, 1, other)]),
            of(&[(1, 1, 2, 0, b"a"), (2, 2, 1, 0, b"bc")]),
        ];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert_eq!(all[0], of(&[(1, 1, 2, 0, one), (2, 2, 1, 0, other)]));
    }
}
