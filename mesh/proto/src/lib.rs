//! The pure core of Hedgerow: what a node is, what it may say, and how what was said is joined.
//!
//! Nothing here does I/O, reads a clock or draws randomness of its own: every state machine is a function of
//! `(now, input)`, so that the same code runs in the binaries and, deterministically, in the simulation.

pub mod appointment;
pub mod attempts;
pub mod backoff;
pub mod clock;
pub mod election;
pub mod frame;
pub mod home;
pub mod id;
pub mod key;
pub mod limits;
pub mod liveness;
pub mod members;
pub mod mutation;
pub mod offers;
pub mod own;
pub mod peer;
pub mod peering;
pub mod record;
pub mod registry;
pub mod replica;
pub mod retry;
pub mod route;
pub mod scope;
pub mod shortcuts;
pub mod snapshot;
pub mod sync;
pub mod wire;
