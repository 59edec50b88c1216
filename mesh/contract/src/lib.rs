//! The HTTP contract that existing agents and clients speak, as pure functions: nothing here does I/O, reads a clock or
//! draws randomness of its own. Entries and coordinators share it.
//!
//! ```text
//!  method, path ──▶ endpoint ──▶ Call ──┬─ reads ───────────────▶ views(registry, desk?) ──▶ JSON
//!                                       └─ writes: request(body) ──▶ Desk(now, registry) ──▶ answer, and what to sign
//! ```
//!
//! Requests to services are routed by `hedgerow_proto::route`. Every error is a [`ContractError`].

pub mod assign;
pub mod catalogue;
pub mod desk;
pub mod endpoint;
pub mod request;
pub mod url;
pub mod views;

mod error;
mod guest;
mod worker_id;

pub use catalogue::Catalogue;
pub use desk::{Desk, DeskConfig};
pub use endpoint::{Call, endpoint};
pub use error::ContractError;
pub use views::Views;
pub use worker_id::{WorkerId, WorkerIdError};

/// Between a coordinator and an entry alone: what the coordinator has signed about the worker of the call, in base64 (RFC 4648,
/// section 4). The entry takes it into its registry, so that the next call finds it, and passes it on to nobody.
pub const RECORDS_HEADER: &str = "x-hedgerow-record";
