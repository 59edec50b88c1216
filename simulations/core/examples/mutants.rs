//! Whether the simulation finds mistakes: each of [`Mutation::ALL`] is made on purpose and looked for, seed by seed, in the scenario
//! of its name (`mutants/`). With the same seeds and no mistake nothing must be found. Ends with 1 if a mistake stays hidden, or if
//! something is wrong without one.
//!
//! ```console
//! $ cargo run -p hedgerow-sim-core --example mutants --features mutations
//! ```
//!
//! Nothing else that cargo builds gets the feature by that: it is another call. Names as arguments choose among the mistakes.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hedgerow_proto::mutation::{Mutation, activate};
use hedgerow_sim_core::{RunConfig, run};
use hedgerow_sim_model::results::Violation;
use hedgerow_sim_model::scenario::{Scenario, ScenarioError};

/// A mistake that so many seeds do not show is hidden.
const SEEDS_MAX: u64 = 1000;
/// With no mistake at least so many seeds are run: those that find it may be few.
const CONTROLS_MIN: u64 = 8;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |mutation: &Mutation| wanted.is_empty() || wanted.iter().any(|name| name == mutation.as_str());
    let mut sound = true;
    for mutation in Mutation::ALL.into_iter().filter(is_wanted) {
        match verdict(mutation) {
            Ok(verdict) => {
                sound &= verdict.is_sound();
                verdict.tell(mutation);
            }
            Err(error) => {
                sound = false;
                say(&format!("{}: {error}", mutation.as_str()));
            }
        }
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What came of looking for one mistake.
struct Verdict {
    /// With which seed it was found, and by what.
    found: Option<Found>,
    /// What was found with no mistake: nothing, if all is well.
    without: Option<Found>,
    /// How many seeds that was tried with.
    controls: u64,
}

impl Verdict {
    fn is_sound(&self) -> bool {
        self.found.is_some() && self.without.is_none()
    }

    fn tell(&self, mutation: Mutation) {
        let name = mutation.as_str();
        match &self.found {
            Some(Found { seed, violation }) => say(&format!("{name}: found with seed {seed}: {violation}")),
            None => say(&format!("{name}: not found with {SEEDS_MAX} seeds")),
        }
        match &self.without {
            Some(Found { seed, violation }) => {
                say(&format!("{name}: WITHOUT the mistake, seed {seed} finds: {violation}"));
            }
            None => say(&format!("{name}: without it, {} seeds find nothing", self.controls)),
        }
    }
}

/// Something was wrong.
struct Found {
    seed: u64,
    violation: Violation,
}

fn verdict(mutation: Mutation) -> Result<Verdict, ScenarioError> {
    let scenario = scenario(mutation)?;
    let found = first(mutation.as_str(), &scenario, Some(mutation), SEEDS_MAX);
    // The seeds up to that one are the same runs but for the mistake.
    let controls = found.as_ref().map_or(0, |found| found.seed + 1).max(CONTROLS_MIN);
    let without = first(mutation.as_str(), &scenario, None, controls);
    Ok(Verdict { found, without, controls })
}

fn scenario(mutation: Mutation) -> Result<Scenario, ScenarioError> {
    let text = match mutation {
        Mutation::ResurrectingTombstone => include_str!("../mutants/resurrecting-tombstone.toml"),
        Mutation::ThirdPartyRenewsLeases => include_str!("../mutants/third-party-renews-leases.toml"),
        Mutation::OlderVersionWins => include_str!("../mutants/older-version-wins.toml"),
        Mutation::RetryAfterFirstByte => include_str!("../mutants/retry-after-first-byte.toml"),
        Mutation::DigestSkipsBucket => include_str!("../mutants/digest-skips-bucket.toml"),
    };
    Scenario::parse(mutation.as_str(), text)
}

/// The first of the seeds from 0 with which something is wrong, on all cores.
fn first(name: &str, scenario: &Scenario, mutation: Option<Mutation>, seeds: u64) -> Option<Found> {
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let found: Mutex<Option<Found>> = Mutex::new(None);
    let work = || {
        // A thread makes the mistake, and not a program: each says for itself.
        activate(mutation);
        while !over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let run = run(RunConfig::new(name, scenario, seed), &mut |_| ControlFlow::Continue(()));
            let Some(violation) = run.summary.violations.into_iter().next() else { continue };
            over.store(true, Ordering::Relaxed);
            // Those before it are all under way, and one of them may find something yet.
            let mut found = found.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if found.as_ref().is_none_or(|found| seed < found.seed) {
                *found = Some(Found { seed, violation });
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A reader that has gone away is no failure of what is tried here.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
