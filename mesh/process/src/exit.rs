//! Last words: what a person reads when the program gives up, and the exit code that a script reads.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// Whose mistake it was, which is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The command line or the configuration is wrong: exit code 2.
    Usage,
    /// Anything else: exit code 1.
    Runtime,
}

/// Why the program stops, in three sentences: what happened, what it means, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: FailureKind,
    happened: String,
    means: Option<String>,
    advice: Option<String>,
}

impl Failure {
    /// A mistake in the command line or the configuration.
    pub fn usage(happened: impl fmt::Display) -> Self {
        Self { kind: FailureKind::Usage, happened: happened.to_string(), means: None, advice: None }
    }

    /// Something that went wrong on the way.
    pub fn runtime(happened: impl fmt::Display) -> Self {
        Self { kind: FailureKind::Runtime, ..Self::usage(happened) }
    }

    /// Says what it means for the person.
    #[must_use]
    pub fn means(mut self, means: impl fmt::Display) -> Self {
        self.means = Some(means.to_string());
        self
    }

    /// Says what the person can do.
    #[must_use]
    pub fn advice(mut self, advice: impl fmt::Display) -> Self {
        self.advice = Some(advice.to_string());
        self
    }

    /// Whose mistake it was.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self.kind {
            FailureKind::Usage => 2,
            FailureKind::Runtime => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.happened)?;
        if let Some(means) = &self.means {
            write!(f, "\n  so: {means}")?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "\n  try: {advice}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What `main` returns: prints the failure to standard error, if there is one.
pub fn report(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where that cannot be written (a full disk, a reader that has gone), the exit code is all that can be said.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_happened_what_it_means_and_what_to_do() {
        let failure =
            Failure::runtime("port 80 is in use").means("the entry did not start").advice("stop the other process");
        assert_eq!(
            failure.to_string(),
            "port 80 is in use\n  so: the entry did not start\n  try: stop the other process"
        );
        assert_eq!(failure.code(), 1);
        assert_eq!(Failure::usage("x").code(), 2);
    }
}
