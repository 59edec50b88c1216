//! Saying once that something fails, then seldom, and saying when it works again. Pure: the caller brings the time.

use std::time::Duration;

/// The first silence after something was said.
const SILENCE_FIRST: Duration = Duration::from_secs(60);
/// The longest one: once an hour a log that is read a day later still tells the story.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// What is worth saying now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// It has begun to fail.
    Fails,
    /// It has failed for so long now.
    StillFails(Duration),
    /// It works again after so long.
    WorksAgain(Duration),
    /// Nothing new.
    Nothing,
}

/// The memory of one thing that may fail. Times are durations since any fixed origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patience {
    failing: Option<Failing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Failing {
    since: Duration,
    said: Duration,
    silence: Duration,
}

impl Patience {
    /// It has failed.
    pub fn failed(&mut self, now: Duration) -> Say {
        match &mut self.failing {
            None => {
                self.failing = Some(Failing { since: now, said: now, silence: SILENCE_FIRST });
                Say::Fails
            }
            Some(failing) if now.saturating_sub(failing.said) >= failing.silence => {
                failing.said = now;
                failing.silence = (failing.silence * 2).min(SILENCE_MAX);
                Say::StillFails(now.saturating_sub(failing.since))
            }
            Some(_) => Say::Nothing,
        }
    }

    /// It works.
    pub fn worked(&mut self, now: Duration) -> Say {
        match self.failing.take() {
            Some(failing) => Say::WorksAgain(now.saturating_sub(failing.since)),
            None => Say::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_and_then_seldom() {
        let mut patience = Patience::default();
        let said: Vec<u64> =
            (0..24 * 3600).filter(|second| patience.failed(Duration::from_secs(*second)) != Say::Nothing).collect();
        assert_eq!(&said[..4], &[0, 60, 180, 420]);
        assert!(said.len() < 32, "a day of failures is {} lines", said.len());
        assert!(said.windows(2).all(|pair| pair[1] - pair[0] <= 3600), "never silent for longer than an hour");
    }

    #[test]
    fn recovery_is_said_once_and_the_next_failure_at_once() {
        let mut patience = Patience::default();
        assert_eq!(patience.worked(Duration::ZERO), Say::Nothing);
        assert_eq!(patience.failed(Duration::from_secs(1)), Say::Fails);
        assert_eq!(patience.worked(Duration::from_secs(5)), Say::WorksAgain(Duration::from_secs(4)));
        assert_eq!(patience.worked(Duration::from_secs(6)), Say::Nothing);
        assert_eq!(patience.failed(Duration::from_secs(7)), Say::Fails);
    }
}
