//! The side that dialled: it pings all the time, and gives the connection up when nothing is answered.

use std::time::Duration;

use crate::clock::Time;

/// The least pause between two pings, whatever the other end asks for.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Send a ping of this number.
    Ping(u64),
    /// Give the connection up: it is up and passes nothing.
    GiveUp,
}

/// The pings of one connection.
#[derive(Debug, Clone)]
pub struct Pings {
    interval: Duration,
    timeout: Duration,
    sent: u64,
    /// When the first ping was sent that nothing has come back for.
    unanswered: Option<Time>,
    due: Time,
}

impl Pings {
    /// The first one is due at once, and then one each `interval`. Given up is what has answered none for `timeout`.
    pub fn new(now: Time, interval: Duration, timeout: Duration) -> Self {
        Self { interval: interval.max(INTERVAL_MIN), timeout, sent: 0, unanswered: None, due: now }
    }

    /// When to call [`Pings::beat`].
    pub fn poll_timeout(&self) -> Time {
        self.unanswered.map_or(self.due, |since| self.due.min(since + self.timeout))
    }

    /// What is due. If it is called late the next one comes later too: a burst after a pause would say nothing.
    pub fn beat(&mut self, now: Time) -> Option<Beat> {
        if self.unanswered.is_some_and(|since| now.since(since) >= self.timeout) {
            return Some(Beat::GiveUp);
        }
        if now < self.due {
            return None;
        }
        self.due = now + self.interval;
        self.unanswered.get_or_insert(now);
        Some(Beat::Ping(self.number()))
    }

    /// The number of a ping out of turn, whose answer says that all before it has been read.
    pub fn number(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// A ping was answered.
    pub fn answered(&mut self) {
        self.unanswered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Time {
        Time::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn what_answers_is_pinged_and_what_does_not_is_given_up() {
        let mut pings = Pings::new(at(0), SECOND, 3 * SECOND);
        for n in 1..=10 {
            let now = pings.poll_timeout();
            assert_eq!(pings.beat(now), Some(Beat::Ping(n)));
            assert_eq!(pings.beat(now), None, "not twice");
            pings.answered();
        }
        let silent_since = pings.poll_timeout();
        let beats: Vec<_> = (0..4).map(|n| pings.beat(silent_since + SECOND * n)).collect();
        assert_eq!(beats[..3].iter().filter(|beat| matches!(beat, Some(Beat::Ping(_)))).count(), 3);
        assert_eq!(beats[3], Some(Beat::GiveUp));
    }

    #[test]
    fn who_pings_seldom_gives_up_no_later_for_that() {
        let mut pings = Pings::new(at(0), 2 * SECOND, 3 * SECOND);
        pings.beat(at(0));
        pings.beat(at(2000));
        assert_eq!(pings.poll_timeout(), at(3000), "and not with the next ping");
        assert_eq!(pings.beat(at(2999)), None);
        assert_eq!(pings.beat(at(3000)), Some(Beat::GiveUp));
    }

    #[test]
    fn a_late_beat_is_followed_by_a_whole_pause_and_a_nonsensical_pause_is_none() {
        let mut pings = Pings::new(at(0), SECOND, SECOND);
        assert_eq!(pings.beat(at(700)), Some(Beat::Ping(1)));
        assert_eq!(pings.poll_timeout(), at(1700));
        let mut pings = Pings::new(at(0), Duration::ZERO, SECOND);
        pings.beat(at(0));
        assert_eq!(pings.poll_timeout(), at(100));
    }
}
