//! How many runs may go on at once: as many as asked for, as long as they fit into memory together.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module. What a run takes is not known beforehand, so the first one goes alone.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    jobs: usize,
    memory_mib: f64,
}

#[derive(Debug)]
struct State {
    running: usize,
    allowed: usize,
    /// The most that a run took.
    peak_mib: f64,
}

impl Gate {
    pub(super) fn new(jobs: usize, memory_mib: f64) -> Self {
        let state = State { running: 0, allowed: 1, peak_mib: 0.0 };
        Self { state: Mutex::new(state), changed: Condvar::new(), jobs: jobs.max(1), memory_mib }
    }

    /// Waits until one more may go on.
    pub(super) fn enter(&self) {
        let state = self.lock();
        let entered = self.changed.wait_while(state, |state| state.running >= state.allowed);
        entered.unwrap_or_else(PoisonError::into_inner).running += 1;
    }

    /// One has ended. `peak_mib` is what it took at most, if that is known of it alone.
    pub(super) fn leave(&self, peak_mib: Option<f64>) {
        let mut state = self.lock();
        state.running -= 1;
        if let Some(peak) = peak_mib.filter(|peak| *peak > state.peak_mib) {
            state.peak_mib = peak;
        }
        // Nothing known after the first: the machine does not say, and cannot be asked to bound it.
        let fit = if state.peak_mib > 0.0 { (self.memory_mib / state.peak_mib) as usize } else { self.jobs };
        state.allowed = fit.clamp(1, self.jobs);
        self.changed.notify_all();
    }

    /// How many may go on at once.
    pub(super) fn allowed(&self) -> usize {
        self.lock().allowed
    }

    /// Whether one goes alone, so that what the process holds is what it takes.
    pub(super) fn is_first(&self) -> bool {
        self.lock().peak_mib == 0.0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_goes_alone_and_then_as_many_as_fit() {
        let gate = Gate::new(8, 1000.0);
        assert!(gate.allowed() == 1 && gate.is_first());
        gate.enter();
        gate.leave(Some(300.0));
        assert!(gate.allowed() == 3 && !gate.is_first());
        gate.enter();
        gate.leave(Some(100.0));
        assert_eq!(gate.allowed(), 3, "the most that one took is what counts");
        gate.enter();
        gate.leave(Some(5000.0));
        assert_eq!(gate.allowed(), 1, "one always may");
        let gate = Gate::new(8, 1000.0);
        gate.enter();
        gate.leave(None);
        assert_eq!(gate.allowed(), 8);
    }

    #[test]
    fn whoever_waits_goes_on_when_one_leaves() {
        let gate = Gate::new(2, 1000.0);
        gate.enter();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| gate.enter())).collect();
            gate.leave(Some(1.0));
            waiting.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(gate.lock().running, 2);
    }
}
