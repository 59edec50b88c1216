//! Time, as the shell tells it: nothing in this crate reads a clock.
//!
//! The clock behind it is monotonic and runs on while the machine is suspended (`CLOCK_BOOTTIME` on Linux), or it is
//! the simulation's.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment: how long after an origin that is arbitrary, but the same for the whole life of the process. Moments of
/// different processes cannot be compared, so none ever travels: what travels is an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(Duration);

impl Time {
    /// The origin itself.
    pub const ORIGIN: Self = Self(Duration::ZERO);

    /// The moment this long after the origin.
    pub const fn from_origin(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long after the origin this moment is.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    /// The moment this much later, or the last one that can be said.
    fn add(self, later_by: Duration) -> Self {
        Self(self.0.saturating_add(later_by))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    /// The moment this much earlier, or the origin.
    fn sub(self, earlier_by: Duration) -> Self {
        Self(self.0.saturating_sub(earlier_by))
    }
}

impl Sub for Time {
    type Output = Duration;
    /// Like [`Time::since`].
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let second = Duration::from_secs(1);
        assert_eq!(Time::ORIGIN + second - Time::ORIGIN, second);
        assert_eq!(Time::ORIGIN - (Time::ORIGIN + second), Duration::ZERO);
        assert_eq!(Time::ORIGIN - second, Time::ORIGIN);
        assert_eq!(Time::from_origin(Duration::MAX) + second, Time::from_origin(Duration::MAX));
    }
}
