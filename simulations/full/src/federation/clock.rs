//! A machine's own clock: it began somewhere, runs a little too fast or too slow, and may jump.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_mesh::clock::Clock;
use hedgerow_proto::clock::Time;

use crate::time;

/// A machine's boot-time clock.
#[derive(Debug)]
pub(super) struct MachineClock(Mutex<Reading>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    /// What it showed …
    shown: Duration,
    /// … at this moment of virtual time.
    at: Duration,
    drift_ppm: i32,
    suspended: Duration,
}

impl Reading {
    fn now(&self) -> Duration {
        let elapsed = time::now().since_origin().saturating_sub(self.at);
        let off = elapsed.mul_f64(f64::from(self.drift_ppm.unsigned_abs()) / 1e6);
        let ran = if self.drift_ppm < 0 { elapsed.saturating_sub(off) } else { elapsed + off };
        self.shown + ran
    }
}

impl MachineClock {
    /// One that shows this now, and is too fast by so many parts per million.
    pub(super) fn new(shown: Duration, drift_ppm: i32) -> Self {
        let at = time::now().since_origin();
        Self(Mutex::new(Reading { shown, at, drift_ppm, suspended: Duration::ZERO }))
    }

    fn change(&self, change: impl FnOnce(&mut Reading)) {
        let mut reading = self.lock();
        let (shown, at) = (reading.now(), time::now().since_origin());
        (reading.shown, reading.at) = (shown, at);
        change(&mut reading);
    }

    /// It is ahead by so much from now on.
    pub(super) fn jump(&self, by: Duration) {
        self.change(|reading| reading.shown += by);
    }

    /// It is too fast by so many parts per million from now on. Returns what it was.
    pub(super) fn set_drift(&self, ppm: i32) -> i32 {
        let mut before = ppm;
        self.change(|reading| before = std::mem::replace(&mut reading.drift_ppm, ppm));
        before
    }

    /// The machine has been suspended for so long; the clock ran on.
    pub(super) fn was_suspended(&self, lasted: Duration) {
        self.change(|reading| reading.suspended += lasted);
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Time {
        Time::from_origin(self.lock().now())
    }

    fn suspended(&self) -> Duration {
        self.lock().suspended
    }
}
