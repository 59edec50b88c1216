//! The harness: everything that runs Hedgerow's real binaries as real processes and says what they did, and the commands of the
//! simulation in virtual time.
//!
//! ```text
//! process  ─ start, watch, signal, measure one process; nothing outlives the harness
//! binaries ─ find or build what is to be run
//! service  ─ small HTTP services that keep evidence of what reached them
//! agent    ─ an agent of the existing contract, with such a service as its own HTTP
//! client   ─ one request, or a load of them, with every failure and its reason
//! federation ─ entry + nodes + services + agents as processes
//! demo, interop, bench ─ what a person runs
//! lab ─ the same binaries in network namespaces, behind routers, over lines with delay and loss
//! parity ─ one scenario in the lab and in virtual time, side by side
//! simulate ─ run, sweep, replay and plot simulations; these are in crates of their own
//! ```

pub mod agent;
pub mod bench;
pub mod binaries;
pub mod client;
pub mod demo;
pub mod federation;
pub mod guard;
pub mod interop;
pub mod lab;
pub mod parity;
pub mod process;
pub mod service;
pub mod simulate;
pub mod terminal;
