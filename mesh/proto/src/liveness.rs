//! Whether the other end of a connection is there: two thresholds, never one. SUSPECT is quick and reversible and only stops
//! sending; to give a connection up is slow.
//!
//! Pure: what came and when is told, and what comes out is a ping to send, a suspicion, or the end of the connection.
//!
//! ```text
//!   node                                   entry
//!   Pings     ── ping, each second ──▶     anything that comes: heard
//!   GiveUp    ◀─ 5 s without a pong        idle: suspect_idle_after without a ping: SUSPECT
//!             ◀── ping, if it is still ──  busy: Watchdog: 750 ms without a packet, although asked: SUSPECT
//!                      15 s without a packet, for both: DEAD
//! ```

use std::time::Duration;

mod pings;
mod watchdog;

pub use pings::{Beat, Pings};
pub use watchdog::{Look, Watchdog};

/// How often a node sends a PING on the first connection to an entry. An entry that was killed answers the next one with a
/// stateless reset, so this bounds how long a node does not know; the cost is about 1 kbit/s each way.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How often it does so on the further connections: they fall with the first one, so they only keep a NAT binding open
/// (RFC 4787 asks for 2 minutes, routers in the field drop UDP after 30 s).
pub const PING_INTERVAL_LANE: Duration = Duration::from_secs(10);
/// How often a worker does so to its home. That a home's process has ended is known by the end of the connection; this is for one that
/// stands still, which no request waits for: it is given up after this and [`PONG_TIMEOUT`](crate::home::seeker::PONG_TIMEOUT)
/// of a home at most. It costs 1 kbit/s, both ways together.
pub const PING_INTERVAL_HOME: Duration = Duration::from_secs(2);
/// After so long without an answer to its PINGs a node gives the connection up: it is up and passes nothing.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection over which nothing at all came for so long is dead. Above [`PONG_TIMEOUT`], so that the watchdog, which says
/// why, comes first; and a node asleep for 5 s keeps its tunnel.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the entry looks at a tunnel on which requests run.
pub const WATCHDOG_INTERVAL: Duration = Duration::from_millis(250);
/// A busy tunnel from which nothing has come for so long, acknowledgements included, although PINGs were sent: suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(750);
/// An idle tunnel whose PINGs have stopped: three were missed.
pub const SUSPECT_IDLE_AFTER: Duration = Duration::from_millis(3_300);

/// An idle tunnel whose node pings so often is suspect when nothing has come for longer than this.
pub fn suspect_idle_after(ping_interval: Duration) -> Duration {
    SUSPECT_IDLE_AFTER.max(ping_interval.mul_f32(3.3))
}
