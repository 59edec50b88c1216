//! `hedgerow-node`: parses, builds the runtime, runs, drains.

use std::io::Write;
use std::process::ExitCode;

use hedgerow_node::cli::{Cli, Command, LeaveArgs, StatusArgs};
use hedgerow_node::settings::{Environment, Settings, data_dir_of};
use hedgerow_node::status::LeaveProgress;
use hedgerow_node::{control, run};
use hedgerow_process::exit::{Failure, report};
use hedgerow_process::{cli, logging};

fn main() -> ExitCode {
    report(match cli::parse::<Cli>().command {
        Command::Join(args) => Settings::resolve(*args, &Environment::PROCESS).and_then(|settings| {
            logging::init(settings.log_format)?;
            let runtime = runtime()?;
            let outcome = runtime.block_on(run::join(settings));
            // Without waiting for lookups of agents' hosts: the resolver may take its time.
            runtime.shutdown_background();
            outcome
        }),
        Command::Status(args) => runtime().and_then(|runtime| runtime.block_on(status(args))),
        Command::Leave(args) => runtime().and_then(|runtime| runtime.block_on(leave(args))),
    })
}

/// One thread for all tunnels and everything else but the node's own port: two threads that
/// share their connections cost more CPU for each request (ARCHITECTURE, "Threads"), and one carries more than a line at home.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::runtime(format!("cannot start the runtime: {error}")))
}

async fn status(args: StatusArgs) -> Result<(), Failure> {
    let status = control::ask_status(&data_dir_of(args.which, &Environment::PROCESS)?).await?;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&status);
        json.map_err(|error| Failure::runtime(format!("the status cannot be written as JSON: {error}")))? + "\n"
    } else {
        status.for_people()
    };
    print(&text)
}

async fn leave(args: LeaveArgs) -> Result<(), Failure> {
    let data_dir = data_dir_of(args.which, &Environment::PROCESS)?;
    let mut said = Ok(());
    control::ask_leave(&data_dir, |progress| {
        let line = match progress {
            LeaveProgress::Draining { running: 0 } => "leaving\n".to_owned(),
            LeaveProgress::Draining { running: 1 } => "leaving: 1 request still runs\n".to_owned(),
            LeaveProgress::Draining { running } => format!("leaving: {running} requests still run\n"),
            LeaveProgress::Left => "left\n".to_owned(),
            LeaveProgress::Cut { running } => format!("left; requests that had to be cut off: {running}\n"),
        };
        if said.is_ok() {
            said = print(&line);
        }
    })
    .await?;
    said
}

/// To standard output; a reader that has gone (`| head`) is nobody's mistake.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::runtime(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
