//! The forwarder between a real HTTP server in front and real HTTP services behind real tunnel ends, all in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod answers;
mod bodies;
mod failures;
mod waiting;
mod world;
