//! Whom to believe what: which records are taken from which peer, how many, and when a peer is cut off.
//!
//! A record proves who wrote it, and a key is free, so a signature alone proves nothing about a flood. What comes over the
//! mesh is therefore tied to a coordinator that is there:
//!
//! - *Pushed and gossiped* records are the publisher's own, or those of workers that name it as their home. Of a publisher that
//!   is not known, its own [`NodeRecord`](crate::record::NodeRecord) as a coordinator and its lease are taken, so many
//!   a second: that is how one comes in.
//! - *Synchronised* records may be anybody's, as long as the peer is a coordinator itself; the registry's quotas bound them.
//!
//! What is not taken is not forwarded. A peer that goes on sending such things is blocked for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Time;
use crate::id::NodeId;
use crate::record::{Body, Record};
use crate::registry::{Presence, Registry};

use super::bucket::{Bucket, Rate};

/// Records that one publisher may hurry along: a crowd of workers comes to one coordinator, with two records each. What is
/// over it comes by synchronisation.
const PUBLISHED: Rate = Rate { burst: 1024.0, per_second: 128.0 };
/// Unknown coordinators that may introduce themselves by gossip, all together.
const INTRODUCED: Rate = Rate { burst: 128.0, per_second: 4.0 };
/// Messages of one peer that were not worth having: replays, things of others. Honest peers send few, since they forward
/// only what is news to them; what they know later than others is not their fault.
const USELESS: Rate = Rate { burst: 512.0, per_second: 16.0 };
/// Synchronised records of one peer that turned out to be of no use after their signature was verified: refused, or known. In step, peers send
/// few; after a long parting, two neighbours may bring the same ones at once. Beyond it nothing of what the peer sends is looked at until
/// there is patience again: so a flood costs a few per cent of a processor, whatever comes.
const UNWANTED: Rate = Rate { burst: 4096.0, per_second: 256.0 };
/// Messages that no honest program sends.
const WRONG: Rate = Rate { burst: 8.0, per_second: 0.05 };
/// How long a peer is blocked.
const BLOCKED_FOR: Duration = Duration::from_secs(10 * 60);
/// Peers that are remembered as blocked; over it the one that has been longest is let go.
const BLOCKED_MAX: usize = 4096;
/// Peers and publishers whose faults are counted. Publishers can be made up, but what is not wrong is forgotten in moments, so that
/// a flood of signatures does not reach it; whoever comes on top is not counted until there is room.
const FAULTS_MAX: usize = 16 * 1024;

/// Why a record is not taken from a peer, though it may be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    /// It is neither the publisher's own nor that of a worker of its.
    #[error("not for this publisher to say")]
    NotItsOwn,
    /// Nobody knows the publisher as a coordinator.
    #[error("the publisher is not a coordinator that is here")]
    NoStanding,
    /// More than is taken of one publisher, or of all who are new.
    #[error("too many records of one publisher in a short time")]
    TooMany,
}

/// What a peer did that it should not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Something that was not worth having.
    Useless,
    /// Something that no honest program sends.
    Wrong,
}

/// Whether a peer is a coordinator that is here, as far as this replica knows.
fn has_standing(registry: &Registry, peer: &NodeId) -> bool {
    let coordinates = registry.node(peer).and_then(Record::node).is_some_and(|node| node.roles.coordinates());
    coordinates && registry.presence(peer) != Presence::Absent
}

/// How a coordinator comes in: it says what it is, and that it is here.
fn introduces(peer: &NodeId, record: &Record) -> bool {
    record.writer == *peer
        && match &record.body {
            Body::Node(node) => node.roles.coordinates(),
            Body::Lease(_) => true,
            _ => false,
        }
}

/// Whether a peer may speak for the writer: it is the writer, or the writer's home.
fn vouches(registry: &Registry, peer: &NodeId, record: &Record) -> bool {
    let is_home =
        |record: &Record| record.node().and_then(|node| node.home).is_some_and(|home| home.coordinator == *peer);
    record.writer == *peer
        || match record.body {
            Body::Node(_) => is_home(record),
            Body::Leave => registry.node(&record.writer).is_some_and(is_home),
            _ => false,
        }
}

/// Whether a record may come in by synchronisation with this peer.
pub(super) fn may_synchronise(registry: &Registry, peer: &NodeId, record: &Record) -> bool {
    introduces(peer, record) || has_standing(registry, peer)
}

/// Counts what peers do.
#[derive(Debug, Default)]
pub(super) struct Judge {
    published: BTreeMap<NodeId, Bucket>,
    introduced: Option<Bucket>,
    faults: BTreeMap<NodeId, (Bucket, Bucket)>,
    /// Of those alone that have sent something of the kind of late.
    unwanted: BTreeMap<NodeId, Bucket>,
    blocked: Vec<(Time, NodeId)>,
}

impl Judge {
    /// Whether a record may come in that `publisher` has published.
    pub(super) fn published(
        &mut self,
        now: Time,
        registry: &Registry,
        publisher: &NodeId,
        record: &Record,
    ) -> Result<(), Objection> {
        if !vouches(registry, publisher, record) {
            return Err(Objection::NotItsOwn);
        }
        let there = if has_standing(registry, publisher) {
            self.published.entry(*publisher).or_insert_with(|| Bucket::full(now, PUBLISHED)).take(now, PUBLISHED)
        } else if introduces(publisher, record) {
            self.introduced.get_or_insert_with(|| Bucket::full(now, INTRODUCED)).take(now, INTRODUCED)
        } else {
            return Err(Objection::NoStanding);
        };
        if there { Ok(()) } else { Err(Objection::TooMany) }
    }

    /// Notes a fault of a connected peer. True: it is to be blocked, and was not yet.
    pub(super) fn fault(&mut self, now: Time, peer: NodeId, fault: Fault) -> bool {
        if self.faults.len() >= FAULTS_MAX && !self.faults.contains_key(&peer) {
            return false;
        }
        let new = || (Bucket::full(now, USELESS), Bucket::full(now, WRONG));
        let (useless, wrong) = self.faults.entry(peer).or_insert_with(new);
        let patience_left = match fault {
            Fault::Useless => useless.take(now, USELESS),
            Fault::Wrong => wrong.take(now, WRONG),
        };
        if patience_left || self.blocked.iter().any(|(_, blocked)| *blocked == peer) {
            return false;
        }
        self.blocked.push((now + BLOCKED_FOR, peer));
        true
    }

    /// How many synchronised records of a peer are looked at that turn out to be of no use.
    pub(super) fn patience(&mut self, now: Time, peer: &NodeId) -> usize {
        let bucket = self.unwanted.get_mut(peer);
        bucket.map_or(UNWANTED.burst as usize, |bucket| bucket.left(now, UNWANTED))
    }

    /// So many were of no use. That is remembered when the peer goes, too: it may come again at once.
    pub(super) fn try_patience(&mut self, now: Time, peer: NodeId, useless: usize) {
        if useless > 0 && (self.unwanted.len() < FAULTS_MAX || self.unwanted.contains_key(&peer)) {
            self.unwanted.entry(peer).or_insert_with(|| Bucket::full(now, UNWANTED)).take_many(useless);
        }
    }

    /// A peer has gone: what it did is forgotten, unless it is blocked.
    pub(super) fn gone(&mut self, peer: &NodeId) {
        self.faults.remove(peer);
    }

    /// The peers that are not to be blocked any longer. What has been made good for by waiting is forgotten: publishers of gossip
    /// need not be connected, and do not go.
    pub(super) fn pardoned(&mut self, now: Time) -> Vec<NodeId> {
        self.faults.retain(|_, (useless, wrong)| !(useless.is_full(now, USELESS) && wrong.is_full(now, WRONG)));
        self.unwanted.retain(|_, bucket| !bucket.is_full(now, UNWANTED));
        let surplus = self.blocked.len().saturating_sub(BLOCKED_MAX);
        let due = self.blocked.iter().take_while(|(until, _)| *until <= now).count().max(surplus);
        self.blocked.drain(..due).map(|(_, peer)| peer).collect()
    }

    /// Forgets publishers that are not known any more.
    pub(super) fn forget_strangers(&mut self, registry: &Registry) {
        self.published.retain(|publisher, _| registry.node(publisher).is_some());
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
