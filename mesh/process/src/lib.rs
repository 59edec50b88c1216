//! The shell round both binaries: what `hedgerow-entry` and `hedgerow-node` must do in the same way, so that scripts and
//! people need to learn it once. Command line, configuration file, logs, ready file, signals, last words; files
//! that survive a crash, and how often a trouble is told of.
//!
//! Nothing about tunnels or HTTP lives here.

pub mod cli;
pub mod config;
pub mod durable;
pub mod exit;
pub mod key_file;
pub mod logging;
pub mod patience;
pub mod ready_file;
pub mod shutdown;
