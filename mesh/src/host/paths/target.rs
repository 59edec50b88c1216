//! What an address of a WebSocket says, as far as a dialler needs it.

use std::net::{IpAddr, SocketAddr};

use super::Security;
use crate::host::{Multiaddr, Protocol};

/// Where to dial, and what to ask for there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) security: Security,
    /// The name in the certificate, where it is not the host's.
    pub(super) sni: Option<String>,
    /// It begins with a slash.
    pub(super) path: String,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// By its address.
    Address(IpAddr),
    /// By a name, of which addresses of this family count.
    Name(String, Family),
}

/// Which addresses of a name count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    V4,
    V6,
}

impl Family {
    pub(super) fn has(self, address: &SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

impl Target {
    /// Of an address of a WebSocket over TCP, in any of the spellings that are about: `…/x-parity-wss/{path}`, `…/tls/x-parity-ws/{path}`,
    /// `…/tls/sni/{name}/ws`, `…/tls/ws/http-path/{path}`. `None` for every other address.
    pub(super) fn of(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).peekable();
        let host = match parts.next()? {
            Protocol::Ip4(v4) => Host::Address(v4.into()),
            Protocol::Ip6(v6) => Host::Address(v6.into()),
            Protocol::Dns(name) => Host::Name(name.into_owned(), Family::Any),
            Protocol::Dns4(name) => Host::Name(name.into_owned(), Family::V4),
            Protocol::Dns6(name) => Host::Name(name.into_owned(), Family::V6),
            _ => return None,
        };
        let Protocol::Tcp(port) = parts.next()? else { return None };
        let mut security = Security::Plain;
        let mut sni = None;
        if parts.next_if(|part| matches!(part, Protocol::Tls)).is_some() {
            security = Security::Tls;
            if let Some(Protocol::Sni(name)) = parts.next_if(|part| matches!(part, Protocol::Sni(_))) {
                sni = Some(name.into_owned());
            }
        }
        let mut path = match parts.next()? {
            Protocol::Ws(path) => path.into_owned(),
            Protocol::Wss(path) => {
                security = Security::Tls;
                path.into_owned()
            }
            _ => return None,
        };
        if let Some(Protocol::HttpPath(more)) = parts.next_if(|part| matches!(part, Protocol::HttpPath(_))) {
            path = more.into_owned();
        }
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        parts.next().is_none().then_some(Self { host, port, security, sni, path })
    }

    /// The name that a certificate must be for.
    pub(super) fn name(&self) -> String {
        match (&self.sni, &self.host) {
            (Some(name), _) | (None, Host::Name(name, _)) => name.clone(),
            (None, Host::Address(address)) => address.to_string(),
        }
    }

    /// As a URL.
    pub(super) fn url(&self) -> String {
        let scheme = match self.security {
            Security::Plain => "ws",
            Security::Tls => "wss",
        };
        let host = match &self.host {
            Host::Address(IpAddr::V6(v6)) => format!("[{v6}]"),
            Host::Address(address) => address.to_string(),
            Host::Name(name, _) => name.clone(),
        };
        format!("{scheme}://{host}:{}{}", self.port, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_websocket_is_read() {
        let peer = "/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";
        for (address, url, name) in [
            ("/dns/a.org/tcp/443/x-parity-wss/%2Fmesh%2Fpeer%2Fff", "wss://a.org:443/mesh/peer/ff", "a.org"),
            ("/dns4/a.org/tcp/443/tls/x-parity-ws/%2Fmesh%2Fpeer%2Fff", "wss://a.org:443/mesh/peer/ff", "a.org"),
            ("/ip4/192.0.2.1/tcp/443/tls/sni/a.org/ws", "wss://192.0.2.1:443/", "a.org"),
            ("/dns6/a.org/tcp/443/tls/ws/http-path/mesh%2Fpeer%2Fff", "wss://a.org:443/mesh/peer/ff", "a.org"),
            ("/ip6/::1/tcp/80/ws", "ws://[::1]:80/", "::1"),
            (
                "/ip4/127.0.0.1/tcp/8080/x-parity-ws/%2Fmesh%2Fpeer%2Fff",
                "ws://127.0.0.1:8080/mesh/peer/ff",
                "127.0.0.1",
            ),
        ] {
            for address in [address.to_owned(), format!("{address}{peer}")] {
                let target = Target::of(&address.parse().unwrap()).unwrap_or_else(|| panic!("{address}"));
                assert_eq!((target.url(), target.name()), (url.to_owned(), name.to_owned()), "{address}");
            }
        }
    }

    #[test]
    fn what_is_no_websocket_is_left_to_others() {
        for address in [
            "/ip4/192.0.2.1/tcp/4001",
            "/ip4/192.0.2.1/udp/4001/quic-v1",
            "/ip4/192.0.2.1/udp/4001/ws",
            "/ip4/192.0.2.1/tcp/4001/tls",
            "/ip4/192.0.2.1/tcp/4001/ws/p2p-circuit",
            "/dnsaddr/a.org/tcp/443/wss",
            "/x-parity-ws/%2Fmesh%2Fpeer",
        ] {
            assert_eq!(Target::of(&address.parse().unwrap()), None, "{address}");
        }
    }
}
