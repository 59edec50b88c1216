//! Reads results: a summary, and the time series beside it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hedgerow_sim_model::results::{self, FORMAT, Sample, Summary};

use crate::error::PlotError;
use crate::figure::counted;

/// A virtual week of samples a second has 100 MiB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// One run, as it was left behind.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The name of its files without the ending.
    pub(crate) stem: String,
    pub(crate) summary: Summary,
    /// Not empty.
    pub(crate) series: Vec<Sample>,
}

impl Run {
    /// Which run it was, for below a title.
    pub(crate) fn subtitle(&self) -> String {
        let Summary { scenario, level, seed, coordinators, workers, entries, commit, .. } = &self.summary;
        format!(
            "{scenario} · {level} level · seed {seed} · {}, {}, {} · {commit}",
            counted(*coordinators as usize, "coordinator"),
            counted(*workers as usize, "worker"),
            if *entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") },
        )
    }
}

/// All of them, or what is wrong with the first that is not one.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Vec<Run>, PlotError> {
    if paths.is_empty() {
        return Err(PlotError::Nothing);
    }
    let mut runs: Vec<Run> = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let run = load_one(path)?;
        if let Some(same) = runs.iter().position(|other| other.stem == run.stem) {
            return Err(PlotError::SameName { one: paths[same].clone(), other: paths[n].clone() });
        }
        runs.push(run);
    }
    Ok(runs)
}

fn load_one(path: &Path) -> Result<Run, PlotError> {
    let text = read(path, |reason| PlotError::Read { path: path.to_owned(), reason })?;
    let foreign = |reason: String| PlotError::Foreign { path: path.to_owned(), reason };
    // The format first: what another version wrote is no mistake of the person.
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| foreign(error.to_string()))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(FORMAT) => {
            return Err(PlotError::Format { path: path.to_owned(), found });
        }
        Some(_) => {}
        None => return Err(foreign("it names no format".into())),
    }
    let summary = serde_json::from_value(value).map_err(|error| foreign(error.to_string()))?;
    let beside = path.with_extension("csv");
    let text =
        read(&beside, |reason| PlotError::SeriesMissing { summary: path.to_owned(), series: beside.clone(), reason })?;
    let series = results::from_csv(&text).map_err(|reason| PlotError::Series { path: beside.clone(), reason })?;
    if series.is_empty() {
        return Err(PlotError::Empty { path: beside });
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Run { stem, summary, series })
}

fn read(path: &Path, missing: impl Fn(String) -> PlotError) -> Result<String, PlotError> {
    let file = File::open(path).map_err(|error| missing(error.to_string()))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| missing(error.to_string()))?;
    match read as u64 > FILE_BYTES_MAX {
        true => Err(PlotError::TooLarge { path: path.to_owned(), most_mib: FILE_BYTES_MAX >> 20 }),
        false => Ok(text),
    }
}
