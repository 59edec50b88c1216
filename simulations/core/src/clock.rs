//! A node's own clock: it begins somewhere, runs a little too fast or too slow, and jumps when somebody makes it.

use std::time::Duration;

use hedgerow_proto::clock::Time;

/// How far into its node's life the earliest clock is when the run begins: whatever subtracts from "now" must have room.
const BEGINS: Duration = Duration::from_secs(100 * 24 * 60 * 60);

/// A clock as a piecewise linear function of virtual time.
#[derive(Debug, Clone)]
pub(crate) struct LocalClock {
    /// From here on …
    since: Duration,
    /// … it showed this …
    showed: Time,
    /// … and goes so many parts per million too fast.
    ppm: i64,
    /// For how long the machine has been suspended.
    suspended: Duration,
}

impl LocalClock {
    /// `offset_s`: how far it is ahead of the others, in seconds.
    pub(crate) fn new(offset_s: f64, ppm: i64) -> Self {
        let begins = (BEGINS.as_secs_f64() + offset_s).max(0.0);
        let showed = Time::from_origin(Duration::from_secs_f64(begins));
        Self { since: Duration::ZERO, showed, ppm, suspended: Duration::ZERO }
    }

    /// What it shows at this virtual time.
    pub(crate) fn read(&self, at: Duration) -> Time {
        self.showed + scale(at.saturating_sub(self.since), 1_000_000 + self.ppm, 1_000_000)
    }

    /// The virtual time when it shows this; never before `at`.
    pub(crate) fn when(&self, at: Duration, shows: Time) -> Duration {
        let real = self.since + scale(shows.since(self.showed), 1_000_000, 1_000_000 + self.ppm);
        // Rounding must not make a timer fire before its time, again and again.
        let real = if self.read(real) < shows { real + Duration::from_nanos(2) } else { real };
        real.max(at)
    }

    pub(crate) fn suspended(&self) -> Duration {
        self.suspended
    }

    /// It goes at another rate from now on.
    pub(crate) fn drift(&mut self, at: Duration, by_ppm: i64) {
        self.showed = self.read(at);
        self.since = at;
        self.ppm = (self.ppm + by_ppm).clamp(-500_000, 500_000);
    }

    /// The machine slept for so long, and knows it: the clock has run on.
    pub(crate) fn slept(&mut self, for_long: Duration) {
        self.suspended += for_long;
    }

    /// The machine was put to sleep and woken elsewhere: to it, so much time has passed.
    pub(crate) fn jump(&mut self, at: Duration, by: Duration) {
        self.showed = self.read(at) + by;
        self.since = at;
        self.suspended += by;
    }
}

fn scale(span: Duration, by: i64, over: i64) -> Duration {
    // Nearly always it fits into 64 bits, whose division takes a tenth of the time; it is done for each event.
    if let (Ok(nanos), Ok(by), Ok(over)) =
        (u64::try_from(span.as_nanos()), u64::try_from(by), u64::try_from(over.max(1)))
        && let Some(product) = nanos.checked_mul(by)
    {
        return Duration::from_nanos(product / over);
    }
    let nanos = span.as_nanos() as i128 * i128::from(by) / i128::from(over.max(1));
    let nanos = u64::try_from(nanos).unwrap_or(if nanos < 0 { 0 } else { u64::MAX });
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_spans_are_scaled_alike() {
        // The longest that fits into 64 bits, and those around it.
        let edge = u64::MAX / 1_000_070;
        for nanos in [0, 1, 999_999, 1_000_000, edge - 1, edge, edge + 1, u64::MAX / 4] {
            for ppm in [-500_000, -70, 0, 70] {
                let exact = i128::from(nanos) * i128::from(1_000_000 + ppm) / 1_000_000;
                assert_eq!(scale(Duration::from_nanos(nanos), 1_000_000 + ppm, 1_000_000).as_nanos() as i128, exact);
            }
        }
    }

    #[test]
    fn a_timer_never_fires_before_its_time_whatever_the_clock_does() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut clock = LocalClock::new(-3600.0, 70);
        let mut now = Duration::ZERO;
        for _ in 0..10_000 {
            now += Duration::from_nanos(random.u64(..10_000_000_000));
            match random.u8(..20) {
                0 => clock.drift(now, random.i64(-1000..1000)),
                1 => clock.jump(now, Duration::from_secs(random.u64(..100))),
                _ => {}
            }
            let wanted = clock.read(now) + Duration::from_nanos(random.u64(..60_000_000_000));
            let at = clock.when(now, wanted);
            assert!(at >= now && clock.read(at) >= wanted);
            assert!(clock.read(at).since(wanted) < Duration::from_nanos(10), "nor much later");
        }
    }
}
