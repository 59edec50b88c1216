//! `hedgerow-sim`: parses, and runs one of the commands. What they do lives in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hedgerow_process::exit::{Failure, report};
use hedgerow_process::{cli, logging};
use hedgerow_sim::{agent, bench, demo, guard, interop, service};

/// Runs Hedgerow's real binaries as real processes, and says what they did.
#[derive(Debug, Parser)]
#[command(name = "hedgerow-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A federation on this machine, with traffic, and what becomes of it when things are killed
    Demo(demo::DemoArgs),
    /// Tries what must hold, with real processes and other people's programs
    Interop(interop::InteropArgs),
    /// What a request costs, beside what it costs others
    Bench(bench::BenchArgs),
    /// One small HTTP service, for behind a worker
    Service(service::ServiceArgs),
    /// An agent of the existing contract: registers over HTTP, serves, sends heartbeats
    Agent(agent::AgentArgs),
    /// Becomes COMMAND, and ends when the harness ends
    #[command(hide = true)]
    Guard(guard::GuardArgs),
}

fn main() -> ExitCode {
    let arguments: Arguments = cli::parse();
    if let Err(failure) = logging::init(logging::LogFormat::Text) {
        return report(Err(failure));
    }
    report(run(arguments.command).map_err(|error| Failure::runtime(format!("{error:#}"))))
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Guard(args) => guard::run(args),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Bench(args) => on_runtime(bench::run(args)),
        Command::Interop(args) => on_runtime(interop::run(args)),
        Command::Agent(args) => on_runtime(agent::run(args)),
        Command::Service(args) => on_runtime(service::run(args)),
    }
}

fn on_runtime<F: Future<Output = anyhow::Result<()>>>(command: F) -> anyhow::Result<()> {
    // Two threads are enough for a service, and leave a small machine to what is tried.
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(command)
}
