//! The signed envelope: sign the exact bytes, and keep them.
//!
//! ```text
//!  0      format                1 byte, FORMAT
//!  1      kind                  1
//!  2      federation            32
//! 34      writer                32   the Ed25519 public key
//! 66      epoch                 8    big-endian, as are the next two
//! 74      seq                   8
//! 82      incarnation           8
//! 90      length of the subject 1    at most SUBJECT_BYTES_MAX
//! 91      subject               …    Attachment: the worker's id; Guest: the worker id's text; otherwise empty
//!         content               …    a version byte, then bincode
//!         signature             64   Ed25519 over DOMAIN and everything above
//! ```
//!
//! The header is fixed, so that a record of a kind that a newer version made up can be verified, keyed, ordered, kept
//! and passed on by code that does not understand it. Fields that a newer version appends to a known kind are skipped
//! when it is read, and travel on since the bytes do.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Attachment, AttachmentState, Body, Guest, GuestDetails, Invalid, Kind, Record, Unknown, Version, check};
use crate::id::{FederationId, NodeId};
use crate::key::{SIGNATURE_BYTES, SecretKey, Signature};
use crate::limits::Limits;
use crate::registry::KeyHash;
use crate::wire::{self, DecodeError};

/// The version of the envelope that this code reads and writes.
const FORMAT: u8 = 1;
/// In front of what is signed: a signature of ours under anything else does not pass for one under a record.
const DOMAIN: &[u8] = b"hedgerow-record-v1\0";
/// Length of the header without the subject, in bytes.
const HEADER_BYTES: usize = 91;
/// The longest subject: a key, or the text of an agent's id.
pub(super) const SUBJECT_BYTES_MAX: usize = 64;

/// Why bytes are not a record that this node takes, or why a body cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than a record may be: the sender's fault.
    #[error("a record of {got_bytes} bytes, over the limit of {max_bytes} (record_bytes_max)")]
    TooLong {
        /// Its length in bytes.
        got_bytes: usize,
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// Shorter than its own header says.
    #[error("a record cut short at {0} bytes")]
    Truncated(usize),
    /// An envelope of another version.
    #[error("record format {0}, this program reads format {FORMAT}: one of the two programs is out of date")]
    Format(u8),
    /// A subject over the limit.
    #[error("a record's subject of {0} bytes, over the limit of {SUBJECT_BYTES_MAX}")]
    Subject(usize),
    /// Said in another federation.
    #[error("a record of federation {0}, which is another one")]
    Federation(FederationId),
    /// Not signed by the writer that it names.
    #[error("the signature is not {writer:?}'s")]
    Signature {
        /// The writer that it names.
        writer: NodeId,
    },
    /// A body that does not decode.
    #[error("the record's body: {0}")]
    Body(#[from] DecodeError),
    /// A body that breaks a rule or a limit.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The SHA-256 of a record's exact bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordHash(pub [u8; 32]);

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordHash({})", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// A record with its signature, as its exact bytes: what was signed is what travels, what is kept and what is hashed. Beside them
/// is what they say. A value of this type has been signed or verified here.
///
/// All clones share one record, wherever they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    hash: RecordHash,
    /// The hash of its key, once somebody has asked for it.
    key_hash: OnceLock<KeyHash>,
    record: Record,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Kept {}

/// Reads and verifies a record from anybody: [`Signed::open`], or something that remembers what that has said. A federation's
/// simulation so reads each record once, and keeps it once, and not once for each of a thousand nodes.
pub type Open = fn(Bytes, FederationId, &Limits) -> Result<Signed, RecordError>;

impl Signed {
    fn new(bytes: Bytes, record: Record) -> Self {
        use sha2::Digest;
        let hash = RecordHash(sha2::Sha256::digest(&bytes).into());
        Self(Arc::new(Kept { bytes, hash, key_hash: OnceLock::new(), record }))
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// What it says.
    pub fn record(&self) -> &Record {
        &self.0.record
    }

    /// The kind, as the envelope says.
    pub fn kind(&self) -> Kind {
        self.0.record.body.kind()
    }

    /// Who signed it.
    pub fn writer(&self) -> NodeId {
        self.0.record.writer
    }

    /// Its place in the order of what its writer says.
    pub fn version(&self) -> Version {
        self.0.record.version
    }

    /// What it is about beside its writer: see the envelope.
    pub fn subject(&self) -> &[u8] {
        self.0.record.body.subject()
    }

    /// The hash of its bytes.
    pub fn hash(&self) -> RecordHash {
        self.0.hash
    }

    /// The hash of its key.
    pub(crate) fn key_hash(&self) -> KeyHash {
        *self.0.key_hash.get_or_init(|| KeyHash::of(&self.writer(), self.kind(), self.subject()))
    }

    /// Signs what the holder of the key says, within [`Limits::PRODUCTION`].
    pub fn sign(
        key: &SecretKey,
        federation: FederationId,
        incarnation: u64,
        version: Version,
        body: &Body,
    ) -> Result<Self, RecordError> {
        Self::sign_within(key, federation, incarnation, version, body, &Limits::PRODUCTION)
    }

    /// Signs what the holder of the key says, if it keeps these limits.
    pub fn sign_within(
        key: &SecretKey,
        federation: FederationId,
        incarnation: u64,
        version: Version,
        body: &Body,
        limits: &Limits,
    ) -> Result<Self, RecordError> {
        let writer = key.id();
        check::body(&writer, body, limits)?;
        let subject = body.subject();
        let subject_bytes = u8::try_from(subject.len()).ok().filter(|&bytes| usize::from(bytes) <= SUBJECT_BYTES_MAX);
        let subject_bytes = subject_bytes.ok_or(RecordError::Subject(subject.len()))?;
        let content = encode_content(body);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + subject.len() + content.len() + SIGNATURE_BYTES);
        bytes.push(FORMAT);
        bytes.push(body.kind().0);
        bytes.extend_from_slice(&federation.0);
        bytes.extend_from_slice(&writer.0);
        bytes.extend_from_slice(&version.epoch.to_be_bytes());
        bytes.extend_from_slice(&version.seq.to_be_bytes());
        bytes.extend_from_slice(&incarnation.to_be_bytes());
        bytes.push(subject_bytes);
        bytes.extend_from_slice(subject);
        bytes.extend_from_slice(&content);
        let signature = key.sign(&[DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        length(&bytes, limits)?;
        // Read as all others read it: a lease, for one, has only whole milliseconds on the wire.
        let bytes = Bytes::from(bytes);
        let (record, _) = Self::parse(&bytes, federation, limits)?;
        Ok(Self::new(bytes, record))
    }

    /// What it says, if that is of this federation and keeps these limits: it may have been opened with others.
    pub fn read(&self, federation: FederationId, limits: &Limits) -> Result<&Record, RecordError> {
        let record = self.record();
        length(&self.0.bytes, limits)?;
        if record.federation != federation {
            return Err(RecordError::Federation(record.federation));
        }
        check::body(&record.writer, &record.body, limits)?;
        Ok(record)
    }

    /// Everything but the signature: the length, the federation, the rules.
    fn parse(bytes: &Bytes, federation: FederationId, limits: &Limits) -> Result<(Record, Envelope), RecordError> {
        length(bytes, limits)?;
        let envelope = Envelope::read(bytes)?;
        if envelope.federation != federation {
            return Err(RecordError::Federation(envelope.federation));
        }
        let body = decode_content(bytes, &envelope)?;
        check::body(&envelope.writer, &body, limits)?;
        let Envelope { writer, incarnation, version, .. } = envelope;
        Ok((Record { federation, writer, incarnation, version, body }, envelope))
    }

    /// Reads and verifies a record from anybody: its length, its federation, its rules, its signature.
    pub fn open(bytes: Bytes, federation: FederationId, limits: &Limits) -> Result<Self, RecordError> {
        Self::open_by(bytes, federation, limits, NodeId::verifies)
    }

    /// [`Signed::open`] with another judgement of the signature, given the writer, the message and the signature: a fuzzer cannot sign
    /// what it makes up.
    pub fn open_by(
        bytes: Bytes,
        federation: FederationId,
        limits: &Limits,
        verifies: impl FnOnce(&NodeId, &[u8], &Signature) -> bool,
    ) -> Result<Self, RecordError> {
        let (record, envelope) = Self::parse(&bytes, federation, limits)?;
        // The dearest check last: a signature costs as much as everything before it a hundred times.
        let signed = &bytes[..envelope.content_end];
        if !verifies(&envelope.writer, &[DOMAIN, signed].concat(), &envelope.signature) {
            return Err(RecordError::Signature { writer: envelope.writer });
        }
        Ok(Self::new(bytes, record))
    }
}

fn length(bytes: &[u8], limits: &Limits) -> Result<(), RecordError> {
    let (got_bytes, max_bytes) = (bytes.len(), limits.record_bytes_max);
    if got_bytes > max_bytes { Err(RecordError::TooLong { got_bytes, max_bytes }) } else { Ok(()) }
}

/// What the header says.
struct Envelope {
    kind: Kind,
    federation: FederationId,
    writer: NodeId,
    version: Version,
    incarnation: u64,
    /// Where the content begins: the subject stands before it, after the header.
    content_start: usize,
    /// Where the content ends and the signature begins.
    content_end: usize,
    signature: Signature,
}

impl Envelope {
    fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        let truncated = RecordError::Truncated(bytes.len());
        match bytes.first() {
            None => return Err(truncated),
            Some(&FORMAT) => {}
            Some(&other) => return Err(RecordError::Format(other)),
        }
        if bytes.len() < HEADER_BYTES + SIGNATURE_BYTES {
            return Err(truncated);
        }
        let subject_bytes = usize::from(bytes[HEADER_BYTES - 1]);
        if subject_bytes > SUBJECT_BYTES_MAX {
            return Err(RecordError::Subject(subject_bytes));
        }
        let content_start = HEADER_BYTES + subject_bytes;
        let content_end = bytes.len() - SIGNATURE_BYTES;
        if content_start > content_end {
            return Err(truncated);
        }
        Ok(Self {
            kind: Kind(bytes[1]),
            federation: FederationId(array(bytes, 2)),
            writer: NodeId(array(bytes, 34)),
            version: Version { epoch: u64::from_be_bytes(array(bytes, 66)), seq: u64::from_be_bytes(array(bytes, 74)) },
            incarnation: u64::from_be_bytes(array(bytes, 82)),
            content_start,
            content_end,
            signature: array(bytes, content_end),
        })
    }
}

/// The `N` bytes from `at` on; the caller has seen that they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn encode_content(body: &Body) -> Vec<u8> {
    match body {
        Body::Node(node) => wire::encode(node),
        Body::Lease(lease) => wire::encode(lease),
        Body::Attachment(attachment) => wire::encode(&(attachment.home_seq, attachment.state)),
        Body::Guest(guest) => wire::encode(&guest.details),
        Body::Leave => wire::encode(&()),
        Body::Unknown(unknown) => unknown.content.to_vec(),
    }
}

fn decode_content(bytes: &Bytes, envelope: &Envelope) -> Result<Body, RecordError> {
    let subject = bytes.slice(HEADER_BYTES..envelope.content_start);
    let content = bytes.slice(envelope.content_start..envelope.content_end);
    // Content of another version, in a known kind as in any other, is a newer program's: not ours to judge.
    let newer = content.first().is_some_and(|&version| version != wire::VERSION);
    if newer || !envelope.kind.is_known() {
        return Ok(Body::Unknown(Unknown { kind: envelope.kind, subject, content }));
    }
    let max_bytes = content.len();
    Ok(match envelope.kind {
        Kind::ATTACHMENT => {
            let worker = NodeId(subject.as_ref().try_into().map_err(|_| Invalid::Subject)?);
            let ((home_seq, state), _) = wire::decode_prefix::<(u64, AttachmentState)>(&content, max_bytes)?;
            Body::Attachment(Attachment { worker, home_seq, state })
        }
        Kind::GUEST => {
            let worker_id = std::str::from_utf8(&subject).map_err(|_| Invalid::Subject)?.to_owned();
            let (details, _) = wire::decode_prefix::<GuestDetails>(&content, max_bytes)?;
            Body::Guest(Guest { worker_id, details })
        }
        _ if !subject.is_empty() => return Err(Invalid::Subject.into()),
        Kind::NODE => Body::Node(wire::decode_prefix(&content, max_bytes)?.0),
        Kind::LEASE => Body::Lease(wire::decode_prefix(&content, max_bytes)?.0),
        _ => {
            wire::decode_prefix::<()>(&content, max_bytes)?;
            Body::Leave
        }
    })
}

#[cfg(test)]
#[path = "signed_tests.rs"]
mod tests;
