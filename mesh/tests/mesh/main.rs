//! The mesh as coordinators see it: real hosts on loopback, among themselves, with stock libp2p peers, and with peers that
//! mean no good.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod by_entry;
mod common;
mod convergence;
mod flood;
mod heartbeat;
mod homes;
mod hostile;
mod relays;
mod stock;
