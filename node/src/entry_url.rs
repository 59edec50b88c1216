//! The address of an entry as a person writes it: `https://example.org`, `http://127.0.0.1:8080`.

use std::fmt;
use std::str::FromStr;

/// How the entry is asked for its tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Anybody in between can answer: good for loopback and private addresses, or with the entry's key in hand.
    Http,
    /// The certificate says that it is the entry.
    Https,
}

/// Scheme, host and port of an entry; nothing else may be in the URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryUrl {
    /// How to ask.
    pub scheme: Scheme,
    /// A name, or an address without brackets.
    pub host: String,
    /// The port, from the URL or the scheme.
    pub port: u16,
}

/// Why a text is not the address of an entry. Says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryUrlError {
    /// No scheme: `example.org`.
    #[error("the entry's address needs http:// or https:// in front, for example https://{0}")]
    Scheme(String),
    /// Not a URL at all.
    #[error("{0:?} is not a URL; an entry is written like https://example.org")]
    Malformed(String),
    /// A path, a query, a user name.
    #[error("{0:?} has more in it than scheme, host and port; an entry is written like https://example.org")]
    Surplus(String),
}

impl EntryUrl {
    /// The host and port as they stand in a URL and a `Host` header: the scheme's own port is left out.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for EntryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl FromStr for EntryUrl {
    type Err = EntryUrlError;

    fn from_str(text: &str) -> Result<Self, EntryUrlError> {
        let malformed = || EntryUrlError::Malformed(text.to_owned());
        if !text.contains("://") {
            return Err(if text.parse::<http::uri::Authority>().is_ok() {
                EntryUrlError::Scheme(text.to_owned())
            } else {
                malformed()
            });
        }
        let uri: http::Uri = text.parse().map_err(|_| malformed())?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(malformed()),
        };
        let authority = uri.authority().ok_or_else(malformed)?;
        if authority.as_str().contains('@')
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
            || text.contains('#')
        {
            return Err(EntryUrlError::Surplus(text.to_owned()));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port_of(authority).ok_or_else(malformed)?.unwrap_or(match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        });
        if host.is_empty() { Err(malformed()) } else { Ok(Self { scheme, host, port }) }
    }
}

/// The port of an authority: `Some(None)` when it names none, `None` when what it names is not a port that can be dialled.
pub(crate) fn port_of(authority: &http::uri::Authority) -> Option<Option<u16>> {
    let behind_host =
        &authority.as_str()[authority.as_str().rfind('@').map_or(0, |at| at + 1) + authority.host().len()..];
    match behind_host.strip_prefix(':') {
        None => behind_host.is_empty().then_some(None),
        Some(digits) => digits.parse().ok().filter(|port| *port != 0).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EntryUrl, EntryUrlError> {
        text.parse()
    }

    #[test]
    fn an_entry_is_a_scheme_a_host_and_a_port() {
        let url = parse("https://example.org/").unwrap();
        assert_eq!((url.scheme, url.host.as_str(), url.port), (Scheme::Https, "example.org", 443));
        assert_eq!(url.to_string(), "https://example.org");
        let url = parse("http://[::1]:8080").unwrap();
        assert_eq!((url.scheme, url.host.as_str(), url.port), (Scheme::Http, "::1", 8080));
        assert_eq!(url.to_string(), "http://[::1]:8080");
    }

    #[test]
    fn what_is_no_entry_is_said_with_the_right_form() {
        assert!(parse("example.org").unwrap_err().to_string().contains("https://example.org"));
        for bad in ["", "https://", "ftp://x", "http://x:0", "http://x:99999", "http://x:y", "://"] {
            assert!(matches!(parse(bad), Err(EntryUrlError::Malformed(_))), "{bad:?}: {:?}", parse(bad));
        }
        for surplus in ["http://x/path", "http://me@x", "http://x/?q"] {
            assert!(matches!(parse(surplus), Err(EntryUrlError::Surplus(_))), "{surplus:?}");
        }
    }
}
