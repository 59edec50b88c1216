//! A run that once failed: everything that is needed to run it again. Files in `simulations/regressions`, one each; the tests run
//! all of them.

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::scenario::{Level, Scenario};

/// A run that once failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Regression {
    /// The scenario's name.
    pub name: String,
    /// What was wrong.
    pub found: String,
    /// The commit at which it was found.
    pub commit: String,
    /// The level.
    pub level: Level,
    /// The seed.
    pub seed: u64,
    /// What was simulated, as it was then.
    pub scenario: Scenario,
    /// The faults, made as few as fail.
    pub plan: Plan,
}
