//! The tunnel's two ends against each other: exchanges over memory, tunnels over real QUIC on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod common;
mod exchanges;
mod tunnels;
