//! What a run leaves behind on disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hedgerow_process::durable;
use hedgerow_process::exit::Failure;
use hedgerow_sim_model::regression::Regression;
use hedgerow_sim_model::results::to_csv;

use super::engine::{Done, Job};

/// More than any file of a person has.
const REGRESSION_BYTES_MAX: u64 = 16 << 20;

/// Writes `STEM.json`, `STEM.csv`, and `STEM.trace.txt` if a node was traced. The path of the summary.
pub(super) fn write(directory: &Path, job: &Job, done: &Done) -> Result<PathBuf> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make the folder {}", directory.display()))?;
    let put = |ending: &str, bytes: &[u8]| {
        let path = directory.join(format!("{}.{ending}", job.stem()));
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok::<PathBuf, anyhow::Error>(path)
    };
    put("csv", to_csv(&done.series).as_bytes())?;
    if job.trace_node.is_some() {
        put("trace.txt", (done.trace.join("\n") + "\n").as_bytes())?;
    }
    put("json", &serde_json::to_vec_pretty(&done.summary)?)
}

/// Writes a run that failed, so that it can be run again.
pub(super) fn write_regression(directory: &Path, stem: &str, regression: &Regression) -> Result<PathBuf> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make the folder {}", directory.display()))?;
    let path = directory.join(format!("regression-{stem}.toml"));
    let text = toml::to_string(regression).context("the failed run as TOML")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Reads one.
pub(super) fn read_regression(path: &Path) -> Result<Regression, Failure> {
    let advice = "name a file that a failed run has written (regression-….toml), or one of simulations/regressions";
    let foreign = |reason: &dyn std::fmt::Display| {
        Failure::usage(format!("{} is no run that failed: {reason}", path.display())).advice(advice)
    };
    let bytes = durable::read(path, REGRESSION_BYTES_MAX)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())).advice(advice))?;
    let text = String::from_utf8(bytes).map_err(|error| foreign(&error))?;
    let regression: Regression = toml::from_str(&text).map_err(|error| foreign(&error))?;
    regression.scenario.check().map_err(|reason| foreign(&reason))?;
    Ok(regression)
}
