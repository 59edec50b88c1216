//! The one place of this crate that reads a clock.

use std::time::Duration;

use hedgerow_proto::clock::Time;

/// A clock that runs on while the machine is suspended, and that knows for how long it was.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Time;
    /// For how long the machine has been suspended since it booted.
    fn suspended(&self) -> Duration;
}

/// The system's: `CLOCK_BOOTTIME` where there is one. Elsewhere the monotonic clock, which may stand still while the
/// machine is suspended: leases of others then last longer by that time, and renew themselves or run out after it.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Clock for SystemClock {
    fn now(&self) -> Time {
        Time::from_origin(read(rustix::time::ClockId::Boottime))
    }

    fn suspended(&self) -> Duration {
        // In this order, so that the difference is never more than it is.
        let boot = read(rustix::time::ClockId::Boottime);
        boot.saturating_sub(read(rustix::time::ClockId::Monotonic))
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn read(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    // Both clocks count up from zero.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Clock for SystemClock {
    fn now(&self) -> Time {
        static ORIGIN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        Time::from_origin(ORIGIN.get_or_init(std::time::Instant::now).elapsed())
    }

    fn suspended(&self) -> Duration {
        Duration::ZERO
    }
}
