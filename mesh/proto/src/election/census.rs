//! What an entry tells nodes that may be elected: how many coordinators there are, how many there should be, and how many of those
//! who would be one are better suited. Each decides for itself; several entries may say different things for a moment, and whoever is one
//! too many steps down again.

use std::cmp::Reverse;
use std::time::Duration;

use crate::frame::Census;
use crate::id::NodeId;

use super::{WANTED, weight};

/// An entry that has just started does not know who is there: it says nothing for so long.
pub const CENSUS_SILENT_FOR: Duration = Duration::from_secs(15);
/// How often it says it from then on.
pub const CENSUS_INTERVAL: Duration = Duration::from_secs(5);
/// Tunnels that have been up for longer are all as steady.
const STEADY_AFTER: Duration = Duration::from_secs(60 * 60);
/// Nodes that are nearer are all as near: a busy machine takes as long to answer now and then, and whose rank changes with each census
/// never is needed for long enough.
const NEAR_WITHIN: Duration = Duration::from_millis(50);

/// A node at an entry that would be a coordinator if there were too few, and is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// How long its tunnel has been up.
    pub up_for: Duration,
    /// Of its tunnel.
    pub rtt: Duration,
}

/// What each candidate is told by an entry with so many nodes, which knows of so many coordinators anywhere.
pub fn census(nodes: usize, coordinators: usize, candidates: Vec<Candidate>) -> impl Iterator<Item = (NodeId, Census)> {
    let (coordinators, wanted) = (count(coordinators), count(WANTED.min(nodes)));
    let ranked = in_order(candidates).into_iter().enumerate();
    ranked.map(move |(rank, candidate)| (candidate.node, Census { coordinators, wanted, rank: count(rank) }))
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// The steadiest first, then the best connected; ties by rendezvous hash. Both are compared in doublings: a minute more among
/// many is no reason, and neither is a millisecond.
fn in_order(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let doublings = |duration: Duration| duration.as_millis().checked_ilog2();
    candidates.sort_by_cached_key(|candidate| {
        let up_for = doublings(candidate.up_for.min(STEADY_AFTER));
        (Reverse(up_for), doublings(candidate.rtt.max(NEAR_WITHIN)), weight(&candidate.node))
    });
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(n: u8, up_for_s: u64, rtt_ms: u64) -> Candidate {
        let (up_for, rtt) = (Duration::from_secs(up_for_s), Duration::from_millis(rtt_ms));
        Candidate { node: NodeId([n; 32]), up_for, rtt }
    }

    #[test]
    fn the_steadiest_is_first_then_the_best_connected_then_everybody_sees_the_same() {
        let order = |candidates: &[Candidate]| {
            in_order(candidates.to_vec()).iter().map(|candidate| candidate.node.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(order(&[candidate(1, 10, 1), candidate(2, 3000, 100)]), [2, 1]);
        assert_eq!(order(&[candidate(1, 5000, 100), candidate(2, 90_000, 10)]), [2, 1]);
        let (one, two) = (candidate(1, 100, 20), candidate(2, 101, 21));
        assert_eq!(order(&[one, two]), order(&[two, one]), "as good as each other");
    }

    #[test]
    fn the_rank_of_who_is_near_does_not_change_with_what_its_machine_does() {
        let order = |rtts_ms: [u64; 4]| {
            let candidates = (1..).zip(rtts_ms).map(|(n, rtt_ms)| candidate(n, 100, rtt_ms)).collect();
            in_order(candidates).iter().map(|candidate| candidate.node).collect::<Vec<_>>()
        };
        for busy in [[40, 0, 1, 3], [0, 40, 1, 3], [9, 7, 40, 30], [1, 1, 1, 40]] {
            assert_eq!(order(busy), order([1, 1, 1, 1]), "{busy:?} ms");
        }
    }

    #[test]
    fn each_is_told_its_rank_and_a_small_federation_wants_no_more_than_it_has() {
        let told = |nodes, candidates: &[Candidate]| {
            let told =
                census(nodes, 1, candidates.to_vec()).map(|(node, census)| (node.0[0], census.wanted, census.rank));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(9, &[candidate(1, 10, 1), candidate(2, 3000, 1)]), [(2, 3, 0), (1, 3, 1)]);
        assert_eq!(told(2, &[candidate(1, 10, 1)]), [(1, 2, 0)]);
        assert_eq!(told(0, &[]), []);
    }
}
