//! Synchronisation: two registries exchange what differs, and are equal afterwards. Sans I/O.
//!
//! Set reconciliation by comparing ranges (A. Meyer, "Range-based set reconciliation", SRDS 2023), over the sixteenfold
//! tree of [`crate::registry::Prefix`]. The two sides take turns; a turn is a few messages, the last of which says so:
//!
//! ```text
//! one                                              other
//!  │── compare: the whole tree is f ────────────────▶│  here it is g, and large
//!  │◀──────── compare: its sixteen subtrees are … ───│
//!  │── list: in subtree 3 I have (key, version) … ──▶│  of these two are newer here, one is missing here
//!  │◀──────────────────── records, want: a key … ────│
//!  │── records ─────────────────────────────────────▶│
//!  │◀─────────────────────────────────── nothing ────│
//!  │── nothing ─────────────────────────────────────▶│  both are done
//! ```
//!
//! So the traffic is about the differences times the depth of the tree. Each record goes with its age
//! ([`Registry::age`]). Either side holds only hashes of keys that it has, or was told of in one message, so that
//! nothing grows with what a peer claims.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::mutation::{self, Mutation};
use crate::record::{Record, RecordHash, Signed, Version};
use crate::registry::{Fingerprint, KeyHash, Outcome, Prefix, Registry, Source};
use crate::wire::blob::Blob;
use crate::wire::{self, DecodeError};

mod subtree;

use subtree::Subtree;

/// A subtree with no more records than this is listed, not divided: a list of them is about as long as sixteen
/// fingerprints.
const LIST_MAX: usize = 16;
/// Messages in one turn: large differences fill the pipe, and the other side gets its turn all the same.
pub const MESSAGES_PER_TURN: usize = 16;
/// Messages that one session takes: more than the largest registry needs. Whoever sends more plays for time.
const MESSAGES_MAX: usize = 16 * 1024;
/// How often an entry synchronises, within a quarter: equal registries cost a message each way, and this is how long a change may
/// take to come by itself.
pub const ENTRY_INTERVAL: Duration = Duration::from_secs(1);
/// With how many coordinators each time: what one does not know, another does.
pub const ENTRY_PEERS_MAX: usize = 3;
/// What a message takes beside its parts, in bytes: the version, the flag, and the four lengths.
const MESSAGE_OVERHEAD_BYTES: usize = 32;

/// Why a session ends before its time: the peer's fault. What was taken until then stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// A message that does not decode.
    #[error("a message of the synchronisation: {0}")]
    Decode(#[from] DecodeError),
    /// A message while it is not the peer's turn.
    #[error("a message of the synchronisation out of turn")]
    OutOfTurn,
    /// A part of the tree that there is not.
    #[error("a message of the synchronisation about a subtree that there is not")]
    Prefix,
    /// It goes on for ever.
    #[error("the synchronisation has not ended after {MESSAGES_MAX} messages")]
    TooLong,
}

/// One message, in the payload of a frame of type [`crate::frame::FrameType::Sync`].
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    /// Whether the turn is the other side's now.
    ends_turn: bool,
    /// What subtrees are here.
    compare: Vec<(Subtree, Fingerprint)>,
    /// What is in subtrees here, to the last record.
    lists: Vec<(Subtree, Vec<Listed>)>,
    /// Keys whose records are wanted.
    want: Vec<KeyHash>,
    /// Records, with their ages in milliseconds.
    records: Vec<(u64, Blob<Bytes>)>,
}

/// One record in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    key: KeyHash,
    version: Version,
    /// The first half of the record's hash: enough to tell two records in one place apart, and which is smaller.
    hash: [u8; 16],
}

impl Listed {
    /// At most so many bytes on the wire.
    const BYTES_MAX: usize = 16 + 9 + 9 + 16;
}

fn half(hash: RecordHash) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash.0[..16]);
    out
}

/// What one message brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Records that have changed the registry.
    pub news: Vec<Signed>,
    /// Records that were not taken: no good, or over a limit.
    pub refused: usize,
    /// Records that were not even looked at, since too many before them were of no use: see [`Session::be_patient`].
    pub passed_over: usize,
}

/// What a session has moved so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Messages that were sent.
    pub messages_sent: usize,
    /// Bytes in them.
    pub bytes_sent: usize,
    /// Records among those.
    pub records_sent: usize,
    /// Messages that came in.
    pub messages_received: usize,
}

/// One side of one synchronisation.
#[derive(Debug, Clone)]
pub struct Session {
    state: State,
    /// Whether anything was said in this side's last turn.
    spoke: bool,
    /// Whether anything was said in the peer's last turn, or in this one so far.
    peer_spoke: bool,
    sent_in_turn: usize,
    /// Whether the whole tree is still to be compared: the first thing that is said.
    begins: bool,
    /// Subtrees that differ and whose parts are to be compared.
    divide: BTreeSet<Prefix>,
    /// Subtrees that differ and are small.
    lists: BTreeSet<Prefix>,
    want: BTreeSet<KeyHash>,
    send: BTreeSet<KeyHash>,
    /// How many more records are looked at that turn out to be of no use.
    patience: usize,
    traffic: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    MyTurn,
    PeersTurn,
    Finished,
}

impl Session {
    /// The side that begins.
    pub fn initiate() -> Self {
        let mut session = Self::respond();
        session.state = State::MyTurn;
        session.begins = true;
        session
    }

    /// The side that answers.
    pub fn respond() -> Self {
        Self {
            state: State::PeersTurn,
            spoke: true,
            peer_spoke: false,
            sent_in_turn: 0,
            begins: false,
            divide: BTreeSet::new(),
            lists: BTreeSet::new(),
            want: BTreeSet::new(),
            send: BTreeSet::new(),
            patience: usize::MAX,
            traffic: Traffic::default(),
        }
    }

    /// From now on so many records of the peer's are looked at that turn out to be of no use (refused, or known here), and no record
    /// after them: a signature takes long to verify, and a peer may send others without end. Without this call there is no such bound.
    pub fn be_patient(&mut self, useless: usize) {
        self.patience = useless;
    }

    /// How many are left of those.
    pub fn patience(&self) -> usize {
        self.patience
    }

    /// Whether both sides have said all that they had to say.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// What has been moved.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The next message to send, while it is this side's turn.
    pub fn poll_transmit(&mut self, now: Time, registry: &Registry) -> Option<Vec<u8>> {
        if self.state != State::MyTurn {
            return None;
        }
        let mut message = self.fill(now, registry);
        self.sent_in_turn += 1;
        let empty = self.has_nothing();
        if empty || self.sent_in_turn == MESSAGES_PER_TURN {
            self.spoke = self.sent_in_turn > 1 || message != Message::default();
            message.ends_turn = true;
            // Two turns of nothing, one after the other, and both know that they are done.
            self.state = if self.spoke || self.peer_spoke { State::PeersTurn } else { State::Finished };
            self.sent_in_turn = 0;
            self.peer_spoke = false;
        }
        let bytes = wire::encode(&message);
        self.traffic.messages_sent += 1;
        self.traffic.bytes_sent += bytes.len();
        self.traffic.records_sent += message.records.len();
        Some(bytes)
    }

    /// Takes a message of the peer, with all records in it that are good.
    pub fn handle(&mut self, now: Time, registry: &mut Registry, bytes: &[u8]) -> Result<Received, SyncError> {
        self.handle_judged(now, registry, bytes, |_, _| true)
    }

    /// Takes a message of the peer, and of the records in it those that `accept` takes too: it sees the registry as it is by
    /// then.
    pub fn handle_judged(
        &mut self,
        now: Time,
        registry: &mut Registry,
        bytes: &[u8],
        mut accept: impl FnMut(&Registry, &Record) -> bool,
    ) -> Result<Received, SyncError> {
        if self.state != State::PeersTurn {
            return Err(SyncError::OutOfTurn);
        }
        self.traffic.messages_received += 1;
        if self.traffic.messages_received > MESSAGES_MAX {
            return Err(SyncError::TooLong);
        }
        // What a newer version appends to a message is not for this one.
        let (message, _): (Message, _) = wire::decode_prefix(bytes, registry.limits().sync_message_bytes_max)?;
        self.peer_spoke |= message != Message { ends_turn: message.ends_turn, ..Message::default() };
        let mut received = Received::default();
        for (age_ms, Blob(bytes)) in message.records {
            if registry.had_no_room(now, &bytes) {
                received.refused += 1;
                continue;
            }
            if self.patience == 0 {
                received.passed_over += 1;
                continue;
            }
            match take(now, registry, Duration::from_millis(age_ms), bytes, &mut accept) {
                Some((signed, outcome)) if outcome.is_news() => {
                    received.news.push(signed);
                    continue;
                }
                Some(_) => {}
                None => received.refused += 1,
            }
            self.patience = self.patience.saturating_sub(1);
        }
        for (subtree, fingerprint) in &message.compare {
            self.compare(registry, subtree.prefix().ok_or(SyncError::Prefix)?, *fingerprint);
        }
        for (subtree, listed) in &message.lists {
            self.difference(registry, subtree.prefix().ok_or(SyncError::Prefix)?, listed);
        }
        self.send.extend(message.want.into_iter().filter(|key| registry.index().leaf(key).is_some()));
        if message.ends_turn {
            let done = !self.spoke && !self.peer_spoke && self.has_nothing();
            self.state = if done { State::Finished } else { State::MyTurn };
        }
        Ok(received)
    }

    /// Whether there is nothing to say.
    fn has_nothing(&self) -> bool {
        !self.begins && self.divide.is_empty() && self.lists.is_empty() && self.want.is_empty() && self.send.is_empty()
    }

    /// The peer has `theirs` in a subtree.
    fn compare(&mut self, registry: &Registry, prefix: Prefix, theirs: Fingerprint) {
        let index = registry.index();
        if index.fingerprint(prefix) == theirs {
            return;
        }
        if theirs == Fingerprint([0; 16]) {
            // It has nothing there, so it lacks whatever is here.
            self.send.extend(index.range(prefix).map(|(key, _)| *key));
        } else {
            self.divide(registry, prefix);
        }
    }

    /// A subtree differs: list it if it is small here, else compare its parts.
    fn divide(&mut self, registry: &Registry, prefix: Prefix) {
        let small = registry.index().range(prefix).take(LIST_MAX + 1).count() <= LIST_MAX;
        if small || prefix.digits() == KeyHash::DIGITS {
            self.lists.insert(prefix);
        } else {
            self.divide.insert(prefix);
        }
    }

    /// The peer has told all that it has in a subtree.
    fn difference(&mut self, registry: &Registry, prefix: Prefix, listed: &[Listed]) {
        let index = registry.index();
        let theirs: BTreeMap<&KeyHash, &Listed> = listed.iter().map(|one| (&one.key, one)).collect();
        for (key, leaf) in index.range(prefix) {
            let here = (leaf.version(), Reverse(half(leaf.hash())));
            let newer_here = theirs.get(key).is_none_or(|theirs| here > (theirs.version, Reverse(theirs.hash)));
            if newer_here {
                self.send.insert(*key);
            }
        }
        for one in listed {
            let there = (one.version, Reverse(one.hash));
            let newer_there =
                index.leaf(&one.key).is_none_or(|leaf| there > (leaf.version(), Reverse(half(leaf.hash()))));
            if newer_there {
                self.want.insert(one.key);
            }
        }
    }

    /// As much as fits into one message.
    fn fill(&mut self, now: Time, registry: &Registry) -> Message {
        let mut message = Message::default();
        let index = registry.index();
        let mut room = registry.limits().sync_message_bytes_max.saturating_sub(MESSAGE_OVERHEAD_BYTES);
        let mut takes = |bytes: usize| {
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        };
        if std::mem::take(&mut self.begins) && takes(Subtree::BYTES_MAX + 16) {
            message.compare.push((Subtree::of(Prefix::ROOT), index.fingerprint(Prefix::ROOT)));
        }
        while !self.divide.is_empty() && takes(16 * (Subtree::BYTES_MAX + 16)) {
            let skipped = usize::from(mutation::is_active(Mutation::DigestSkipsBucket));
            let parts = self.divide.pop_first().into_iter().flat_map(|prefix| prefix.children().skip(skipped));
            message.compare.extend(parts.map(|part| (Subtree::of(part), index.fingerprint(part))));
        }
        while !self.lists.is_empty() && takes(Subtree::BYTES_MAX + 3 + LIST_MAX * Listed::BYTES_MAX) {
            let Some(prefix) = self.lists.pop_first() else { break };
            let listed: Vec<Listed> = index
                .range(prefix)
                .take(LIST_MAX + 1)
                .map(|(key, leaf)| Listed { key: *key, version: leaf.version(), hash: half(leaf.hash()) })
                .collect();
            if listed.len() > LIST_MAX {
                // It has grown since.
                self.divide.insert(prefix);
            } else {
                message.lists.push((Subtree::of(prefix), listed));
            }
        }
        while !self.want.is_empty() && takes(16) {
            message.want.extend(self.want.pop_first());
        }
        while let Some(key) = self.send.first() {
            if let Some((signed, age)) = registry.by_hash(now, key) {
                // An age takes up to nine bytes, a length three.
                if !takes(signed.bytes().len() + 12) {
                    break;
                }
                let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                message.records.push((age_ms, Blob(signed.bytes().clone())));
            }
            self.send.pop_first();
        }
        message
    }
}

/// Takes one record of the peer, if it is good and there is room.
fn take(
    now: Time,
    registry: &mut Registry,
    age: Duration,
    bytes: Bytes,
    accept: &mut impl FnMut(&Registry, &Record) -> bool,
) -> Option<(Signed, Outcome)> {
    let signed = registry.open(bytes).ok()?;
    if !accept(registry, signed.record()) {
        return None;
    }
    match registry.insert(now, signed.clone(), Source::Passed(age)) {
        Ok(outcome) => Some((signed, outcome)),
        Err(_) => {
            registry.note_no_room(now, &signed);
            None
        }
    }
}

#[cfg(test)]
mod tests;
