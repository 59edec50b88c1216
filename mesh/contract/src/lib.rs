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
