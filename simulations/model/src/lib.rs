//! What both levels of the simulation share, and nothing that runs: scenarios as files ([`scenario`]; those that come with
//! Hedgerow are in [`shipped`]), the faults of one run drawn from its seed ([`plan`]) and made fewer when a run fails ([`shrink`]),
//! how links and NATs behave ([`links`], [`nat`]), what
//! happens when ([`schedule`]), the hash of all that happened ([`trace`]), one node's view of it for people ([`narration`]), what a
//! run leaves behind ([`results`]), and runs that once failed ([`regression`]).
//!
//! Pure: no clock, no I/O, no randomness but the seed's. Virtual time is a [`std::time::Duration`] since the run began.

pub mod links;
pub mod narration;
pub mod nat;
pub mod plan;
pub mod random;
pub mod regression;
pub mod results;
pub mod scenario;
pub mod schedule;
pub mod shipped;
pub mod shrink;
pub mod span;
pub mod trace;
