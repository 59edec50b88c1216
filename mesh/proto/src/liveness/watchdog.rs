//! The side that accepted: it watches a tunnel while requests run on it. From a node that is alive something comes all the time,
//! if only acknowledgements.

use std::time::Duration;

use super::{SUSPECT_AFTER, WATCHDOG_INTERVAL};
use crate::clock::Time;

/// What a look has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Something has come since the last one: the tunnel is not suspect.
    Heard,
    /// Nothing has. A connection at rest is silent by right: ask first, with a ping of this number.
    Ask(u64),
    /// It was asked, and there is still time.
    Wait,
    /// It was asked, and said nothing for too long: the tunnel is suspect until something comes.
    Suspect,
}

/// Watches one tunnel.
#[derive(Debug, Clone, Default)]
pub struct Watchdog {
    /// The counter at the last look, and since when it has stood still.
    received: u64,
    still_since: Option<Time>,
    look_at: Option<Time>,
    pings: u64,
}

impl Watchdog {
    /// The tunnel is to be watched from now on: a request has begun on it, or it is suspect. `received` counts the packets that
    /// have come. Nothing new if it is watched already. Returns when to look first.
    pub fn watch(&mut self, now: Time, received: u64) -> Time {
        *self.look_at.get_or_insert_with(|| {
            self.received = received;
            self.still_since = None;
            now + WATCHDOG_INTERVAL
        })
    }

    /// When to [look](Self::look). `None` while the tunnel is not watched.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.look_at
    }

    /// Looks. `is_watched`: requests run, or the tunnel is suspect; if neither, this was the last look.
    pub fn look(&mut self, now: Time, received: u64, rtt: Duration, is_watched: bool) -> Look {
        self.look_at = is_watched.then(|| now + WATCHDOG_INTERVAL);
        if received != self.received {
            self.received = received;
            self.still_since = None;
            return Look::Heard;
        }
        // It counts from the question.
        let Some(since) = self.still_since else {
            self.still_since = Some(now);
            self.pings += 1;
            return Look::Ask(self.pings);
        };
        let patience = SUSPECT_AFTER.saturating_sub(WATCHDOG_INTERVAL);
        if now.since(since) >= patience.max(rtt * 4) { Look::Suspect } else { Look::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    fn at(millis: u64) -> Time {
        Time::from_origin(Duration::from_millis(millis))
    }

    /// Looks until the tunnel is suspect; how many milliseconds after `from`.
    fn suspect_after(dog: &mut Watchdog, from: u64, received: u64, rtt: Duration) -> Duration {
        loop {
            let now = dog.poll_timeout().expect("it is watched");
            if dog.look(now, received, rtt, true) == Look::Suspect {
                return now.since(at(from));
            }
        }
    }

    #[test]
    fn a_busy_tunnel_that_falls_silent_is_suspect_within_a_second_and_one_far_away_later() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.watch(at(0), 7), at(250));
        assert_eq!(suspect_after(&mut dog, 0, 7, RTT), SUSPECT_AFTER);
        let mut dog = Watchdog::default();
        dog.watch(at(0), 7);
        let far = Duration::from_millis(600);
        assert!(suspect_after(&mut dog, 0, 7, far) >= far * 4);
    }

    #[test]
    fn it_is_asked_before_it_is_suspected_and_anything_that_comes_is_an_answer() {
        let mut dog = Watchdog::default();
        dog.watch(at(0), 7);
        assert_eq!(dog.look(at(250), 8, RTT, true), Look::Heard);
        assert_eq!(dog.look(at(500), 8, RTT, true), Look::Ask(1));
        assert_eq!(dog.look(at(750), 8, RTT, true), Look::Wait);
        assert_eq!(dog.look(at(1000), 8, RTT, true), Look::Suspect);
        assert_eq!(dog.look(at(1250), 9, RTT, true), Look::Heard);
        assert_eq!(dog.look(at(1500), 9, RTT, true), Look::Ask(2));
    }

    #[test]
    fn what_is_at_rest_is_left_alone_and_counts_afresh_when_it_is_busy_again() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.poll_timeout(), None);
        dog.watch(at(0), 7);
        assert_eq!(dog.watch(at(100), 7), at(250), "it is watched already");
        assert_eq!(dog.look(at(250), 7, RTT, false), Look::Ask(1));
        assert_eq!(dog.poll_timeout(), None);
        dog.watch(at(60_000), 7);
        assert_eq!(dog.look(at(60_250), 7, RTT, true), Look::Ask(2), "the silence in between was its right");
    }
}
