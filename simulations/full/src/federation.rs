//! A simulated federation: nodes made of the product's parts, and what a plan does to them.
//!
//! ```text
//!  world    the course of a run: who joins when, which fault begins and ends, what is measured
//!  node     one node: the product's membership over a data directory, a clock and a host of the simulation
//!  entry    one entry: the product's, without sockets
//!  hostile  a coordinator that keeps no rule
//!  service  what the nodes offer, on their machines, by hyper
//!  clients  ask, by hyper
//!  changes  agents of the existing contract that come and go
//!  evidence what was asked, what ran, what was answered
//!  process  what can be stopped, slowed and killed
//! ```

mod changes;
mod clients;
mod clock;
mod entry;
mod evidence;
mod hostile;
mod node;
mod process;
mod service;
mod world;

pub use node::NodeError;
pub use process::Process;
pub use world::{Outcome, Settings, run};
