//! A token bucket on a clock that is passed in: so much at once, so much a second.

use crate::clock::Time;

/// So much at once, so much a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// Tokens that a full bucket holds.
    pub(super) burst: f64,
    /// Tokens that come back in a second.
    pub(super) per_second: f64,
}

/// The bucket. A new one is full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    at: Time,
}

impl Bucket {
    pub(super) fn full(now: Time, rate: Rate) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// Takes a token out, if there is one.
    pub(super) fn take(&mut self, now: Time, rate: Rate) -> bool {
        self.tokens = (self.tokens + now.since(self.at).as_secs_f64() * rate.per_second).min(rate.burst);
        self.at = now;
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// How many whole tokens are in it.
    pub(super) fn left(&mut self, now: Time, rate: Rate) -> usize {
        self.tokens = (self.tokens + now.since(self.at).as_secs_f64() * rate.per_second).min(rate.burst);
        self.at = now;
        self.tokens as usize
    }

    /// Takes so many out, or what there is.
    pub(super) fn take_many(&mut self, many: usize) {
        self.tokens = (self.tokens - many as f64).max(0.0);
    }

    /// Whether everything that was taken has come back by now: it is as good as a new one.
    pub(super) fn is_full(&self, now: Time, rate: Rate) -> bool {
        self.tokens + now.since(self.at).as_secs_f64() * rate.per_second >= rate.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_taken_comes_back_in_its_time_and_no_more() {
        let rate = Rate { burst: 2.0, per_second: 0.5 };
        let mut bucket = Bucket::full(Time::ORIGIN, rate);
        let at = |seconds| Time::from_origin(Duration::from_secs(seconds));
        assert!(bucket.take(at(0), rate) && bucket.take(at(0), rate) && !bucket.take(at(1), rate));
        assert!(bucket.take(at(2), rate) && !bucket.take(at(3), rate));
        assert_eq!(bucket.left(at(3), rate), 0);
        assert!(!bucket.is_full(at(5), rate) && bucket.is_full(at(6), rate));
        assert!(bucket.take(at(1000), rate) && bucket.take(at(1000), rate) && !bucket.take(at(1000), rate));
        assert_eq!(bucket.left(at(2000), rate), 2);
        bucket.take_many(1);
        assert_eq!(bucket.left(at(2000), rate), 1);
        bucket.take_many(7);
        assert_eq!((bucket.left(at(2000), rate), bucket.left(at(2002), rate)), (0, 1));
    }
}
