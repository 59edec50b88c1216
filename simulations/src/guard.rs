//! `hedgerow-sim guard -- COMMAND`: becomes COMMAND, after it has asked the kernel to end this process when its parent ends.
//!
//! That way neither Ctrl-C nor a crash nor SIGKILL of the harness leaves a process behind, and the process id that the harness
//! knows is the command's own. The kernel's request survives `exec`; it is bound to the *thread* that started the process, which is
//! why [`crate::process`] starts everything from one thread that lives as long as the harness.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Arguments of `hedgerow-sim guard`.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// The process whose end ends the command
    #[arg(long)]
    parent: i32,
    /// How the command is ended
    #[arg(long, value_enum, default_value_t)]
    end: End,
    /// The network namespace that the command runs inside, as a file
    #[arg(long)]
    namespace: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// How a process is ended when the harness is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum End {
    /// At once.
    #[default]
    Kill,
    /// By SIGTERM, for programs that have processes of their own to end (nginx).
    Terminate,
}

impl End {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Terminate => "terminate",
        }
    }
}

/// Becomes the command; returns only if that fails.
pub fn run(args: GuardArgs) -> Result<()> {
    let signal = match args.end {
        End::Kill => Signal::KILL,
        End::Terminate => Signal::TERM,
    };
    set_parent_process_death_signal(Some(signal)).context("the kernel does not tell of a parent's death")?;
    // The parent may have ended before the request was made: then nobody would ever end this process.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(args.parent) {
        bail!("the harness has ended already");
    }
    if let Some(namespace) = &args.namespace {
        crate::lab::enter(namespace)?;
    }
    let (program, arguments) = args.command.split_first().context("no command")?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
}
