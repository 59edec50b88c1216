//! How long agents of the existing contract may be silent. They send heartbeats and nothing else, so a coordinator has only
//! these two thresholds to go by.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hedgerow_process::exit::Failure;

use super::Environment;

/// The contract's: loading a model takes 5 to 10 minutes, and no heartbeat comes meanwhile.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(300);
/// The contract's.
const WORKER_TIMEOUT: Duration = Duration::from_secs(600);
/// Agents send a heartbeat every 30 s: below a second, not even a test has a use for it.
const SPAN_MIN: Duration = Duration::from_secs(1);
/// Who has been silent for a day is gone: a longer time is a slip of the finger.
const SPAN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long somebody may be silent: a second to a day, such as `30s` or `5min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    fn new(duration: Duration) -> Result<Self, String> {
        if (SPAN_MIN..=SPAN_MAX).contains(&duration) {
            return Ok(Self(duration));
        }
        Err(format!("{} is not between 1s and 24h", humantime::format_duration(duration)))
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let duration = humantime::parse_duration(text)
            .map_err(|_| format!("{text:?} is no length of time; write one like 30s, 5min or 1h"))?;
        Self::new(duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// The same as older agents' variables have it: whole seconds.
struct Seconds(Span);

impl FromStr for Seconds {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().map_err(|_| format!("{text:?} is no number of seconds; write one like 300"))?;
        Span::new(Duration::from_secs(seconds)).map(Self)
    }
}

/// What one source says of the two.
pub(super) struct Said {
    pub(super) heartbeat: Option<Span>,
    pub(super) worker: Option<Span>,
}

impl Said {
    pub(super) fn by_variables(environment: &Environment<'_>) -> Result<Self, Failure> {
        let either = |ours, older| -> Result<Option<Span>, Failure> {
            match environment.value::<Span>(&[ours])? {
                None => Ok(environment.value::<Seconds>(&[older])?.map(|seconds| seconds.0)),
                ours => Ok(ours),
            }
        };
        Ok(Self {
            heartbeat: either("HEDGEROW_HEARTBEAT_TIMEOUT", "HEARTBEAT_TIMEOUT_SECONDS")?,
            worker: either("HEDGEROW_WORKER_TIMEOUT", "WORKER_TIMEOUT_SECONDS")?,
        })
    }
}

/// Both, in an order that makes sense.
pub(super) struct Timeouts {
    pub(super) heartbeat: Duration,
    pub(super) worker: Duration,
}

impl Timeouts {
    /// For each of the two, the first source that says something.
    pub(super) fn of(sources: [Said; 3]) -> Result<Self, Failure> {
        let heartbeat = sources.iter().find_map(|said| said.heartbeat).unwrap_or(Span(HEARTBEAT_TIMEOUT));
        let worker = sources.iter().find_map(|said| said.worker).unwrap_or(Span(WORKER_TIMEOUT));
        if worker < heartbeat {
            let happened =
                format!("the worker timeout of {worker} is shorter than the heartbeat timeout of {heartbeat}");
            return Err(Failure::usage(happened)
                .means("an agent would be forgotten while it still counts as well")
                .advice("give both, --worker-timeout at least as long as --heartbeat-timeout"));
        }
        Ok(Self { heartbeat: heartbeat.0, worker: worker.0 })
    }
}
