//! `hedgerow-entry`: the public HTTP entry of a federation. Nodes dial in, and requests go down their tunnels.
//!
//! ```text
//!            ┌ shard 0 ─ TCP, TLS, HTTP ─ routes ─ forwarder ─┐          (one thread each, sharing no lock while
//!  clients ──┤ shard 1 ─ …                                    ├─ tunnels  a request is under way)
//!            └ shard n ─ …                                    ┘     ▲
//!  nodes ────▶ tunnels (one QUIC endpoint per shard) ──▶ federation: members and their records ──▶ routing snapshot
//!  agents ◀─── hedgerow_urls: routes to their own addresses, probed and dialled by the first thread ──▲
//! ```
//!
//! [`embedded`] is the same without sockets, for the simulation.
//!
//! It keeps nothing on disk but its key: killed and started again, it routes as soon as the first node has dialled.
//! In `main.rs` is only the order of things: parse, build, run, drain.

mod admin;
mod census;
mod cidr;
mod cli;
mod clock;
mod connection;
mod contract;
pub mod embedded;
mod federation;
mod front_door;
mod head_guard;
mod identity;
mod mesh_peer;
mod metrics;
mod routes;
mod run;
mod settings;
mod shard;
mod snapshot;
mod sockets;
mod sync;
mod tls;
mod tunnels;
mod values;
mod views;

use hedgerow_process::exit::Failure;
use hedgerow_process::{cli as arguments, logging};

/// What the binary does, from its arguments to its end.
pub fn entry() -> Result<(), Failure> {
    let settings = settings::Settings::resolve(arguments::parse::<cli::Cli>())?;
    logging::init(settings.log_format)?;
    run::run(settings)
}
