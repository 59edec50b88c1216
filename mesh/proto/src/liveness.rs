//! Whether the other end of a connection is there: two thresholds, never one. SUSPECT is quick and reversible and only stops
//! sending; to give a connection up is slow.
//!
//! Pure: what came and when is told, and what comes out is a ping to send, a suspicion, or the end of the connection.

mod pings;

pub use pings::{Beat, Pings};
