//! Why a guest gets no requests: in words that anybody may read, so without its address.

use hedgerow_contract::url::NotRoutable;

/// Why a guest is not routable. The texts continue a sentence about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum WhyNot {
    /// Nobody vouches for it now.
    #[error("the coordinator that speaks for it is not there")]
    CoordinatorAway,
    /// By what its coordinator says.
    #[error("its heartbeats say that it is not well, or are overdue")]
    Degraded,
    /// Its URL is none that anybody could be asked at, or none that the operator allows.
    #[error(transparent)]
    Url(#[from] NotRoutable),
    /// Whoever registers many must not take everybody's room.
    #[error(
        "there are as many routes to URLs here as there may be: in all, for its coordinator, or for its URL's host"
    )]
    NoRoom,
    /// It will be.
    #[error("its URL has not been probed yet")]
    NotProbed,
    /// There is no connection.
    #[error("its URL cannot be reached: {0}")]
    Unreachable(#[from] Unreachable),
    /// It answers, and not well.
    #[error("GET /health at its URL is answered with status {0}, and not with success")]
    Unhealthy(u16),
    /// It takes a connection, and no more.
    #[error("GET /health at its URL is not answered in time")]
    Silent,
    /// It speaks something else.
    #[error("GET /health at its URL is not answered in HTTP/1.1")]
    NoHttp,
}

/// Why there is no connection to a host. What the system says of it may hold addresses and names, and is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Unreachable {
    /// No address.
    #[error("its host name does not resolve")]
    Unresolved,
    /// One address that is not is enough.
    #[error("its host name resolves to an address that is not public")]
    NotPublic,
    /// Refused, or no way there.
    #[error("it takes no connection")]
    NoConnection,
    /// For another name, by nobody whom browsers trust, or out of date.
    #[error("it has no certificate that the world trusts for its name")]
    Certificate,
    /// The handshake failed otherwise.
    #[error("it does not speak TLS as it should")]
    Tls,
    /// Each address has 2 s, and all together 5 s.
    #[error("connecting takes too long")]
    TooSlow,
}
