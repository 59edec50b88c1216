//! A prefix on the wire: how many digits, and the bytes that they fill.
//!
//! Messages hold hundreds of them, so here they take no allocation of their own: what a message becomes in memory is bounded by
//! its length ([`crate::wire`]).

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::registry::{KeyHash, Prefix};

/// A prefix that has been sent, or is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subtree {
    digits: u8,
    start: Start,
}

/// The first bytes of a hash: as many as there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    len: u8,
    bytes: [u8; 16],
}

impl Subtree {
    /// At most so many bytes on the wire.
    pub(super) const BYTES_MAX: usize = 18;

    pub(super) fn of(prefix: Prefix) -> Self {
        let start = Start { len: prefix.digits().div_ceil(2), bytes: prefix.start().0 };
        Self { digits: prefix.digits(), start }
    }

    /// The prefix that was meant; `None` if there is no such one.
    pub(super) fn prefix(&self) -> Option<Prefix> {
        Prefix::new(self.digits, KeyHash(self.start.bytes))
    }
}

impl Serialize for Subtree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&self.digits)?;
        tuple.serialize_element(&self.start)?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Subtree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Both;
        impl<'de> Visitor<'de> for Both {
            type Value = Subtree;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a subtree")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Subtree, A::Error> {
                let missing = || A::Error::custom("a subtree cut short");
                let digits = parts.next_element()?.ok_or_else(missing)?;
                let start = parts.next_element()?.ok_or_else(missing)?;
                Ok(Subtree { digits, start })
            }
        }
        deserializer.deserialize_tuple(2, Both)
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes[..usize::from(self.len)])
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UpTo16;
        impl Visitor<'_> for UpTo16 {
            type Value = Start;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("up to 16 bytes of a hash")
            }
            fn visit_bytes<E: Error>(self, given: &[u8]) -> Result<Start, E> {
                let len = u8::try_from(given.len()).unwrap_or(u8::MAX);
                let mut bytes = [0; 16];
                let place = bytes.get_mut(..given.len()).ok_or_else(|| E::invalid_length(given.len(), &self))?;
                place.copy_from_slice(given);
                Ok(Start { len, bytes })
            }
        }
        deserializer.deserialize_bytes(UpTo16)
    }
}
