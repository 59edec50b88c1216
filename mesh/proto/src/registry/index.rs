//! What was said, as synchronisation and digests see it: hashes of keys in order, and fingerprints of ranges of them.
//!
//! The keys' hashes are the leaves of a tree that branches sixteenfold, at each hexadecimal digit. The fingerprint of a
//! subtree is the SHA-256 of the records' hashes in it, in order: two replicas that agree on it hold the same records
//! there. Those of the 256 subtrees of two digits are remembered, so a change costs a 256th of the whole; and that of the
//! whole is, which is asked for at each synchronisation.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::NodeId;
use crate::record::{Kind, Signed};

/// The first 16 bytes of the SHA-256 of a record's key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyHash(pub [u8; 16]);

impl KeyHash {
    /// Hexadecimal digits in it: the depth of the tree.
    pub const DIGITS: u8 = 32;

    /// The hash of the key of what this writer says in this kind about this subject.
    pub fn of(writer: &NodeId, kind: Kind, subject: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"hedgerow-key-v1\0");
        hash.update(writer.0);
        hash.update([kind.0]);
        hash.update(subject);
        let hash: [u8; 32] = hash.finalize().into();
        let mut out = [0; 16];
        out.copy_from_slice(&hash[..16]);
        Self(out)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({})", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// A subtree: all keys whose hash begins with these digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// How many digits; at most [`KeyHash::DIGITS`].
    digits: u8,
    /// The digits, and zeros behind them.
    start: KeyHash,
}

impl Prefix {
    /// The whole tree.
    pub const ROOT: Self = Self { digits: 0, start: KeyHash([0; 16]) };

    /// The subtree of the first `digits` digits of this hash, if there are so many.
    pub fn new(digits: u8, hash: KeyHash) -> Option<Self> {
        if digits > KeyHash::DIGITS {
            return None;
        }
        let mut start = [0; 16];
        let whole = usize::from(digits / 2);
        start[..whole].copy_from_slice(&hash.0[..whole]);
        if digits % 2 == 1 {
            start[whole] = hash.0[whole] & 0xf0;
        }
        Some(Self { digits, start: KeyHash(start) })
    }

    /// How many digits.
    pub fn digits(&self) -> u8 {
        self.digits
    }

    /// The first key's hash that can be in it.
    pub fn start(&self) -> KeyHash {
        self.start
    }

    /// The last key's hash that can be in it.
    fn end(&self) -> KeyHash {
        let mut end = self.start.0;
        let whole = usize::from(self.digits / 2);
        if self.digits % 2 == 1 {
            end[whole] |= 0x0f;
            end[whole + 1..].fill(0xff);
        } else {
            end[whole..].fill(0xff);
        }
        KeyHash(end)
    }

    /// The sixteen subtrees of one more digit; none of a single key's.
    pub fn children(&self) -> impl Iterator<Item = Self> + use<> {
        let Self { digits, start } = *self;
        (0..16_u8).filter(move |_| digits < KeyHash::DIGITS).map(move |digit| {
            let mut child = start;
            child.0[usize::from(digits / 2)] |= if digits % 2 == 0 { digit << 4 } else { digit };
            Self { digits: digits + 1, start: child }
        })
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = data_encoding::HEXLOWER.encode(&self.start.0);
        write!(f, "Prefix({})", &text[..usize::from(self.digits)])
    }
}

/// What a subtree's records hash to; zeros for an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// The digest of a registry: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// The hash of a subtree of two digits, until a record in it changes.
type Bucket = OnceLock<[u8; 32]>;

/// The tree.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    leaves: BTreeMap<KeyHash, Signed>,
    /// The hashes of the 256 subtrees of two digits. None until somebody asks for one: a worker's registry holds little, and is
    /// compared with nobody's.
    buckets: OnceLock<Box<[Bucket]>>,
    /// The hash of all of them, until one changes.
    root: OnceLock<[u8; 32]>,
}

impl Index {
    /// Puts a record in the place of its key.
    pub(super) fn insert(&mut self, signed: Signed) {
        let at = signed.key_hash();
        self.changes(&at);
        self.leaves.insert(at, signed);
    }

    /// Empties the place of a record.
    pub(super) fn remove(&mut self, signed: &Signed) {
        let at = signed.key_hash();
        self.changes(&at);
        self.leaves.remove(&at);
    }

    /// Forgets the hashes that cover this place.
    fn changes(&mut self, at: &KeyHash) {
        if let Some(buckets) = self.buckets.get_mut() {
            buckets[usize::from(at.0[0])].take();
        }
        self.root.take();
    }

    pub(crate) fn len(&self) -> usize {
        self.leaves.len()
    }

    /// The record at this hash of a key.
    pub(crate) fn leaf(&self, at: &KeyHash) -> Option<&Signed> {
        self.leaves.get(at)
    }

    /// What is in a subtree, in order.
    pub(crate) fn range(&self, prefix: Prefix) -> impl Iterator<Item = (&KeyHash, &Signed)> {
        self.leaves.range(prefix.start()..=prefix.end())
    }

    /// The fingerprint of a subtree.
    pub(crate) fn fingerprint(&self, prefix: Prefix) -> Fingerprint {
        let full = match prefix.digits() {
            0 => *self.root(),
            1 => {
                let first = usize::from(prefix.start().0[0]);
                self.join_buckets(first..first + 16)
            }
            2 => *self.bucket(usize::from(prefix.start().0[0])),
            _ => self.hash_range(prefix),
        };
        let mut out = [0; 16];
        out.copy_from_slice(&full[..16]);
        Fingerprint(out)
    }

    pub(super) fn digest(&self) -> Digest {
        Digest(*self.root())
    }

    fn root(&self) -> &[u8; 32] {
        self.root.get_or_init(|| self.join_buckets(0..256))
    }

    /// The hash over the buckets in the range; zeros if all are empty.
    fn join_buckets(&self, range: std::ops::Range<usize>) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut empty = true;
        for at in range {
            let bucket = self.bucket(at);
            empty &= *bucket == [0; 32];
            hash.update(bucket);
        }
        if empty { [0; 32] } else { hash.finalize().into() }
    }

    fn bucket(&self, at: usize) -> &[u8; 32] {
        let prefix = Prefix { digits: 2, start: KeyHash(std::array::from_fn(|i| if i == 0 { at as u8 } else { 0 })) };
        let buckets = self.buckets.get_or_init(|| vec![Bucket::new(); 256].into());
        buckets[at].get_or_init(|| self.hash_range(prefix))
    }

    fn hash_range(&self, prefix: Prefix) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut empty = true;
        for (at, signed) in self.range(prefix) {
            empty = false;
            hash.update(at.0);
            hash.update(signed.hash().0);
        }
        if empty { [0; 32] } else { hash.finalize().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixteen_subtrees_are_the_tree() {
        for hash in [KeyHash([0; 16]), KeyHash([0xff; 16]), KeyHash(std::array::from_fn(|i| i as u8 * 17))] {
            for digits in 0..KeyHash::DIGITS {
                let prefix = Prefix::new(digits, hash).unwrap();
                let children: Vec<_> = prefix.children().collect();
                assert_eq!(children.len(), 16);
                assert_eq!(children[0].start(), prefix.start());
                assert_eq!(children[15].end(), prefix.end());
                assert!(children.windows(2).all(|pair| pair[0].end() < pair[1].start()));
                assert!(children.contains(&Prefix::new(digits + 1, hash).unwrap()));
            }
        }
        let leaf = Prefix::new(KeyHash::DIGITS, KeyHash([7; 16])).unwrap();
        assert_eq!((leaf.start(), leaf.end()), (KeyHash([7; 16]), KeyHash([7; 16])));
        assert_eq!(leaf.children().count(), 0);
        assert_eq!(Prefix::new(KeyHash::DIGITS + 1, KeyHash([7; 16])), None);
    }
}
