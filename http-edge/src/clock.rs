//! The clocks of this binary: the only place that reads one.

#![allow(clippy::disallowed_methods, reason = "this is the place")]

use std::time::Duration;

use hedgerow_proto::clock::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now, on a clock that runs on while the machine is suspended (`CLOCK_BOOTTIME`), as the registry needs it. The origin is
/// the machine's start: nobody outside of this process can use it.
pub(crate) fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time::from_origin(Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0)))
}

/// Milliseconds since the Unix epoch, by the wall clock: for answers that have to name a time. Nothing is decided by it.
pub(crate) fn unix_now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
