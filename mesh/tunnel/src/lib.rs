//! Reverse tunnels: a node dials out to an entry, and requests come back down the connection.
//!
//! ```text
//!   entry                                                node (behind a firewall)
//!   quic::listen ◀──────────── QUIC, both keys proven ── quic::dial, and where it does not come up
//!   tcp::Acceptor ◀── TLS over TCP, both keys proven ─── tcp::dial
//!   accept::welcome ── control stream: Hello ──────────▶ dial::maintain
//!                   ◀─ Join (signed record) ────────────
//!                   ── Welcome ─────────────────────────▶
//!   exchange        ── streams: OPEN, bytes, RELEASE ───▶ serve::serve_link ─▶ Services (local sockets)
//! ```
//!
//! Everything above [`link::Link`] runs over anything that gives ordered streams: QUIC ([`quic`]), TLS over TCP ([`tcp`]), memory
//! ([`memory`]), and simulated networks. No HTTP message means anything here: the entry speaks HTTP over an [`mod@exchange`], and
//! the node copies bytes.

pub mod accept;
pub mod dial;
pub mod exchange;
mod frames;
mod lanes;
pub mod link;
pub mod memory;
pub mod quic;
pub mod relays;
pub mod serve;
mod session;
pub mod slots;
mod splice;
pub mod streams;
pub mod sync;
pub mod tcp;
mod tls;
pub mod tuning;
mod watchdog;
pub mod ways;

pub use accept::{Admission, Liveness, Open, Tunnel, TunnelError, TunnelEvent, TunnelEvents, welcome};
pub use dial::{DialConfig, Directory, DrainState, Target, TunnelState, TunnelStatus, maintain, serve_over};
pub use exchange::{Breakage, Exchange, ExchangeIo, Verdict, exchange};
pub use link::{BoxStream, Link, LinkClosed, Stream, StreamReset, Transport};
pub use quic::EntryIdentity;
pub use serve::{Activity, BoxIo, Io, OpenService, Services, Slot, serve_link};
pub use ways::Way;
