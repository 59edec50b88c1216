//! One run at the full level, for whoever wants its figures and nothing else.

use std::collections::BTreeMap;

use anyhow::Result;
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_sim_model::scenario::{Level, Scenario};

use super::engine::Job;
use super::run::{Leaves, perform};
use super::setting::{LevelName, Overrides, Subject};
use super::{engine_of, report};

/// The scenario of this name or path, which must be for the full level.
pub(crate) fn find(named: &str) -> Result<(String, Scenario), Failure> {
    let full = Overrides { level: Some(LevelName::Full), ..Overrides::default() };
    Subject::find(named, &full).map(|subject| (subject.name, subject.scenario))
}

/// Runs it with this seed. An error if something was wrong.
pub(crate) async fn run(
    name: &str,
    scenario: &Scenario,
    seed: u64,
    shutdown: &Shutdown,
) -> Result<BTreeMap<String, f64>> {
    let subject = Subject { name: name.to_owned(), scenario: scenario.clone(), level: Level::Full, left_out: 0 };
    let (job, shutdown) = (Job::new(&subject, seed), shutdown.clone());
    let done =
        tokio::task::spawn_blocking(move || perform(&*engine_of(Level::Full)?, &job, &Leaves::default(), &shutdown));
    let summary = done.await??.summary;
    match summary.is_good() {
        true => Ok(summary.figures),
        false => Err(Failure::runtime(format!("{} at the full level", report::count(&summary.violations))).into()),
    }
}
