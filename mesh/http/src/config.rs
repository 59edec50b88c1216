//! Limits and times of forwarding, each with its reason, and what is known of a client's connection.

use std::net::IpAddr;
use std::time::Duration;

use hedgerow_proto::attempts::AttemptLimits;
use http::HeaderValue;

use crate::cors::Cors;

/// How requests are forwarded. The defaults are what the binaries use.
#[derive(Debug, Clone)]
pub struct ForwardConfig {
    /// `Host` for services whose own authority their node has not told in its handshake: under `localhost` practically
    /// every local service answers, those that guard against DNS rebinding included. What the client asked for
    /// stands in `X-Forwarded-Host`.
    pub service_host: HeaderValue,
    /// Times and bounds of one request's attempts; [`AttemptLimits::queued_max`] is for this thread.
    pub attempts: AttemptLimits,
    /// How much of a request's body is kept to be sent again, in bytes, and read before ACCEPT.
    pub replay_bytes_max: usize,
    /// Answers with a `Content-Length` up to this are held until they are whole, in bytes, so that a break within
    /// them can still be mended.
    pub held_answer_bytes_max: u64,
    /// The longest request body in bytes; longer ones are answered 413. `None`: no limit, since nothing here
    /// buffers them.
    pub body_bytes_max: Option<u64>,
    /// Idle streams kept for one tunnel, on this thread: as many as may be busy at once, since each beyond it is opened and thrown
    /// away for a single request.
    pub idle_streams_max: usize,
    /// An idle stream is closed after this long: it costs both ends some memory.
    pub idle_stream_timeout: Duration,
    /// After one side of an upgraded connection has ended, how long the other may go on.
    pub upgrade_linger: Duration,
    /// What browsers of other origins may do.
    pub cors: Cors,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            service_host: HeaderValue::from_static("localhost"),
            attempts: AttemptLimits::PRODUCTION,
            replay_bytes_max: 1024 * 1024,
            held_answer_bytes_max: 64 * 1024,
            body_bytes_max: None,
            idle_streams_max: 256,
            idle_stream_timeout: Duration::from_secs(60),
            upgrade_linger: Duration::from_secs(10),
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

    /// Whether it is a proxy of the operator's own.
    pub fn is_trusted_proxy(&self) -> bool {
        self.trusted
    }

    /// A proxy of the operator's own: what it says of the client is kept, and continued.
    pub fn trusted_proxy(address: IpAddr, scheme: Scheme) -> Self {
        Self { trusted: true, ..Self::client(address, scheme) }
    }
}
