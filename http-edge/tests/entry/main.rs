//! The real binary, from outside: real sockets, real tunnels, and clients that do not keep the rules.

#![allow(clippy::unwrap_used, reason = "helpers of tests: clippy knows only the tests themselves")]

mod agent;
mod bad_input;
mod common;
mod life;
mod mesh_peer;
mod node;
mod over_tcp;
mod routing;
mod starting;
mod tls;
mod urls;
