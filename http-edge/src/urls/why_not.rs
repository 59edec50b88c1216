//! Why a guest gets no requests: in words that anybody may read, so without its address.

use hedgerow_contract::url::NotRoutable;

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

/// Why a URL is none that anybody could be asked at, or none that the operator allows: [`NotRoutable`] for everybody to read.
/// That one names the suffixes that are allowed, and each of them can be one volunteer's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub(crate) enum UrlRefused {
    /// Agents without a tunnel send an empty one.
    #[error("it has no URL")]
    None,
    #[error("its URL cannot be read as one")]
    Malformed,
    #[error("its URL has a user name, a query or a fragment, which have no place in it")]
    Extras,
    #[error("its URL is not https")]
    NotHttps,
    /// An address is under no suffix either.
    #[error("its URL's host is under none of the suffixes that this entry's operator allows (--url-suffix)")]
    Host,
}

impl From<NotRoutable> for UrlRefused {
    fn from(why: NotRoutable) -> Self {
        match why {
            NotRoutable::None => Self::None,
            NotRoutable::TooLong | NotRoutable::Form(_) => Self::Malformed,
            NotRoutable::Extra(_) => Self::Extras,
            NotRoutable::NotHttps => Self::NotHttps,
            NotRoutable::Address | NotRoutable::Suffix { .. } => Self::Host,
        }
    }
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

#[cfg(test)]
mod tests {
    use hedgerow_contract::url::{UrlPolicy, check};

    use super::*;

    #[test]
    fn what_anybody_may_read_names_no_host_neither_the_agents_nor_one_that_is_allowed() {
        let policy = UrlPolicy { suffixes: vec!["volunteer-1.example".parse().unwrap()], allow_private: false };
        for (url, refused) in [
            ("", UrlRefused::None),
            ("http://:8000", UrlRefused::Malformed),
            ("volunteer-2.example", UrlRefused::Malformed),
            ("https://volunteer-2.example:0", UrlRefused::Malformed),
            ("https://volunteer-2@volunteer-1.example", UrlRefused::Extras),
            ("http://volunteer-1.example", UrlRefused::NotHttps),
            ("https://volunteer-2.example", UrlRefused::Host),
            ("https://192.0.2.1", UrlRefused::Host),
        ] {
            let why_not = WhyNot::from(UrlRefused::from(check(url, &policy).unwrap_err()));
            assert_eq!(why_not, WhyNot::Url(refused), "{url}");
            let text = why_not.to_string();
            assert!(!text.contains("volunteer") && !text.contains("192.0"), "{url}: {text}");
        }
    }
}
