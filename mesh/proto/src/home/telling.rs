//! When an entry tells its nodes of the coordinators: as soon as there are any, and later changes gathered for a while.
//!
//! Each telling goes to every node. A federation that starts has a change a second for every coordinator, and what is told are
//! hints, of which one that is a few seconds old is as good.

use std::time::Duration;

use crate::clock::Time;
use crate::id::NodeId;

/// How long changes are gathered.
pub const GATHER_FOR: Duration = Duration::from_secs(5);

/// What was told last, and when.
#[derive(Debug, Clone, Default)]
pub struct Telling {
    told: Vec<NodeId>,
    at: Option<Time>,
}

/// Whether to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Everybody knows.
    No,
    /// Now; it counts as done.
    Now,
    /// Then, if it is still so.
    At(Time),
}

impl Telling {
    /// These coordinators are here now.
    pub fn look(&mut self, now: Time, here: &[NodeId]) -> Due {
        if self.told == here {
            return Due::No;
        }
        // Whoever knows of nobody needs to hear of the first at once.
        let due_at = self.at.filter(|_| !self.told.is_empty()).map(|at| at + GATHER_FOR);
        match due_at {
            Some(at) if at > now => Due::At(at),
            _ => {
                self.told = here.to_vec();
                self.at = Some(now);
                Due::Now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_a_crowd_in_a_few_tellings() {
        let mut telling = Telling::default();
        let (mut here, mut told) = (Vec::new(), 0);
        assert_eq!(telling.look(Time::ORIGIN, &here), Due::No);
        for tenth in 0..600_u32 {
            let now = Time::from_origin(Duration::from_millis(100) * tenth);
            if tenth < 300 && tenth % 6 == 0 {
                here.push(NodeId([(tenth / 6) as u8; 32]));
            }
            let due = telling.look(now, &here);
            assert!(tenth != 0 || due == Due::Now);
            told += u32::from(due == Due::Now);
        }
        assert!((6..=8).contains(&told), "fifty came in half a minute, and that was told {told} times");
        assert_eq!(telling.look(Time::from_origin(Duration::from_secs(100)), &here), Due::No);
    }
}
