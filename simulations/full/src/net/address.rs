//! Addresses: each node has one in 10.0.0.0/8, in a /24 of its own as each home has, since who comes from one /24 shares a bound.
//!
//! Private ones, since nothing here is to be taken for a machine of the world. What the product decides by the kind of an address
//! (whom to tell of it) is decided as in a federation on a private network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use hedgerow_mesh::host::{Multiaddr, Protocol};

/// The first byte of all of them.
const TEN: u8 = 10;
/// So many /24 are there. Where there are more nodes, each has that many others in its own.
const HOMES: u32 = 1 << 16;

/// Ports of those who dial.
pub(super) const EPHEMERAL_PORTS: Range<u16> = 32768..61000;

/// The address of a node.
pub fn of(node: u32, port: u16) -> SocketAddr {
    let [_, _, high, low] = (node % HOMES).to_be_bytes();
    let in_home = u8::try_from(node / HOMES + 1).unwrap_or(u8::MAX);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(TEN, high, low, in_home)), port)
}

/// The node with this address, if it is one of ours.
pub fn node(address: SocketAddr) -> Option<u32> {
    let IpAddr::V4(address) = address.ip() else { return None };
    let [ten, high, low, in_home] = address.octets();
    let above = u32::from(in_home).checked_sub(1).filter(|_| ten == TEN)?;
    Some(above * HOMES + u32::from_be_bytes([0, 0, high, low]))
}

/// In libp2p's words.
pub fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(address.ip().into()).with(Protocol::Tcp(address.port()))
}

/// From libp2p's words: an address and a TCP port, and perhaps who is to be found there.
pub fn parse(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else { return None };
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Some(SocketAddr::new(ip.into(), port)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_node_in_both_notations() {
        for index in [0, 1, 254, 255, 256, 70_000] {
            let address = of(index, 4001);
            assert_eq!(node(address), Some(index));
            assert_eq!(parse(&multiaddr(address)), Some(address));
        }
        let [one, other] = [1, 2].map(|index| of(index, 1).ip().to_string());
        assert_eq!((one.as_str(), other.as_str()), ("10.0.1.1", "10.0.2.1"), "each in a /24 of its own");
        assert_eq!(node("192.0.2.1:4001".parse().unwrap()), None);
        assert_eq!(parse(&"/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap()), None);
        assert_eq!(parse(&"/ip4/10.0.0.1/tcp/1/ws".parse().unwrap()), None);
    }
}
