//! Homes: how a worker finds the one coordinator that holds it, and how that one holds it and says so.
//!
//! Two state machines, one for each side, and what a worker remembers of coordinators beside. Connections are the shell's:
//! a machine says what is to be done with them, and is told how that went.
//!
//! ```text
//! worker: Seeker                                                 coordinator: Roster
//!   Connect(home, addresses) ─────── a connection comes up ───▶
//!   Reached: another move is counted
//!   Join(home, home_seq) ──── its record, which says so ──────▶  admit; arrived: Meet, Take, Say(Attached, home_seq), Tell
//!   Settled ◀────────────────────────── the first pong ───────
//!     ⋮        ◀── signed records of others (Tell): Hints ─────    whenever the coordinators change
//!   Leave ◀─ 3 s without a pong, or the connection's end ─────▶  ended: Part … 5 s … Say(Detached, home_seq)
//!   Connect(the next one)
//! ```
//!
//! How silence is noticed is [`crate::liveness::Pings`], with [`seeker::PONG_TIMEOUT`].

pub mod hints;
pub mod roster;
pub mod seeker;
pub mod telling;

pub use hints::{Hints, Told};
pub use roster::Roster;
pub use seeker::Seeker;

#[cfg(test)]
mod tests;
