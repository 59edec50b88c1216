//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hedgerow_sim_full::net::transport::Security;
use hedgerow_sim_model::span::Span;

/// Runs the code that ships, with unmodified libp2p, in virtual time.
#[derive(Debug, Parser)]
#[command(name = "hedgerow-sim-full", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one scenario once. Exit code 1: something was wrong.
    Run(Run),
    /// Say how fast simulations run here, and how much memory they take.
    Measure(Measure),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A scenario's file.
    pub(crate) scenario: PathBuf,
    /// Decides everything.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// So many coordinators and workers together, in the scenario's mixture.
    #[arg(long)]
    pub(crate) nodes: Option<u32>,
    /// For so long, instead of the scenario's duration.
    #[arg(long = "for", value_name = "DURATION")]
    pub(crate) duration: Option<Span>,
    /// Another plan of faults than the one that the seed gives: a JSON file, as in a summary's `plan`.
    #[arg(long)]
    pub(crate) plan: Option<PathBuf>,
    /// How connections prove their keys.
    #[arg(long, value_enum, default_value = "noise")]
    pub(crate) security: SecurityName,
    /// A folder for summary.json and series.csv; without it the summary goes to standard output.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Tells what this node (by its number) says: into trace.txt in the folder.
    #[arg(long, value_name = "NODE", requires = "out")]
    pub(crate) trace: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// How connections prove their keys.
    #[arg(long, value_enum, default_value = "plaintext")]
    pub(crate) security: SecurityName,
}

/// How connections prove their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SecurityName {
    /// As the product does.
    Noise,
    /// Keys are said and not proven, and nothing is encrypted: cheaper.
    Plaintext,
}

impl From<SecurityName> for Security {
    fn from(name: SecurityName) -> Self {
        match name {
            SecurityName::Noise => Self::Noise,
            SecurityName::Plaintext => Self::Plaintext,
        }
    }
}

impl SecurityName {
    /// As it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Plaintext => "plaintext",
        }
    }
}

/// For the tests of determinism: what the machine is like must not matter, and they must be able to notice when it does.
#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// The machine's date is off by this many seconds.
    #[arg(long, hide = true, global = true, allow_negative_numbers = true, default_value_t = 0)]
    pub(crate) machine_date_offset_s: i64,
    /// The simulation sees the machine's clocks.
    #[arg(long, hide = true, global = true)]
    pub(crate) leak_clock: bool,
}
