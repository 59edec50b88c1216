//! `hedgerow-sim-full`: one run of a scenario at the full level, in a process of its own. `hedgerow-sim run --level full` starts it.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod command;

fn main() -> ExitCode {
    match command::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
