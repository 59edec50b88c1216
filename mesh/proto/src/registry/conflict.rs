//! A mark against a writer that said two things at once: it decays, since a lost disk looks the same as a lie.

use std::time::Duration;

use crate::clock::Time;

/// A mark is worth half as much after this time.
const HALF_LIFE: Duration = Duration::from_secs(10 * 60);
/// Each contradiction counts as much.
const ONE: u32 = 1000;
/// More than this does not count: whoever is here for a while with a clean record gets rid of it.
const MAX: u32 = 64 * ONE;

/// How often a writer has contradicted itself of late.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conflicts {
    thousandths: u32,
    at: Time,
}

impl Conflicts {
    pub(super) fn add(&mut self, now: Time) {
        *self = Self { thousandths: (self.thousandths(now) + ONE).min(MAX), at: now };
    }

    /// What the marks are worth now: a thousand for one of this moment.
    pub(super) fn thousandths(&self, now: Time) -> u32 {
        let elapsed = now.since(self.at);
        let halvings = u32::try_from(elapsed.as_secs() / HALF_LIFE.as_secs()).unwrap_or(u32::MAX);
        let value = self.thousandths.checked_shr(halvings).unwrap_or(0);
        // Between two halvings, along a straight line.
        let part = elapsed.as_secs() % HALF_LIFE.as_secs();
        value - (u64::from(value) * part / (2 * HALF_LIFE.as_secs())) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_decays_and_is_bounded() {
        let mut conflicts = Conflicts::default();
        let at = |half_lives: u32| Time::ORIGIN + HALF_LIFE * half_lives;
        conflicts.add(at(0));
        assert_eq!(conflicts.thousandths(at(0)), 1000);
        assert_eq!(conflicts.thousandths(at(1)), 500);
        assert_eq!(conflicts.thousandths(at(0) + HALF_LIFE / 2), 750);
        assert_eq!(conflicts.thousandths(at(100)), 0);
        for _ in 0..1000 {
            conflicts.add(at(2));
        }
        assert_eq!(conflicts.thousandths(at(2)), MAX);
    }
}
