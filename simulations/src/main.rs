//! `hedgerow-sim`: parses, and runs one of the commands. What they do lives in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hedgerow_process::exit::{Failure, report};
use hedgerow_process::{cli, logging};
use hedgerow_sim::simulate::{plot, replay, run as simulation, sweep};
use hedgerow_sim::{agent, bench, demo, guard, interop, lab, parity, service};

/// Runs Hedgerow: simulated in virtual time, or as real processes; and says what it did.
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
    /// Simulates a scenario once, in virtual time; without one, lists what there is
    Run(simulation::RunArgs),
    /// Simulates scenarios with many seeds, on all cores, until something is wrong
    Sweep(sweep::SweepArgs),
    /// Runs a simulation that failed once more
    Replay(replay::ReplayArgs),
    /// Draws what simulations have left behind, as SVG and PNG
    Plot(plot::PlotArgs),
    /// Tries what must hold, with real processes and other people's programs
    Interop(interop::InteropArgs),
    /// Real binaries behind real routers, in network namespaces; without a scenario, lists what there is. Needs root
    Lab(lab::LabArgs),
    /// The same scenario in virtual time and in the lab, and how their times compare. Needs root
    Parity(parity::ParityArgs),
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
    report(
        run(arguments.command).map_err(|error| {
            error.downcast::<Failure>().unwrap_or_else(|error| Failure::runtime(format!("{error:#}")))
        }),
    )
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Guard(args) => guard::run(args),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Run(args) => on_runtime(simulation::run(args)),
        Command::Sweep(args) => on_runtime(sweep::run(args)),
        Command::Replay(args) => on_runtime(replay::run(args)),
        Command::Plot(args) => plot::run(args),
        Command::Bench(args) => on_runtime(bench::run(args)),
        Command::Interop(args) => on_runtime(interop::run(args)),
        Command::Lab(args) => on_runtime(lab::run(args)),
        Command::Parity(args) => on_runtime(parity::run(args)),
        Command::Agent(args) => on_runtime(agent::run(args)),
        Command::Service(args) => on_runtime(service::run(args)),
    }
}

fn on_runtime<F: Future<Output = anyhow::Result<()>>>(command: F) -> anyhow::Result<()> {
    // Two threads are enough for a service, and leave a small machine to what is tried.
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(command)
}
