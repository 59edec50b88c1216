//! The ways to a peer: at an address of its own, or by way of an entry.
//!
//! ```text
//!  this host ── direct: QUIC or TCP ─────────────────────────────────────────▶ peer
//!  this host ── WebSocket, /mesh/peer/{id} ──▶ entry ══ the peer's tunnel ══▶ peer      nobody need be able to dial it
//!               └─────────── noise and yamux, from end to end ────────────┘
//! ```
//!
//! What an entry splices is ciphertext, and whoever dials insists on the peer's key. The WebSocket is tungstenite's at both ends and
//! not libp2p's own, which would do as well: that one has no bound on a frame when it dials, so that ten bytes of a hostile server
//! cost its memory, and it brings a second TLS library with roots of its own. On the wire the two are the same.

use std::fmt;

use hedgerow_proto::id::NodeId;

use super::{Multiaddr, Protocol};

mod target;
mod transport;
mod websocket;

pub use transport::{Arrivals, At, Connect, EntryTransport, arrivals, system};

/// Where an entry has coordinators.
const PREFIX: &str = "/mesh/peer/";

/// A way to a peer, the better ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// At an address of one of the two, over QUIC.
    DirectQuic,
    /// At an address of one of the two, over TCP.
    DirectTcp,
    /// A WebSocket at an entry, and a tunnel.
    Entry,
}

impl Path {
    /// The way that leads through this address.
    pub fn of(address: &Multiaddr) -> Self {
        let mut path = Self::DirectTcp;
        for part in address {
            match part {
                Protocol::Ws(_) | Protocol::Wss(_) => return Self::Entry,
                Protocol::Udp(_) => path = Self::DirectQuic,
                _ => {}
            }
        }
        path
    }

    /// As programs read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DirectQuic => "direct-quic",
            Self::DirectTcp => "direct-tcp",
            Self::Entry => "entry",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an entry is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// In the clear: for entries of this machine or network. What passes is noise's all the same.
    Plain,
    /// Over TLS.
    Tls,
}

/// The address of a coordinator at an entry: `/dns/example.org/tcp/443/x-parity-wss/%2Fmesh%2Fpeer%2F{id}`. `host` is a name or an IP
/// address without brackets. A name may have addresses of either family.
pub fn at_entry(security: Security, host: &str, port: u16, node: NodeId) -> Multiaddr {
    let host = match host.parse() {
        Ok(std::net::IpAddr::V4(v4)) => Protocol::Ip4(v4),
        Ok(std::net::IpAddr::V6(v6)) => Protocol::Ip6(v6),
        Err(_) => Protocol::Dns(host.into()),
    };
    let path = format!("{PREFIX}{node}").into();
    let websocket = match security {
        Security::Plain => Protocol::Ws(path),
        Security::Tls => Protocol::Wss(path),
    };
    Multiaddr::empty().with(host).with(Protocol::Tcp(port)).with(websocket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_which_way_it_leads() {
        for (address, path) in [
            ("/ip4/192.0.2.1/udp/4001/quic-v1", Path::DirectQuic),
            ("/ip6/2001:db8::1/tcp/4001", Path::DirectTcp),
            ("/dns/example.org/tcp/443/wss", Path::Entry),
            ("/dns4/example.org/tcp/443/tls/ws", Path::Entry),
            ("/dns4/example.org/tcp/443/x-parity-wss/%2Fmesh%2Fpeer%2F00", Path::Entry),
        ] {
            assert_eq!(Path::of(&address.parse().unwrap()), path, "{address}");
        }
        assert!(Path::DirectQuic < Path::Entry && Path::DirectTcp < Path::Entry, "the better ones come first");
    }

    #[test]
    fn a_coordinator_has_an_address_at_each_entry_that_fits_its_record() {
        let (node, id) = (NodeId([0xab; 32]), "ab".repeat(32));
        let address = |security, host| at_entry(security, host, 443, node).to_string();
        assert_eq!(
            address(Security::Tls, "example.org"),
            format!("/dns/example.org/tcp/443/x-parity-wss/%2Fmesh%2Fpeer%2F{id}")
        );
        assert_eq!(
            address(Security::Plain, "127.0.0.1"),
            format!("/ip4/127.0.0.1/tcp/443/x-parity-ws/%2Fmesh%2Fpeer%2F{id}")
        );
        assert!(address(Security::Plain, "::1").starts_with("/ip6/::1/tcp/443/x-parity-ws/"));
        let long = address(Security::Tls, &"long-name.".repeat(12));
        assert!(long.len() <= hedgerow_proto::limits::Limits::PRODUCTION.multiaddr_bytes_max, "{}", long.len());
    }
}
