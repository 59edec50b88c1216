//! The command line: clap, with one rule added. An environment variable that is empty is one that is not set.
//!
//! Flags override the environment (clap does that), and both override the file ([`crate::config`]).

use std::ffi::OsString;

use clap::{Command, CommandFactory, Parser};

/// Parses the process's own arguments. Prints help, version and mistakes as clap does and exits (0 or 2).
pub fn parse<T: Parser>() -> T {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Parses these arguments; the first one is the program's name.
pub fn parse_from<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<T, clap::Error> {
    let mut command = without_empty_variables(T::command());
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    T::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The parser's own command, for those who want to render help.
pub fn command<T: CommandFactory>() -> Command {
    without_empty_variables(T::command())
}

fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
            if empty { arg.env(clap::builder::Resettable::Reset) } else { arg }
        })
        .mut_subcommands(without_empty_variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser, Debug)]
    struct Args {
        // Cargo sets these for every test, the second one to the empty string, since this package has no such field.
        #[arg(long, env = "CARGO_PKG_NAME")]
        name: Option<String>,
        #[arg(long, env = "CARGO_PKG_HOMEPAGE")]
        homepage: Option<String>,
    }

    fn parse(arguments: &[&str]) -> Args {
        parse_from(arguments.iter().map(OsString::from)).unwrap()
    }

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        assert_eq!(std::env::var("CARGO_PKG_HOMEPAGE").as_deref(), Ok(""), "the test needs an empty variable");
        assert_eq!(parse(&["x"]).homepage, None);
    }

    #[test]
    fn a_flag_overrides_the_environment() {
        assert_eq!(parse(&["x"]).name.as_deref(), Some("hedgerow-process"));
        assert_eq!(parse(&["x", "--name", "other"]).name.as_deref(), Some("other"));
    }
}
