//! Why a guest gets no requests: in words that anybody may read, so without its address.

use super::guest_url::UrlRefused;

/// Why a guest is not routable. The texts continue a sentence about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub(crate) enum WhyNot {
    #[error("the coordinator that speaks for it is not there")]
    CoordinatorAway,
    #[error("its heartbeats say that it is not well, or are overdue")]
    Degraded,
    #[error(transparent)]
    Url(#[from] UrlRefused),
    #[error("this entry has as many routes to URLs as it takes: in all, for its coordinator, or for its URL's host")]
    NoRoom,
    #[error("its URL has not been probed yet")]
    NotProbed,
    #[error("its URL cannot be reached: {0}")]
    Unreachable(#[from] Unreachable),
    #[error("GET /health at its URL is answered with status {0}, and not with success")]
    Unhealthy(u16),
    #[error("GET /health at its URL is not answered in time")]
    Silent,
    #[error("GET /health at its URL is not answered in HTTP/1.1")]
    NoHttp,
}

/// Why there is no connection to a host. What the system says of it may hold addresses and names, and is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("its host name does not resolve")]
    Unresolved,
    #[error("its host name resolves to an address that is not public")]
    NotPublic,
    #[error("it takes no connection")]
    NoConnection,
    #[error("it has no certificate that the world trusts for its name")]
    Certificate,
    #[error("it does not speak TLS as it should")]
    Tls,
    #[error("connecting takes too long")]
    TooSlow,
}
