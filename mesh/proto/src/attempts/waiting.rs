//! One attempt's waiting, from the moment at which the request is sent until its answer begins: what the timer is about.

use std::time::Duration;

use super::{AttemptLimits, Course};
use crate::frame::WhenFull;
use crate::retry::{Failure, Repeat};

/// How far a request's body has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upload {
    /// The service has been sent all of it, or there is none.
    pub is_sent: bool,
    /// The service waits for more of it, behind so many bytes.
    pub waits_behind: Option<u64>,
}

impl Upload {
    /// Of a request without a body.
    pub const NONE: Self = Self { is_sent: true, waits_behind: None };
}

/// What the timer's ring means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Nothing yet: it rings again after this long, unless there is an answer before.
    Again(Duration),
    /// The node should have accepted by now. Its tunnel is suspect from now on; then [`Waiting::unaccepted`].
    Silent,
    /// The attempt has failed.
    Failed(Failure),
    /// The client has stopped sending, and holds one of the service's slots: its fault, and the end.
    Stalled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until the node is suspected.
    Patience,
    /// Until it is given up.
    Accept,
    /// It has accepted: until the client has sent all, or for too long nothing behind so many bytes.
    Upload { behind: Option<u64> },
    /// The service has all of it: until it is given up.
    Answer,
}

/// Waits for one node.
#[derive(Debug, Clone)]
pub struct Waiting<'a> {
    limits: &'a AttemptLimits,
    repeat: Repeat,
    phase: Phase,
    watching: bool,
}

impl<'a> Waiting<'a> {
    /// The request has been sent to a node that is `rtt` away. The timer rings for the first time after the returned time.
    pub fn begin(course: &Course<'a>, rtt: Duration) -> (Self, Duration) {
        let in_line = match course.when_full() {
            WhenFull::Refuse => Duration::ZERO,
            WhenFull::Wait => WhenFull::IN_LINE_MAX,
        };
        let (limits, repeat) = (course.limits, course.attempts().repeat());
        let waiting = Self { limits, repeat, phase: Phase::Patience, watching: false };
        (waiting, limits.accept_patience + rtt + in_line)
    }

    /// Whether it is to be told that the tunnel is suspect ([`Waiting::suspected`]). Not before the timer's first ring, which
    /// looks too: until then nobody needs to be woken.
    pub fn is_watching(&self) -> bool {
        self.watching
    }

    /// The timer rings. `accepted`: the node's ACCEPT has come.
    pub fn rings(&mut self, accepted: bool, upload: Upload) -> Ring {
        match self.phase {
            Phase::Patience | Phase::Accept if accepted => {
                self.watching = self.repeat == Repeat::Idempotent;
                self.phase = Phase::Upload { behind: upload.waits_behind };
                // Looks again at once whether there is anything to wait for.
                Ring::Again(if upload.is_sent { Duration::ZERO } else { self.limits.body_idle_timeout })
            }
            Phase::Patience => Ring::Silent,
            Phase::Accept => Ring::Failed(Failure::Unaccepted),
            Phase::Upload { .. } if upload.is_sent => {
                self.phase = Phase::Answer;
                Ring::Again(self.limits.answer_timeout)
            }
            // As long as the client sends, or the service does not take what it sends, there is no hurry.
            Phase::Upload { behind } => {
                if upload.waits_behind.is_some() && upload.waits_behind == behind {
                    return Ring::Stalled;
                }
                self.phase = Phase::Upload { behind: upload.waits_behind };
                Ring::Again(self.limits.body_idle_timeout)
            }
            Phase::Answer => Ring::Failed(Failure::TimedOut),
        }
    }

    /// After [`Ring::Silent`]: it is left if there is somewhere to go ([`Course::may_leave`]), else the timer rings again after the
    /// returned time.
    pub fn unaccepted(&mut self, may_leave: bool) -> Result<Duration, Failure> {
        if may_leave {
            return Err(Failure::Unaccepted);
        }
        self.phase = Phase::Accept;
        Ok(self.limits.accept_timeout)
    }

    /// The tunnel is suspect, or closed, while it [watches](Self::is_watching). Whether the attempt has failed for that: else
    /// there is nowhere to go, and the node may come back, and answer.
    pub fn suspected(&mut self, may_leave: bool) -> Option<Failure> {
        if may_leave {
            return Some(Failure::Suspected);
        }
        self.watching = false;
        None
    }
}
