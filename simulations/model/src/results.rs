//! What a run leaves behind: one summary as JSON, and one time series as CSV. `simulations/README.md` describes both; the format
//! counts up when a field changes its meaning.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::scenario::Level;

/// The format of both files.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`FORMAT`].
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// The level.
    pub level: Level,
    /// The seed.
    pub seed: u64,
    /// The commit of the program, as far as it knows.
    pub commit: String,
    /// Coordinators at the beginning.
    pub coordinators: u32,
    /// Workers at the beginning.
    pub workers: u32,
    /// Entries.
    pub entries: u32,
    /// Virtual seconds.
    pub virtual_s: f64,
    /// CPU seconds that it took. Not part of what a seed decides.
    pub cpu_s: f64,
    /// Peak resident memory of the process in MiB. Not part of what a seed decides.
    pub peak_rss_mib: f64,
    /// The hash of all that happened: 64 hexadecimal digits.
    pub trace_hash: String,
    /// How many events went into it.
    pub events: u64,
    /// What was wrong; empty if nothing was.
    pub violations: Vec<Violation>,
    /// Named figures; see `simulations/README.md`.
    pub figures: BTreeMap<String, f64>,
    /// What of the plan ran.
    pub plan: Plan,
    /// Who was connected to whom among the coordinators at the end, each pair once.
    pub neighbours: Vec<(u32, u32)>,
}

impl Summary {
    /// Whether nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// Which rule: a stable word.
    pub rule: String,
    /// When, in virtual seconds.
    pub at_s: f64,
    /// Of whom, by index, if it is about one.
    pub node: Option<u32>,
    /// What was found, for people.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} s  {}", self.at_s, self.rule)?;
        if let Some(node) = self.node {
            write!(f, " (node {node})")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// One line of the time series: how things stand at a virtual second. Counters count from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Virtual seconds.
    pub t_s: f64,
    /// Nodes that run, entries not counted.
    pub nodes_up: u32,
    /// Coordinators that run.
    pub coordinators_up: u32,
    /// How many different digests they have.
    pub digests: u32,
    /// The share of them that have the most common one.
    pub agreeing: f64,
    /// Records that the one with the most holds.
    pub records: u64,
    /// Connections between coordinators.
    pub mesh_connections: u64,
    /// Messages between nodes.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of gossip among those.
    pub gossip_bytes: u64,
    /// Bytes of synchronisations among those.
    pub sync_bytes: u64,
    /// Requests that clients have made.
    pub requests: u64,
    /// Answered.
    pub answered: u64,
    /// Failed.
    pub failed: u64,
    /// Workers that the first entry that runs can reach.
    pub routable: u32,
    /// Workers that run.
    pub workers_up: u32,
    /// Faults that hold.
    pub faults: u32,
}

impl Sample {
    /// The header of the CSV, and the order of its columns.
    pub const COLUMNS: [&'static str; 17] = [
        "t_s",
        "nodes_up",
        "coordinators_up",
        "digests",
        "agreeing",
        "records",
        "mesh_connections",
        "messages",
        "bytes",
        "gossip_bytes",
        "sync_bytes",
        "requests",
        "answered",
        "failed",
        "routable",
        "workers_up",
        "faults",
    ];

    fn values(&self) -> [f64; 17] {
        [
            self.t_s,
            self.nodes_up.into(),
            self.coordinators_up.into(),
            self.digests.into(),
            self.agreeing,
            self.records as f64,
            self.mesh_connections as f64,
            self.messages as f64,
            self.bytes as f64,
            self.gossip_bytes as f64,
            self.sync_bytes as f64,
            self.requests as f64,
            self.answered as f64,
            self.failed as f64,
            self.routable.into(),
            self.workers_up.into(),
            self.faults.into(),
        ]
    }
}

/// Why a file is no time series.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeriesError {
    /// The header is another one.
    #[error("not a time series of a simulation: its first line must be {:?}", Sample::COLUMNS.join(","))]
    Header,
    /// A line is none.
    #[error("line {0} is not a sample: {columns} numbers with commas between them", columns = Sample::COLUMNS.len())]
    Line(usize),
}

/// The time series as CSV.
pub fn to_csv(series: &[Sample]) -> String {
    let mut text = Sample::COLUMNS.join(",");
    text.push('\n');
    for sample in series {
        for (n, value) in sample.values().iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}{value}", if n > 0 { "," } else { "" });
        }
        text.push('\n');
    }
    text
}

/// And back.
pub fn from_csv(text: &str) -> Result<Vec<Sample>, SeriesError> {
    let mut lines = text.lines();
    if lines.next() != Some(Sample::COLUMNS.join(",").as_str()) {
        return Err(SeriesError::Header);
    }
    let read = |(n, line): (usize, &str)| {
        let bad = || SeriesError::Line(n + 2);
        let values: Vec<f64> =
            line.split(',').map(|value| value.parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
        let v: [f64; 17] = values.try_into().map_err(|_| bad())?;
        Ok(Sample {
            t_s: v[0],
            nodes_up: v[1] as u32,
            coordinators_up: v[2] as u32,
            digests: v[3] as u32,
            agreeing: v[4],
            records: v[5] as u64,
            mesh_connections: v[6] as u64,
            messages: v[7] as u64,
            bytes: v[8] as u64,
            gossip_bytes: v[9] as u64,
            sync_bytes: v[10] as u64,
            requests: v[11] as u64,
            answered: v[12] as u64,
            failed: v[13] as u64,
            routable: v[14] as u32,
            workers_up: v[15] as u32,
            faults: v[16] as u32,
        })
    };
    lines.enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_that_is_written_is_the_one_that_is_read() {
        let series: Vec<Sample> = (0..5)
            .map(|n| Sample { t_s: f64::from(n), agreeing: 0.25, bytes: 1 << 40, faults: n, ..Sample::default() })
            .collect();
        assert_eq!(from_csv(&to_csv(&series)), Ok(series));
        assert_eq!(from_csv("a,b\n1,2\n"), Err(SeriesError::Header));
        let broken = format!("{}\n1,2\n", Sample::COLUMNS.join(","));
        assert_eq!(from_csv(&broken), Err(SeriesError::Line(2)));
    }
}
