//! `hedgerow-sim`: parses, and runs one of the commands. What they do lives in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hedgerow_process::exit::{Failure, report};
use hedgerow_process::{cli, logging};
use hedgerow_sim::{guard, service};

/// Runs Hedgerow's real binaries as real processes, and says what they did.
#[derive(Debug, Parser)]
#[command(name = "hedgerow-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One small HTTP service, for behind a worker
    Service(service::ServiceArgs),
    /// Becomes COMMAND, and ends when the harness ends
    #[command(hide = true)]
    Guard(guard::GuardArgs),
}

fn main() -> ExitCode {
    let arguments: Arguments = cli::parse();
    report(run(arguments.command).map_err(|error| Failure::runtime(format!("{error:#}"))))
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Guard(args) => guard::run(args),
        Command::Service(args) => {
            logging::init(logging::LogFormat::Text)?;
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?
                .block_on(service::run(args))
        }
    }
}
