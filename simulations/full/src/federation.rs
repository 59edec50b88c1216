//! A simulated federation: nodes made of the product's parts, and what a plan does to them.
//!
//! ```text
//!  world    the course of a run: who joins when, which fault begins and ends, what is measured
//!  node     one node: the product's membership over a data directory, a clock and a host of the simulation
//!  process  what can be stopped, slowed and killed
//! ```

mod clock;
mod node;
mod process;
mod world;

pub use node::NodeError;
pub use process::Process;
pub use world::{Outcome, Settings, SettingsError, run};
