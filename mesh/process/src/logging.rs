//! Logs: tracing events to standard error, as text for people or as JSON for machines. `RUST_LOG` filters; when it is not
//! set or empty, what happens is told at `info`. Standard output stays free for what a command is asked to print.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::exit::Failure;

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log. Once per process, first thing.
pub fn init(format: LogFormat) -> Result<(), Failure> {
    let filter = filter(std::env::var("RUST_LOG").ok().as_deref())?;
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        // It would say there that it cannot write there, and panic for it: a log on a full disk would end the process.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(|error| Failure::runtime(format!("the log was started already: {error}")))
}

/// libp2p tells its own story at `info`, in its own words, addresses included, and warns of what is nothing to worry about.
const DEFAULT: &str =
    "info,libp2p_swarm=warn,libp2p_mdns=warn,libp2p_gossipsub=error,libp2p_identify=error,libp2p_kad=error";

fn filter(rust_log: Option<&str>) -> Result<EnvFilter, Failure> {
    let directives = rust_log.map(str::trim).filter(|text| !text.is_empty()).unwrap_or(DEFAULT);
    EnvFilter::try_new(directives).map_err(|error| {
        Failure::usage(format!("RUST_LOG is not a log filter: {error}"))
            .advice("unset it, or write something like RUST_LOG=info,hedgerow_tunnel=debug")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_is_the_default_and_a_wrong_one_is_said() {
        let default = filter(Some(DEFAULT)).unwrap().to_string();
        assert_eq!(filter(None).unwrap().to_string(), default);
        assert_eq!(filter(Some(" ")).unwrap().to_string(), default);
        assert_eq!(filter(Some("debug")).unwrap().to_string(), "debug");
        assert!(filter(Some("hedgerow=loud")).unwrap_err().to_string().contains("RUST_LOG"));
    }
}
