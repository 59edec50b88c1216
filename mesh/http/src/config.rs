//! Limits and times of forwarding, each with its reason, and what is known of a client's connection.

use std::net::IpAddr;
use std::time::Duration;

use hedgerow_proto::retry::RetryLimits;
use http::HeaderValue;

use crate::cors::Cors;

/// How requests are forwarded. The defaults are what the binaries use.
#[derive(Debug, Clone)]
pub struct ForwardConfig {
    /// `Host` for services whose own authority their node has not told in its handshake: under `localhost` practically
    /// every local service answers, those that guard against DNS rebinding included. What the client asked for
    /// stands in `X-Forwarded-Host`.
    pub service_host: HeaderValue,
    /// Beyond one round trip, how long a node may take to ACCEPT before its tunnel is suspected and an idempotent
    /// request goes elsewhere. Connecting to a local service takes microseconds: 300 ms is a node that is not there.
    pub accept_patience: Duration,
    /// How long to wait for ACCEPT when there is nowhere else to go: a laptop that slept a moment answers within it.
    pub accept_timeout: Duration,
    /// How long a service may take until its answer begins. Models take minutes to load and to answer.
    pub answer_timeout: Duration,
    /// How much of a request's body is kept to be sent again, in bytes, and read before ACCEPT.
    pub replay_bytes_max: usize,
    /// Answers with a `Content-Length` up to this are held until they are whole, in bytes, so that a break within
    /// them can still be mended.
    pub held_answer_bytes_max: u64,
    /// The longest request body in bytes; longer ones are answered 413. `None`: no limit, since nothing here
    /// buffers them.
    pub body_bytes_max: Option<u64>,
    /// How long a client may send nothing of a body that it has announced, while a service waits for it: it holds one of
    /// the service's slots.
    pub body_idle_timeout: Duration,
    /// How long a request may wait while all nodes are full. A model that answers one at a time in under a second
    /// so serves a few callers at once without one seeing an error.
    pub queue_timeout: Duration,
    /// How many requests may wait so, on this thread: each holds its client's connection.
    pub queued_max: usize,
    /// Waiting requests look again after up to this long (the first time much sooner), and when one ends at this process.
    pub queue_backoff_max: Duration,
    /// Idle streams kept for one tunnel, on this thread: as many as may be busy at once, since each beyond it is opened and thrown
    /// away for a single request.
    pub idle_streams_max: usize,
    /// An idle stream is closed after this long: it costs both ends some memory.
    pub idle_stream_timeout: Duration,
    /// After one side of an upgraded connection has ended, how long the other may go on.
    pub upgrade_linger: Duration,
    /// Bounds of one request's attempts.
    pub retry: RetryLimits,
    /// What browsers of other origins may do.
    pub cors: Cors,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            service_host: HeaderValue::from_static("localhost"),
            accept_patience: Duration::from_millis(300),
            accept_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(600),
            replay_bytes_max: 1024 * 1024,
            held_answer_bytes_max: 64 * 1024,
            body_bytes_max: None,
            body_idle_timeout: Duration::from_secs(60),
            queue_timeout: Duration::from_secs(2),
            queued_max: 1024,
            queue_backoff_max: Duration::from_millis(100),
            idle_streams_max: 256,
            idle_stream_timeout: Duration::from_secs(60),
            upgrade_linger: Duration::from_secs(10),
            retry: RetryLimits::PRODUCTION,
            cors: Cors::default(),
        }
    }
}

/// How the client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A client's connection: made once for it, used for each of its requests.
#[derive(Debug, Clone)]
pub struct Peer {
    pub(crate) address: HeaderValue,
    /// As `Forwarded` writes it: IPv6 in brackets and quotes (RFC 7239 §6).
    pub(crate) node: String,
    pub(crate) scheme: Scheme,
    pub(crate) trusted: bool,
}

impl Peer {
    /// A client that comes directly: what it says of forwarding is thrown away.
    pub fn client(address: IpAddr, scheme: Scheme) -> Self {
        let address = address.to_canonical();
        let node = match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        let text = address.to_string();
        let address = HeaderValue::from_str(&text).expect("an IP address is visible ASCII");
        Self { address, node, scheme, trusted: false }
    }

    /// A proxy of the operator's own: what it says of the client is kept, and continued.
    pub fn trusted_proxy(address: IpAddr, scheme: Scheme) -> Self {
        Self { trusted: true, ..Self::client(address, scheme) }
    }
}
