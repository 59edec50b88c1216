//! Routing and forwarding of HTTP requests down tunnels: what the entry and the node's LAN port share.
//!
//! ```text
//! request ─▶ target  ─▶ Directory::find ─▶ BalancingPolicy ─▶ exchange down a tunnel ─▶ answer
//!            (parse)    (who offers it)    (two choices)   ▲      │ REFUSE, break, no ACCEPT
//!                                                          └──────┘ hedgerow_proto::attempts decides
//! ```
//!
//! A [`Forwarder`] belongs to one thread: it lives inside a `tokio::task::LocalSet` on a current-thread runtime, and its
//! pool of streams is shared with nobody. What threads share are [`Tunnel`](hedgerow_tunnel::Tunnel)s and [`Load`]s. To
//! use it:
//!
//! 1. implement [`Directory`]: who offers what, from an immutable snapshot;
//! 2. make one `Forwarder` per thread, and one [`Peer`] per client connection;
//! 3. hand every request for which [`is_routed`] holds to [`Forwarder::forward`], from a hyper server that serves
//!    connections `with_upgrades()`, HTTP/1.1 or HTTP/2. It never fails: errors are [`Problem`]s.
//!
//! [`ResponseBody`] carries a caller's own answers too. What is not done here: HTTP/2's extended CONNECT (RFC 8441) is
//! answered 501, and time-outs and limits of a request's head are the server's.

mod attempt;
mod balance;
mod body;
mod clock;
mod config;
mod connection;
mod cors;
mod forward;
mod headers;
mod pool;
mod problem;
mod stats;
mod target;
mod texts;
mod upgrade;

pub use balance::{Candidate, Directory, Load, Loads, Offer};
pub use body::{BodyError, RequestBody, ResponseBody};
pub use clock::now;
pub use config::{ForwardConfig, Peer, Scheme};
pub use cors::{AllowOrigin, Cors};
pub use forward::Forwarder;
pub use headers::{X_REQUEST_ID, request_id};
pub use problem::{ForwardError, Problem};
pub use stats::{LATENCY_BUCKETS, Stats, StatsSnapshot};
pub use target::{check_form, is_routed};
