//! The tunnel's two ends against each other, over memory, and over real QUIC and TCP on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod common;
mod exchanges;
mod last_words;
mod over_tcp;
mod tunnels;
