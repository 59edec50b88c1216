//! When a node that may be elected becomes a coordinator, and when it steps down, and what entries say for it: pure.
//!
//! *Up*: an entry that has been up for a while says again and again that there are too few, and that few others are better
//! suited ([`Census`]). *Down*: this node's own registry shows more coordinators than are wanted, and of those that were elected
//! it is among the last in an order that all see alike. Both take their time, which is jittered, so that nobody moves for a
//! restart and not all move at once. Coordinators by their operator's word never step down.

use std::time::Duration;

use crate::clock::Time;
use crate::frame::Census;
use crate::id::NodeId;
use crate::record::Candidacy;
use crate::registry::{Presence, Registry};
use sha2::{Digest, Sha256};

mod census;

pub use census::{CENSUS_INTERVAL, CENSUS_SILENT_FOR, Candidate, census};

/// How many coordinators a federation aims at: any two may go, and there is one.
pub const WANTED: usize = 3;
/// How often a node that may be elected looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For so long it must have been said that there are too few, and a little longer by chance.
const PROMOTE_AFTER: Duration = Duration::from_secs(15);
/// For so long there must have been too many, and a little longer by chance.
const STEP_DOWN_AFTER: Duration = Duration::from_secs(30);
/// The most that chance adds.
const JITTER_MAX: Duration = Duration::from_secs(10);
/// A census that is older than this says nothing: entries repeat it every few seconds.
const CENSUS_MAX_AGE: Duration = Duration::from_secs(12);

/// What a node should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Stay what it is.
    Stay,
    /// Become a coordinator as well.
    Promote,
    /// Be one no longer.
    StepDown,
}

/// Since when there is a reason to move, on this node's clock.
#[derive(Debug, Default)]
pub struct Election {
    too_few: Option<Time>,
    too_many: Option<Time>,
}

impl Election {
    /// A node that is no coordinator looks at what an entry said last, and when that was.
    pub fn look_up(&mut self, now: Time, census: Option<(Time, Census)>, jitter: f32) -> Move {
        self.too_many = None;
        let needed = census
            .filter(|(at, _)| now.since(*at) <= CENSUS_MAX_AGE)
            .is_some_and(|(_, census)| census.coordinators.saturating_add(census.rank) < census.wanted);
        act(&mut self.too_few, needed, now, PROMOTE_AFTER + JITTER_MAX.mul_f32(jitter), Move::Promote)
    }

    /// An elected coordinator looks at its registry.
    pub fn look_down(&mut self, now: Time, me: NodeId, registry: &Registry, jitter: f32) -> Move {
        self.too_few = None;
        let surplus = is_surplus(me, registry);
        act(&mut self.too_many, surplus, now, STEP_DOWN_AFTER + JITTER_MAX.mul_f32(jitter), Move::StepDown)
    }
}

/// The reason must have lasted for this long.
fn act(since: &mut Option<Time>, reason: bool, now: Time, after: Duration, action: Move) -> Move {
    if !reason {
        *since = None;
        return Move::Stay;
    }
    let began = *since.get_or_insert(now);
    if now.since(began) < after {
        return Move::Stay;
    }
    *since = None;
    action
}

/// Whether this elected coordinator is one too many. All see the same order: the rendezvous hash of each id.
fn is_surplus(me: NodeId, registry: &Registry) -> bool {
    let here: Vec<_> = registry.coordinators().filter(|view| view.presence == Presence::Here).collect();
    let fixed = here.iter().filter(|view| view.node.candidacy == Candidacy::Fixed).count();
    let mut elected: Vec<NodeId> =
        here.iter().filter(|view| view.node.candidacy == Candidacy::Elective).map(|view| view.record.writer).collect();
    elected.sort_unstable_by_key(weight);
    elected.iter().skip(WANTED.saturating_sub(fixed)).any(|node| *node == me)
}

fn weight(node: &NodeId) -> [u8; 32] {
    Sha256::new().chain_update(b"hedgerow-election-v1\0").chain_update(node.0).finalize().into()
}

#[cfg(test)]
mod tests {
    use crate::id::FederationId;
    use crate::key::SecretKey;
    use crate::limits::Limits;
    use crate::record::{Body, NodeRecord, Roles, Signed, Version};
    use crate::registry::Source;

    use super::*;

    const FEDERATION: FederationId = FederationId([1; 32]);

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(1000 + seconds))
    }

    fn census(coordinators: u16, rank: u16) -> Census {
        Census { coordinators, wanted: 3, rank }
    }

    #[test]
    fn whoever_is_needed_for_long_enough_becomes_one() {
        let mut election = Election::default();
        for second in 0..15 {
            assert_eq!(election.look_up(at(second), Some((at(second), census(2, 0))), 0.0), Move::Stay);
        }
        assert_eq!(election.look_up(at(15), Some((at(15), census(2, 0))), 0.0), Move::Promote);
    }

    #[test]
    fn a_moment_with_enough_begins_the_wait_anew_and_so_does_an_entry_that_falls_silent() {
        let mut election = Election::default();
        for second in 0..60 {
            let enough = if second % 10 == 9 { 3 } else { 1 };
            assert_eq!(election.look_up(at(second), Some((at(second), census(enough, 0))), 0.0), Move::Stay);
        }
        let said = Some((at(60), census(1, 0)));
        assert!((60..200).all(|second| election.look_up(at(second), said, 0.0) == Move::Stay));
    }

    #[test]
    fn others_who_are_better_suited_go_first() {
        let mut election = Election::default();
        let moves = |election: &mut Election, rank| {
            (0..60)
                .map(|second| election.look_up(at(second), Some((at(second), census(1, rank))), 0.5))
                .collect::<Vec<_>>()
        };
        assert!(moves(&mut election, 1).contains(&Move::Promote), "two are wanted, and one is better");
        assert!(!moves(&mut Election::default(), 2).contains(&Move::Promote));
    }

    fn registry(fixed: u8, elected: u8) -> Registry {
        let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
        for n in 0..fixed + elected {
            let key = SecretKey::from_seed([n; 32]);
            let body = Body::Node(NodeRecord {
                roles: Roles::Both,
                location: String::new(),
                version: "1".into(),
                services: vec![],
                multiaddrs: vec![],
                home: None,
                candidacy: if n < fixed { Candidacy::Fixed } else { Candidacy::Elective },
                hardware: Default::default(),
            });
            let signed = Signed::sign(&key, FEDERATION, 1, Version { epoch: 1, seq: 1 }, &body).unwrap();
            registry.insert(at(0), signed, Source::Direct(None)).unwrap();
            registry.meet(at(0), key.id());
        }
        registry
    }

    #[test]
    fn exactly_the_surplus_steps_down_and_never_one_by_its_operators_word() {
        for (fixed, elected) in [(0, 1), (0, 3), (0, 5), (1, 4), (3, 2), (5, 1), (2, 1)] {
            let registry = registry(fixed, elected);
            let me = |n: u8| SecretKey::from_seed([n; 32]).id();
            let surplus = (fixed..fixed + elected).filter(|n| is_surplus(me(*n), &registry)).count();
            let wanted = usize::from(elected).min(WANTED.saturating_sub(fixed.into()));
            assert_eq!(surplus, usize::from(elected) - wanted, "{fixed} fixed, {elected} elected");
            assert!((0..fixed).all(|n| !is_surplus(me(n), &registry)));
            let mut election = Election::default();
            let last = (fixed..fixed + elected).find(|n| is_surplus(me(*n), &registry));
            if let Some(last) = last {
                assert_eq!(election.look_down(at(0), me(last), &registry, 0.0), Move::Stay);
                assert_eq!(election.look_down(at(30), me(last), &registry, 0.0), Move::StepDown);
            }
        }
    }
}
