//! Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015).

use std::time::Duration;

use crate::tuning;

/// How long to wait after each failure in a row.
pub(crate) struct Backoff {
    random: fastrand::Rng,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), failures: 0 }
    }

    /// The wait after another failure: uniform between nothing and the doubled bound.
    pub(crate) fn next(&mut self) -> Duration {
        let bound = tuning::BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(tuning::BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(self.random.f64())
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_fall_after_a_success() {
        let mut backoff = Backoff::new(1);
        assert!(backoff.next() <= tuning::BACKOFF_MIN);
        let later: Vec<_> = (0..50).map(|_| backoff.next()).collect();
        assert!(later.iter().all(|wait| *wait <= tuning::BACKOFF_MAX));
        assert!(later.iter().any(|wait| *wait > tuning::BACKOFF_MAX / 2));
        backoff.succeeded();
        assert!(backoff.next() <= tuning::BACKOFF_MIN);
    }
}
