//! The URL that a guest has registered, and whether it may be a route at all: what can be said without asking anybody.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use http::uri::PathAndQuery;
use rustls::pki_types::ServerName;

/// Where the services of a guest are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestUrl {
    pub(crate) scheme: GuestScheme,
    /// In lower case; an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What stands in front of every path there; empty, or `/…` without a slash at its end.
    pub(crate) base: String,
}

/// How a guest is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestScheme {
    /// Only where the operator allows private URLs.
    Http,
    Https,
}

impl GuestScheme {
    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Why a URL is none that anybody could be asked at, or none that the operator allows.
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
    #[error("its URL's host is under none of the suffixes that this entry's operator allows (--url-suffix)")]
    Host,
}

/// The longest host name (RFC 1035 §3.1, as text).
const HOST_BYTES_MAX: usize = 253;

impl FromStr for GuestUrl {
    type Err = UrlRefused;
    fn from_str(text: &str) -> Result<Self, UrlRefused> {
        if text.is_empty() {
            return Err(UrlRefused::None);
        }
        if text.contains(['#', '?', '@']) {
            return Err(UrlRefused::Extras);
        }
        let uri: Uri = text.parse().map_err(|_| UrlRefused::Malformed)?;
        let scheme = match uri.scheme_str() {
            Some("http") => GuestScheme::Http,
            Some("https") => GuestScheme::Https,
            _ => return Err(UrlRefused::Malformed),
        };
        let authority = uri.authority().ok_or(UrlRefused::Malformed)?;
        let host = host(authority.host()).ok_or(UrlRefused::Malformed)?;
        // What stands behind the host, so that a port which is none is not taken for none said.
        let port = match authority.as_str().get(authority.host().len()..).unwrap_or_default() {
            "" => scheme.port(),
            port => {
                let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
                let number = digits.and_then(|digits| digits.parse().ok());
                number.filter(|port| *port != 0).ok_or(UrlRefused::Malformed)?
            }
        };
        let path = uri.path_and_query().map_or("/", PathAndQuery::path);
        Ok(Self { scheme, host, port, base: path.trim_end_matches('/').to_owned() })
    }
}

/// A name of letters, digits, `-`, `_` and dots between them, or an address.
fn host(text: &str) -> Option<String> {
    if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return inside.parse::<std::net::Ipv6Addr>().ok().map(|address| address.to_string());
    }
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (text.len() <= HOST_BYTES_MAX && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

impl GuestUrl {
    /// What requests have as `Host`: with the port only where it is not the scheme's own.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.scheme.port() { host } else { format!("{host}:{}", self.port) }
    }

    /// The name that its certificate has to be for; none in the clear.
    pub(crate) fn server_name(&self) -> Result<Option<ServerName<'static>>, UrlRefused> {
        match self.scheme {
            GuestScheme::Http => Ok(None),
            GuestScheme::Https => ServerName::try_from(self.host.clone()).map(Some).map_err(|_| UrlRefused::Malformed),
        }
    }
}

/// Hosts at which guests may be: every host under a name (`.example.org`), or one (`example.org`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSuffix(String);

impl HostSuffix {
    fn takes(&self, host: &str) -> bool {
        // An address is under no name, whatever its digits look like.
        let is_name = host.parse::<IpAddr>().is_err();
        let fits = match host.strip_suffix(self.0.as_str()) {
            Some(rest) if self.0.starts_with('.') => !rest.is_empty(),
            Some(rest) => rest.is_empty(),
            None => false,
        };
        is_name && fits
    }
}

impl fmt::Display for HostSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostSuffix {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = host(text.strip_prefix('.').unwrap_or(text)).filter(|name| name.parse::<IpAddr>().is_err());
        let name = name.ok_or_else(|| {
            format!(
                "{text:?} is no suffix of host names; write one like .trycloudflare.com for all hosts under that name, or \
                 agent.example.org for that host alone"
            )
        })?;
        Ok(Self(if text.starts_with('.') { format!(".{name}") } else { name }))
    }
}

/// Which URLs may become routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UrlPolicy {
    /// Over https, at hosts under one of these names, at public addresses.
    Public(Vec<HostSuffix>),
    /// Any, in the clear too, and on this machine and its networks too: for trying it out.
    Any,
}

impl UrlPolicy {
    /// Reads what a guest has registered, and says whether it may be asked there.
    pub(crate) fn check(&self, text: &str) -> Result<GuestUrl, UrlRefused> {
        let url: GuestUrl = text.parse()?;
        if let Self::Public(suffixes) = self {
            if url.scheme != GuestScheme::Https {
                return Err(UrlRefused::NotHttps);
            }
            if !suffixes.iter().any(|suffix| suffix.takes(&url.host)) {
                return Err(UrlRefused::Host);
            }
        }
        url.server_name()?;
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public() -> UrlPolicy {
        UrlPolicy::Public([".trycloudflare.com", "one.example"].map(|text| text.parse().expect(text)).to_vec())
    }

    #[test]
    fn a_url_is_a_host_and_perhaps_a_port_and_a_path() {
        let read = |text: &str| {
            let url: GuestUrl = text.parse().expect(text);
            (url.authority(), url.port, url.base)
        };
        let is = |authority: &str, port, base: &str| (authority.to_owned(), port, base.to_owned());
        assert_eq!(read("https://Abc.TryCloudflare.com"), is("abc.trycloudflare.com", 443, ""));
        assert_eq!(read("https://abc.example:443/"), is("abc.example", 443, ""));
        assert_eq!(read("https://abc.example:8443/a/b//"), is("abc.example:8443", 8443, "/a/b"));
        assert_eq!(read("http://[::1]:8000"), is("[::1]:8000", 8000, ""));
        assert_eq!(read("http://10.0.0.1"), is("10.0.0.1", 80, ""));
    }

    #[test]
    fn nonsense_is_told_from_what_is_missing() {
        assert_eq!("".parse::<GuestUrl>(), Err(UrlRefused::None));
        for bad in [
            "http://:8000",
            "abc.example",
            "ftp://abc.example",
            "https://",
            "https:///x",
            "https://a..b",
            "https://abc.example.",
            "https://abc.example:0",
            "https://abc.example:70000",
            "https://abc.example:",
            "https://abc.example:+1",
            "https://a b",
            "https://ä.example",
            "https://%31.example",
            "https://[fe80::1%25eth0]",
            "/",
            "*",
        ] {
            assert_eq!(bad.parse::<GuestUrl>(), Err(UrlRefused::Malformed), "{bad}");
        }
        for bad in ["https://u:p@abc.example", "https://abc.example/?q", "https://abc.example#f"] {
            assert_eq!(bad.parse::<GuestUrl>(), Err(UrlRefused::Extras), "{bad}");
        }
    }

    #[test]
    fn only_hosts_that_the_operator_named_are_asked() {
        let policy = public();
        for good in ["https://abc.trycloudflare.com", "https://a.b.TRYCLOUDFLARE.com/x", "https://one.example:8443"] {
            assert!(policy.check(good).is_ok(), "{good}");
        }
        for bad in [
            "https://trycloudflare.com",
            "https://eviltrycloudflare.com",
            "https://abc.trycloudflare.com.evil.example",
            "https://two.one.example",
            "https://localhost",
            "https://127.0.0.1",
            "https://[::1]",
            "https://169.254.169.254",
        ] {
            assert_eq!(policy.check(bad), Err(UrlRefused::Host), "{bad}");
        }
        assert_eq!(policy.check("http://abc.trycloudflare.com"), Err(UrlRefused::NotHttps));
        assert_eq!(policy.check("http://:8000"), Err(UrlRefused::Malformed));
    }

    #[test]
    fn for_trying_it_out_any_url_is_asked() {
        for good in ["http://127.0.0.1:8000", "https://localhost:8443/base", "http://[::1]:1"] {
            assert!(UrlPolicy::Any.check(good).is_ok(), "{good}");
        }
        assert_eq!(UrlPolicy::Any.check("http://:8000"), Err(UrlRefused::Malformed));
    }

    #[test]
    fn a_suffix_is_a_name_with_a_dot_in_front_or_a_host() {
        for bad in ["", ".", "..com", "https://a.example", "a b", "*.example.org", "10.0.0.1", ".0.0.1."] {
            assert!(bad.parse::<HostSuffix>().is_err(), "{bad}");
        }
        assert_eq!(".Example.ORG".parse::<HostSuffix>().map(|suffix| suffix.to_string()), Ok(".example.org".into()));
    }
}
