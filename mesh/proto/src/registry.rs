//! The registry: what every node has said, joined; who is there, and who has gone.
//!
//! Two things are kept apart. **What was said** is a map from key to the newest record, and joining two such maps is
//! commutative, associative, idempotent and inflationary ([`join`]); it is what the digest covers. **Who is there** is
//! what this replica concludes from it on its own clock ([`life`]): leases run, tunnels come and go, homes attach. It
//! travels only as the ages that a synchronisation states, and no digest covers it.
//!
//! ```text
//!            said             10 min without a sign of life            24 h
//!  (nothing) ────▶ visible ─────────────────────────────────▶ lapsed ───────▶ (nothing)
//!                     ▲                                         │
//!                     └──── a sign of life: lease, tunnel, ─────┘
//!                           attachment, a newer record
//! ```
//!
//! A lapsed record is its own high-water mark: since marks are believed only with their signature, the bytes are kept,
//! hidden, and refuse whatever is older on every path. A Leave is the mark of everything that its writer said up to it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::clock::Time;
use crate::id::{FederationId, NodeId};
use crate::limits::Limits;
use crate::record::{Kind, Open, RecordError, Signed};

mod conflict;
mod entries;
mod index;
mod join;
mod life;
mod no_room;
mod quota;
mod views;
mod writer;

pub use index::{Digest, Fingerprint, KeyHash, Prefix};
pub use join::{Outcome, Source};
pub use life::Wake;
pub use quota::{Refused, SourcePrefix};
pub use views::{Coordinator, GuestView, Presence, Reach, Worker};

use index::Index;
use no_room::NoRoom;
use quota::Quotas;
use writer::Writer;

/// One replica. Time comes in with each call; see [`Registry::poll_timeout`] for when to call without being asked.
#[derive(Debug, Clone)]
pub struct Registry {
    federation: FederationId,
    limits: Limits,
    open: Open,
    /// Boxed, since the nodes of such a tree are a third empty.
    writers: BTreeMap<NodeId, Box<Writer>>,
    /// For each coordinator, those that name it as their home.
    homes: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// When to look at which writer again, and why: one entry for each that has a reason.
    timers: BTreeMap<(Time, NodeId), Wake>,
    quotas: Quotas,
    no_room: NoRoom,
    index: Index,
    generation: u64,
    nodes_generation: u64,
}

impl Registry {
    /// An empty registry.
    pub fn new(federation: FederationId, limits: Limits) -> Self {
        Self::opened_by(federation, limits, Signed::open)
    }

    /// The same, where this function reads and verifies records.
    pub fn opened_by(federation: FederationId, limits: Limits, open: Open) -> Self {
        Self {
            federation,
            limits,
            open,
            writers: BTreeMap::new(),
            homes: BTreeMap::new(),
            timers: BTreeMap::new(),
            quotas: Quotas::default(),
            no_room: NoRoom::default(),
            index: Index::default(),
            generation: 0,
            nodes_generation: 0,
        }
    }

    /// The federation that it is the registry of.
    pub fn federation(&self) -> FederationId {
        self.federation
    }

    /// Reads and verifies a record from anybody. It is not taken in yet.
    pub fn open(&self, bytes: Bytes) -> Result<Signed, RecordError> {
        (self.open)(bytes, self.federation, &self.limits)
    }

    /// Whether there was no room for these bytes a little while ago, as far as is remembered.
    pub(crate) fn had_no_room(&self, now: Time, bytes: &[u8]) -> bool {
        // Mostly there was room for all, and nothing has to be hashed.
        !self.no_room.is_empty() && self.no_room.was_noted(now, &first_half(Sha256::digest(bytes).into()))
    }

    /// There is no room for this record now.
    pub(crate) fn note_no_room(&mut self, now: Time, signed: &Signed) {
        self.no_room.note(now, first_half(signed.hash().0));
    }

    /// Its bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts the changes of what [`views`](Self::nodes) show: equal numbers, equal views.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Counts the changes of what [`Registry::nodes`], [`Registry::coordinators`] and [`Registry::coordinator_nodes`] show. A lease
    /// that is renewed in time is none, nor is an attachment: in a quiet federation there are few.
    pub fn nodes_generation(&self) -> u64 {
        self.nodes_generation
    }

    /// A record of this kind has come or gone.
    fn changes(&mut self, kind: Kind) {
        self.generation += 1;
        self.nodes_generation += u64::from(kind == Kind::NODE);
    }

    /// How many records it holds, marks included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest of what was said: equal digests mean equal registries.
    pub fn digest(&self) -> Digest {
        self.index.digest()
    }

    /// What synchronisation compares.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }
}

/// The first half of the hash of a record.
fn first_half(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

#[cfg(test)]
pub(crate) mod tests;
