//! What was measured while the script was played.

use std::time::Duration;

use serde::Serialize;

use super::verdict::as_milliseconds;

/// When things happened, from the beginning of the traffic, and how long it took to recover from them.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    /// A worker was killed.
    pub(super) worker_killed: Duration,
    /// The entry was killed.
    pub(super) entry_killed: Duration,
    /// The entry listened again.
    pub(super) entry_listened: Duration,
    /// All living nodes were back at the entry.
    pub(super) nodes_were_back: Duration,
    /// The entry had the way to the agent again.
    pub(super) agent_was_back: Duration,
    /// From the entry's second start to the first request that was answered by a service.
    pub(super) first_route: Duration,
    /// From the entry's second start until every living node had dialled back.
    pub(super) all_back: Duration,
    /// From the second start of the killed worker and coordinator until both were in again.
    pub(super) rejoined: Duration,
    /// The paused coordinator.
    pub(super) catching_up: CatchingUp,
    /// The killed coordinator.
    pub(super) rehoming: Rehoming,
    /// The agent.
    pub(super) agent: AgentMarks,
    /// The registry at the end.
    pub(super) agreement: Agreement,
}

/// A coordinator was paused, and so cut off from everybody, while the registry changed.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct CatchingUp {
    /// Which.
    pub(super) coordinator: String,
    /// For how long.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) paused: Duration,
    /// Whether the others' registry had another digest by the end of the pause.
    pub(super) missed_something: bool,
    /// From the end of the pause until it had the same digest as all other coordinators.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) took: Duration,
}

/// A coordinator that was home to workers was killed.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Rehoming {
    /// Which.
    pub(super) coordinator: String,
    /// To how many workers it was home.
    pub(super) workers: usize,
    /// From its end until the last of them was at home with another.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) took: Duration,
    /// From its end until the other coordinators had equal digests again, and other ones than before.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) agreed: Duration,
}

/// An agent of the existing contract came, served, and went.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct AgentMarks {
    /// The id that it registered under.
    pub(super) worker_id: String,
    /// What it was assigned.
    pub(super) services: Vec<String>,
    /// From its start until a client that looked for its service by the contract was sent to it.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) found: Duration,
    /// From its start to the first request that it answered through the entry.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) first_answer: Duration,
    /// From the entry's second start until it answered through the entry again.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) back: Duration,
    /// Requests that reached it, by its own count.
    pub(super) requests: u64,
    /// Heartbeats that were answered with 200.
    pub(super) heartbeats: usize,
    /// Heartbeats that were answered with something else. None at all was to be had while no entry was up.
    pub(super) heartbeats_refused: usize,
    /// From its signal until nobody was sent to it any more.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) gone: Duration,
}

/// Whether all who hold the registry hold the same.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Agreement {
    /// The digest; empty if they did not come to agree.
    pub(super) digest: String,
    /// Coordinators, and the entry.
    pub(super) holders: usize,
    /// From the end of the script until all had it.
    #[serde(serialize_with = "as_milliseconds")]
    pub(super) took: Duration,
}
