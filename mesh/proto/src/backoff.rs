//! Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015).

use std::time::Duration;

/// The longest wait between two attempts to reach an entry. Full jitter below it: when an entry comes back, all of its nodes do
/// so within this, spread evenly.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The wait after the first failure, doubled after each.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// How long to wait after each failure in a row.
#[derive(Debug, Clone)]
pub struct Backoff {
    random: fastrand::Rng,
    failures: u32,
}

impl Backoff {
    /// No failure yet. `seed` is for the jitter.
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), failures: 0 }
    }

    /// The wait after another failure: uniform between nothing and the doubled bound.
    pub fn next_wait(&mut self) -> Duration {
        let bound = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(self.random.f64())
    }

    /// What was tried has worked: the next failure is the first again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_fall_after_a_success() {
        let mut backoff = Backoff::new(1);
        assert!(backoff.next_wait() <= BACKOFF_MIN);
        let later: Vec<_> = (0..50).map(|_| backoff.next_wait()).collect();
        assert!(later.iter().all(|wait| *wait <= BACKOFF_MAX));
        assert!(later.iter().any(|wait| *wait > BACKOFF_MAX / 2));
        backoff.succeeded();
        assert!(backoff.next_wait() <= BACKOFF_MIN);
    }
}
