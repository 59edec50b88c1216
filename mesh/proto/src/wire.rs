//! The wire format: serde and bincode 2.0.1, behind one version byte, with a limit on every decode.
//!
//! The only module that names bincode. Integers are variable-length, little-endian (bincode's `standard`
//! configuration). Decoding is total: any input gives a value or an error, and never allocates more than
//! [`ALLOCATION_PER_BYTE`] times its length and [`ALLOCATION_BASE`] beside.

use std::cell::Cell;

use serde::{Serialize, de::DeserializeOwned};

pub(crate) mod blob;
mod budget;

/// The version that this code writes.
pub const VERSION: u8 = 1;
/// At most this many bytes are allocated for each byte of input …
pub const ALLOCATION_PER_BYTE: usize = 4;
/// … and this many beside them.
pub const ALLOCATION_BASE: usize = 64 * 1024;

/// Why bytes are not what they should be. All of these are the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the caller takes.
    #[error("{got_bytes} bytes, over the limit of {max_bytes}")]
    TooLong {
        /// Length of the input in bytes.
        got_bytes: usize,
        /// Length allowed in bytes.
        max_bytes: usize,
    },
    /// The first byte names a version that this code does not read.
    #[error("wire version {0}, this program reads version {VERSION}")]
    Version(u8),
    /// Cut short, or not of this shape.
    #[error("malformed: {0}")]
    Malformed(String),
    /// More bytes than the value takes.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// A sequence that grows by doubling takes so many times its length for a moment: the old half and the new whole.
const GROWING: usize = 3;

/// Bincode's own bound, beside the budget: what the longest message may claim to hold, in bytes. A number takes one byte
/// of input and claims up to sixteen.
const CLAIMED_BYTES_MAX: usize = 16 * crate::frame::MESSAGE_BYTES_MAX;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<CLAIMED_BYTES_MAX>()
}

/// Encodes a value behind the version byte.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_onto(value, &mut out);
    out
}

/// Encodes a value behind the version byte, onto the end of a buffer.
pub fn encode_onto<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    out.push(VERSION);
    encode_into(value, out);
}

struct Sink<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    // Our own types have no map keys, no unsized sequences and no failing `Serialize`: there is nothing to fail.
    bincode::serde::encode_into_writer(value, Sink(out), config()).expect("our types always encode");
}

/// Decodes a value of at most `max_bytes`, and nothing behind it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max_bytes: usize) -> Result<T, DecodeError> {
    match decode_prefix(bytes, max_bytes)? {
        (value, []) => Ok(value),
        (_, rest) => Err(DecodeError::Trailing(rest.len())),
    }
}

/// Decodes a value of at most `max_bytes` and returns what stands behind it: a newer version's further fields.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8], max_bytes: usize) -> Result<(T, &[u8]), DecodeError> {
    if bytes.len() > max_bytes {
        return Err(DecodeError::TooLong { got_bytes: bytes.len(), max_bytes });
    }
    let Some((&version, body)) = bytes.split_first() else {
        return Err(DecodeError::Malformed("empty".into()));
    };
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let budget = Cell::new((ALLOCATION_PER_BYTE * bytes.len() + ALLOCATION_BASE) / GROWING);
    let (value, used) = bincode::serde::seed_decode_from_slice(budget::Budget::new(&budget), body, config())
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    Ok((value, &body[used..]))
}
