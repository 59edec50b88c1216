//! Of what kind nodes are, and what one says.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod disks;
mod nats;
mod population;
#[path = "../program/mod.rs"]
mod program;
mod trace;
