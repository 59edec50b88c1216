//! What one node says about itself: the only writer of its records, and what becomes of it if it is not the only one.
//!
//! ```text
//!   start        the epoch is raised on disk, then used                    (epoch 7, seq 0)
//!   sign         each record takes the next place                          (7, 1) (7, 2) …
//!   meet         a record of its own key with a place that is not below, or not below what it said of the same thing: a
//!                lost disk, or a second process.
//!                The epoch is raised on disk above it, then used           (12, 0); everything is signed again
//!   three jumps in a minute over the same other incarnation:               stop, the key is in use elsewhere
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Time;
use crate::id::{FederationId, NodeId};
use crate::key::SecretKey;
use crate::limits::Limits;
use crate::record::{Body, Record, RecordError, Signed, Version};

/// So many jumps over the same other incarnation …
const JUMPS_MAX: usize = 3;
/// … within this time mean that it is alive and jumps too.
const JUMPS_WITHIN: Duration = Duration::from_secs(60);

/// What a record of the node's own key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// Nothing: it is of another node, or this process said it, or it is older.
    Nothing,
    /// It stands above what this process says. Raise the epoch above this one on disk, then [`Voice::jump`], then sign
    /// everything again.
    Above {
        /// The epoch to be above.
        epoch: u64,
    },
}

/// Another process speaks with this node's key, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key of node {node} is in use elsewhere: another process speaks with it, {JUMPS_MAX} times in a minute. Stop one \
     of the two, and give it a data directory, and so a key, of its own"
)]
pub struct KeyInUse {
    /// The node.
    pub node: NodeId,
    /// The other process's incarnation.
    pub other_incarnation: u64,
}

/// The voice of one node.
#[derive(Debug, Clone)]
pub struct Voice {
    key: SecretKey,
    federation: FederationId,
    incarnation: u64,
    limits: Limits,
    last: Version,
    /// When it jumped, and over whom; the last few.
    jumps: VecDeque<(Time, u64)>,
    /// The incarnation that it is about to jump over.
    above: Option<u64>,
}

impl Voice {
    /// The voice of a process that has just started: `incarnation` is random, `epoch` was raised on disk for it.
    pub fn new(key: SecretKey, federation: FederationId, incarnation: u64, epoch: u64, limits: Limits) -> Self {
        let last = Version { epoch, seq: 0 };
        Self { key, federation, incarnation, limits, last, jumps: VecDeque::new(), above: None }
    }

    /// Whose voice it is.
    pub fn node(&self) -> NodeId {
        self.key.id()
    }

    /// The epoch in which it speaks.
    pub fn epoch(&self) -> u64 {
        self.last.epoch
    }

    /// Random for each run: tells two processes with one key apart.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Signs a record in the next place.
    pub fn sign(&mut self, body: &Body) -> Result<Signed, RecordError> {
        // The counter ends after more records than there can be; the next epoch is then as good.
        let next = match self.last.seq.checked_add(1) {
            Some(seq) => Version { seq, ..self.last },
            None => Version { epoch: self.last.epoch.saturating_add(1), seq: 0 },
        };
        let signed = Signed::sign_within(&self.key, self.federation, self.incarnation, next, body, &self.limits)?;
        self.last = next;
        Ok(signed)
    }

    /// Looks at a record that has come in from elsewhere. `contends`: it is not below what this process said of the same thing. It
    /// may be so from below the last place, but not from an earlier epoch: in each one everything is said again.
    pub fn meet(&mut self, now: Time, record: &Record, contends: bool) -> Result<Meeting, KeyInUse> {
        let another = record.writer == self.node() && record.incarnation != self.incarnation;
        let contends = contends && record.version.epoch >= self.last.epoch;
        if !another || (record.version < self.last && !contends) {
            return Ok(Meeting::Nothing);
        }
        while self.jumps.front().is_some_and(|&(at, _)| now.since(at) >= JUMPS_WITHIN) {
            self.jumps.pop_front();
        }
        let other_incarnation = record.incarnation;
        if self.jumps.iter().filter(|&&(_, other)| other == other_incarnation).count() >= JUMPS_MAX {
            return Err(KeyInUse { node: self.node(), other_incarnation });
        }
        self.above = Some(other_incarnation);
        Ok(Meeting::Above { epoch: record.version.epoch })
    }

    /// Goes on in this epoch, which has been raised on disk above the one that was met.
    pub fn jump(&mut self, now: Time, epoch: u64) {
        self.last = self.last.max(Version { epoch, seq: 0 });
        if let Some(other) = self.above.take() {
            self.jumps.push_back((now, other));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::{FEDERATION, at, key};

    fn voice(incarnation: u64, epoch: u64) -> Voice {
        Voice::new(key(1), FEDERATION, incarnation, epoch, Limits::PRODUCTION)
    }

    fn say(voice: &mut Voice) -> Record {
        let signed = voice.sign(&Body::Leave).unwrap();
        signed.record().clone()
    }

    #[test]
    fn what_a_node_says_is_in_order() {
        let mut voice = voice(1, 7);
        let said: Vec<Version> = (0..3).map(|_| say(&mut voice).version).collect();
        assert_eq!(said, [1, 2, 3].map(|seq| Version { epoch: 7, seq }));
    }

    #[test]
    fn a_node_that_lost_its_disk_jumps_above_what_it_said_before() {
        let mut before = voice(1, 40);
        let old = say(&mut before);
        let mut now = voice(2, 1);
        assert_eq!(now.meet(at(Duration::ZERO), &old, false), Ok(Meeting::Above { epoch: 40 }));
        now.jump(at(Duration::ZERO), 41);
        let new = say(&mut now);
        assert!(new.version > old.version);
        // That it meets again, many times, means nothing now.
        assert_eq!(now.meet(at(Duration::ZERO), &old, false), Ok(Meeting::Nothing));
        assert_eq!(now.meet(at(Duration::ZERO), &new, false), Ok(Meeting::Nothing));
    }

    #[test]
    fn the_same_place_with_another_incarnation_is_above() {
        let old = say(&mut voice(1, 1));
        let mut now = voice(2, 1);
        say(&mut now);
        assert_eq!(now.meet(at(Duration::ZERO), &old, false), Ok(Meeting::Above { epoch: 1 }));
    }

    #[test]
    fn what_contends_with_a_word_of_this_process_is_above_wherever_it_stands() {
        let old = say(&mut voice(1, 1));
        let mut now = voice(2, 1);
        (0..9).for_each(|_| drop(say(&mut now)));
        assert_eq!(now.meet(at(Duration::ZERO), &old, false), Ok(Meeting::Nothing));
        assert_eq!(now.meet(at(Duration::ZERO), &old, true), Ok(Meeting::Above { epoch: 1 }));
        now.jump(at(Duration::ZERO), 2);
        assert_eq!(now.meet(at(Duration::ZERO), &old, true), Ok(Meeting::Nothing), "it has been spoken above already");
    }

    #[test]
    fn records_of_others_mean_nothing() {
        let other = Voice::new(key(2), FEDERATION, 1, 99, Limits::PRODUCTION);
        let record = say(&mut other.clone());
        assert_eq!(voice(1, 1).meet(at(Duration::ZERO), &record, false), Ok(Meeting::Nothing));
    }

    #[test]
    fn two_processes_with_one_key_stop_after_three_jumps_in_a_minute() {
        let (mut one, mut two) = (voice(1, 1), voice(2, 1));
        let mut jumps = 0;
        let error = (0_u64..)
            .find_map(|second| {
                let now = at(Duration::from_secs(second));
                let record = say(&mut two);
                match one.meet(now, &record, false) {
                    Ok(Meeting::Nothing) => {}
                    Ok(Meeting::Above { epoch }) => {
                        one.jump(now, epoch + 1);
                        jumps += 1;
                    }
                    Err(error) => return Some(error),
                }
                std::mem::swap(&mut one, &mut two);
                None
            })
            .unwrap();
        assert!((2 * JUMPS_MAX - 1..=2 * JUMPS_MAX).contains(&jumps), "{jumps}");
        assert!(error.to_string().contains("in use elsewhere"), "{error}");
    }

    #[test]
    fn jumps_that_are_far_apart_are_bad_luck() {
        let (mut this, mut other) = (voice(1, 1), voice(2, 10));
        for n in 0..10 {
            let now = at(JUMPS_WITHIN * n / 2);
            let record = say(&mut other);
            assert!(matches!(this.meet(now, &record, false), Ok(Meeting::Above { .. })), "{n}");
            this.jump(now, record.version.epoch + 1);
            other.jump(now, record.version.epoch + 2);
        }
    }
}
