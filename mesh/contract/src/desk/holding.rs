//! One worker at the desk: what was said of it, and what has been heard since.

use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::record::{Body, Guest, GuestDetails, GuestStatus};

use super::handover::Contest;
use super::{DeskConfig, Wake};
use crate::request::Heartbeat;
use crate::worker_id::WorkerId;

/// A load that has moved by so many points is worth a record: whoever balances by it makes no finer difference.
pub const LOAD_MOVED_POINTS: u8 = 25;
/// A record for the load's sake comes at most this often: it goes to every coordinator and entry.
pub const LOAD_SAID_EVERY: Duration = Duration::from_secs(30);

/// What a desk has seen of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// When it registered, or came to this desk.
    pub since: Time,
    /// When it was heard of last; where that was before it came to this desk, when it came.
    pub heard_at: Time,
    /// How busy it said it is, in hundredths.
    pub load_percent: u8,
}

#[derive(Debug, Clone)]
pub(super) struct Holding {
    /// What was said of it last.
    pub(super) details: GuestDetails,
    /// When that was.
    said_at: Time,
    /// When it came.
    since: Time,
    /// From when its silence counts.
    alive_at: Time,
    /// When it was really heard of at this desk, if it was.
    pub(super) heard_at: Option<Time>,
    load_percent: u8,
    /// While another coordinator speaks for it too.
    pub(super) contest: Option<Contest>,
}

impl Holding {
    /// One that was heard of just now.
    pub(super) fn heard(now: Time, details: GuestDetails) -> Self {
        Self { heard_at: Some(now), ..Self::taken(now, details) }
    }

    /// One of which others have told.
    pub(super) fn taken(now: Time, details: GuestDetails) -> Self {
        let load_percent = details.load_percent;
        Self { details, said_at: now, since: now, alive_at: now, heard_at: None, load_percent, contest: None }
    }

    pub(super) fn seen(&self) -> Seen {
        Seen { since: self.since, heard_at: self.alive_at, load_percent: self.load_percent }
    }

    pub(super) fn silent_for(&self, now: Time) -> Duration {
        now.since(self.alive_at)
    }

    /// Notes a heartbeat. Returns whether it is worth a record.
    pub(super) fn hear(&mut self, now: Time, heartbeat: &Heartbeat) -> bool {
        self.alive_at = now;
        self.heard_at = Some(now);
        self.load_percent = heartbeat.load_percent.unwrap_or(self.load_percent);
        let moved = self.load_percent.abs_diff(self.details.load_percent) >= LOAD_MOVED_POINTS;
        self.set_status(heartbeat.status) || (moved && now.since(self.said_at) >= LOAD_SAID_EVERY)
    }

    /// Returns whether it was another before.
    pub(super) fn set_status(&mut self, status: GuestStatus) -> bool {
        std::mem::replace(&mut self.details.status, status) != status
    }

    /// What to say of it.
    pub(super) fn say(&mut self, now: Time, worker_id: &WorkerId) -> Body {
        self.said_at = now;
        self.details.load_percent = self.load_percent;
        Body::Guest(Guest { worker_id: worker_id.to_string(), details: self.details.clone() })
    }

    /// Its silence up to now does not count.
    pub(super) fn spare(&mut self, now: Time) {
        self.alive_at = now;
        if let Some(contest) = &mut self.contest {
            contest.begin_again(now);
        }
    }

    pub(super) fn next_wake(&self, config: &DeskConfig) -> (Time, Wake) {
        let gone = (self.alive_at + config.worker_timeout, Wake::WorkerTimesOut);
        let overdue = (self.alive_at + config.heartbeat_timeout, Wake::HeartbeatOverdue);
        let overdue = (self.details.status == GuestStatus::Healthy).then_some(overdue);
        let decide_at = self.contest.as_ref().and_then(|contest| contest.decide_at);
        let contest = decide_at.map(|at| (at, Wake::HandoverDecided));
        [overdue, contest].into_iter().flatten().fold(gone, |first, other| first.min(other))
    }
}
