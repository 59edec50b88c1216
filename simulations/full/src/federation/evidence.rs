//! What was asked, what ran, and what was answered: from it follows whether a request was lost, or ran twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::time;

/// One request of a client.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) at: Duration,
    pub(super) service: String,
    /// It must not run twice.
    pub(super) once: bool,
    /// How often a service has run it.
    pub(super) runs: u32,
    /// What came of it, when it is over.
    pub(super) outcome: Option<Result<(), String>>,
}

/// What is known of all requests. Cloning gives another handle to the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence(Arc<Mutex<BTreeMap<u64, Asked>>>);

/// So many of each kind.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) answered: u64,
    pub(super) failed: u64,
}

impl Evidence {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client asks.
    pub(super) fn asked(&self, id: u64, service: &str, once: bool) {
        let at = time::now().since_origin();
        let asked = Asked { at, service: service.to_owned(), once, runs: 0, outcome: None };
        self.all().insert(id, asked);
    }

    /// A service runs it.
    pub(super) fn runs(&self, id: u64) {
        if let Some(asked) = self.all().get_mut(&id) {
            asked.runs += 1;
        }
    }

    /// The client has its answer, or knows that it gets none.
    pub(super) fn over(&self, id: u64, outcome: Result<(), String>) {
        if let Some(asked) = self.all().get_mut(&id) {
            asked.outcome = Some(outcome);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for asked in self.all().values() {
            counts.requests += 1;
            match asked.outcome {
                Some(Ok(())) => counts.answered += 1,
                Some(Err(_)) => counts.failed += 1,
                None => {}
            }
        }
        counts
    }

    /// Those that ran twice and must not.
    pub(super) fn ran_twice(&self) -> Vec<(u64, Asked)> {
        self.those(|asked| asked.once && asked.runs > 1)
    }

    /// Those that failed although they were asked between these moments.
    pub(super) fn failed_between(&self, from: Duration, until: Duration) -> Vec<(u64, Asked)> {
        self.those(|asked| (from..until).contains(&asked.at) && !matches!(asked.outcome, Some(Ok(()))))
    }

    fn those(&self, wanted: impl Fn(&Asked) -> bool) -> Vec<(u64, Asked)> {
        self.all().iter().filter(|(_, asked)| wanted(asked)).map(|(id, asked)| (*id, asked.clone())).collect()
    }
}
