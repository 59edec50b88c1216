//! What this entry tells nodes that may be elected coordinators: how many there are, how many there should be, and how many of
//! those who would be one are better suited. Each decides for itself; several entries may say different things for a moment, and
//! whoever is one too many steps down again.

use std::cmp::Reverse;
use std::convert::Infallible;
use std::time::Duration;

use hedgerow_proto::frame::{Census, Control};
use hedgerow_proto::id::NodeId;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use crate::federation::Federation;

/// How many coordinators a federation aims at: any two may go, and there is one.
const WANTED: usize = 3;
/// An entry that has just started does not know who is there: it says nothing for so long.
const SILENT_FOR: Duration = Duration::from_secs(15);
/// How often it says it from then on.
const INTERVAL: Duration = Duration::from_secs(5);
/// Tunnels that have been up for longer are all as steady.
const STEADY_AFTER: Duration = Duration::from_secs(60 * 60);

/// A node here that would be a coordinator if there were too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    /// How long its tunnel has been up.
    pub(crate) up_for: Duration,
    pub(crate) rtt: Duration,
}

/// Tells it for as long as the entry lives.
pub(crate) async fn tell(federation: &Federation) -> Infallible {
    let began = Instant::now();
    loop {
        sleep(INTERVAL).await;
        if began.elapsed() >= SILENT_FOR {
            let (nodes, coordinators) = federation.counts();
            let wanted = WANTED.min(nodes);
            for (rank, candidate) in in_order(federation.candidates()).into_iter().enumerate() {
                let census = Census { coordinators: count(coordinators), wanted: count(wanted), rank: count(rank) };
                federation.tell(&candidate.node, Control::Census(census));
            }
        }
    }
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// The steadiest first, then the best connected; ties by rendezvous hash. Both are compared in doublings: a minute more among
/// many is no reason, and neither is a millisecond.
fn in_order(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let doublings = |duration: Duration| duration.as_millis().checked_ilog2();
    candidates.sort_by_key(|candidate| {
        let up_for = doublings(candidate.up_for.min(STEADY_AFTER));
        (Reverse(up_for), doublings(candidate.rtt), weight(&candidate.node))
    });
    candidates
}

fn weight(node: &NodeId) -> [u8; 32] {
    Sha256::new().chain_update(b"hedgerow-election-v1\0").chain_update(node.0).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steadiest_is_first_then_the_best_connected_then_everybody_sees_the_same() {
        let candidate = |n: u8, up_for_s: u64, rtt_ms: u64| Candidate {
            node: NodeId([n; 32]),
            up_for: Duration::from_secs(up_for_s),
            rtt: Duration::from_millis(rtt_ms),
        };
        let order = |candidates: &[Candidate]| {
            in_order(candidates.to_vec()).iter().map(|candidate| candidate.node.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(order(&[candidate(1, 10, 1), candidate(2, 3000, 100)]), [2, 1]);
        assert_eq!(order(&[candidate(1, 5000, 100), candidate(2, 90_000, 10)]), [2, 1]);
        let (one, two) = (candidate(1, 100, 20), candidate(2, 101, 21));
        assert_eq!(order(&[one, two]), order(&[two, one]), "as good as each other");
    }
}
