//! Why there is no picture.

use std::path::PathBuf;

use hedgerow_sim_model::results::{FORMAT, SeriesError};

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// Nothing was named.
    #[error("no results were named. Name summaries, as `hedgerow-sim run SCENARIO --out DIR` writes them: DIR/….json")]
    Nothing,
    /// A summary cannot be read.
    #[error(
        "cannot read {}: {reason}. Name summaries, as `hedgerow-sim run SCENARIO --out DIR` writes them: DIR/….json", path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A file is no summary.
    #[error(
        "{} is not the summary of a simulation: {reason}. Name the .json files that `hedgerow-sim run SCENARIO --out DIR` writes", path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A summary of another version.
    #[error(
        "{} has format {found}, and this program reads format {FORMAT}. Run the simulation again with this program, or plot with the one that ran it", path.display()
    )]
    Format {
        /// Which.
        path: PathBuf,
        /// What it has.
        found: u64,
    },
    /// The time series is missing.
    #[error(
        "{} has no time series: {} cannot be read ({reason}). Keep the two files that a run writes in one folder, under one name", summary.display(), series.display()
    )]
    SeriesMissing {
        /// The summary.
        summary: PathBuf,
        /// Where the series should be.
        series: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The time series is something else.
    #[error("{}: {reason}. Run the simulation again to have it written anew", path.display())]
    Series {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: SeriesError,
    },
    /// The time series has no lines.
    #[error(
        "{} holds no sample: the run ended before its first virtual second. Run it for longer (--for)", path.display()
    )]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A file is larger than any result is.
    #[error("{} has more than {most_mib} MiB, which no result of a simulation has", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The bound.
        most_mib: u64,
    },
    /// Two results would be drawn into the same files.
    #[error(
        "{} and {} have the same name, and their pictures would overwrite each other. Plot them into two folders, or rename one together with its .csv", one.display(), other.display()
    )]
    SameName {
        /// One.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// The plotting library failed.
    #[error("cannot draw {figure}: {reason}. This is a mistake of this program: please report it with the results")]
    Draw {
        /// What was drawn.
        figure: String,
        /// What it says.
        reason: String,
    },
    /// A picture cannot be written.
    #[error("cannot write {}: {reason}. Choose another folder with --out", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}
