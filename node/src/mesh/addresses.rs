//! Which of its addresses a node tells others: those that can mean something to whoever the entry serves.

use std::net::IpAddr;

use hedgerow_mesh::host::{Multiaddr, Protocol};

use crate::bootstrap::is_near;

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Reach {
    /// This machine.
    #[default]
    Machine,
    /// Its network: private and link-local addresses.
    Network,
    /// The world.
    World,
}

impl Reach {
    /// How far this address reaches.
    pub fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        match address {
            _ if address.is_loopback() => Self::Machine,
            _ if is_near(address) => Self::Network,
            _ => Self::World,
        }
    }

    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Network => "network",
            Self::World => "world",
        }
    }

    /// What [`Reach::word`] said.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Machine, Self::Network, Self::World].into_iter().find(|reach| reach.word() == word)
    }
}

/// The addresses worth telling in a federation whose entry is this far away: over an entry of the world come nodes from all
/// over, to whom `192.168.1.7` is somebody else's printer. Those that reach farthest come first.
pub fn worth_telling(listening: &[Multiaddr], entry: Reach) -> Vec<Multiaddr> {
    let mut told: Vec<(Reach, &Multiaddr)> = listening
        .iter()
        .filter_map(|address| Some((Reach::of(ip(address)?), address)))
        .filter(|(reach, _)| *reach >= entry)
        .collect();
    told.sort_by_key(|(reach, _)| std::cmp::Reverse(*reach));
    told.into_iter().map(|(_, address)| address.clone()).collect()
}

/// The IP address that a multiaddr begins with.
fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_dialled_from_where_the_entry_is_is_told() {
        let all: Vec<Multiaddr> = [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/192.168.1.7/tcp/1",
            "/ip4/93.184.215.14/tcp/1",
            "/ip6/::1/udp/1/quic-v1",
            "/ip6/fe80::1/udp/1/quic-v1",
            "/dns4/example.org/tcp/1",
        ]
        .map(|address| address.parse().unwrap())
        .into();
        let told = |entry| worth_telling(&all, entry).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(Reach::World), ["/ip4/93.184.215.14/tcp/1"]);
        assert_eq!(
            told(Reach::Network),
            ["/ip4/93.184.215.14/tcp/1", "/ip4/192.168.1.7/tcp/1", "/ip6/fe80::1/udp/1/quic-v1"]
        );
        assert_eq!(told(Reach::Machine).len(), 5);
    }
}
