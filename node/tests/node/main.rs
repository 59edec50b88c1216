//! The real binary against an entry and services that the test plays: real sockets, real tunnels, real signals.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot set its scene up has failed")]

mod command_line;
mod deploy;
mod disk;
mod entries;
mod entry;
mod hardware;
mod leaving;
mod process;
mod registry;
mod service;
mod serving;
