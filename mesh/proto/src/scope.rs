//! How far an address reaches: what it may mean to somebody else depends on it.

use std::net::{IpAddr, Ipv4Addr};

/// The scope of an address, as RFC 4007 has it for IPv6 and these programs need it for both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Scope {
    /// This machine.
    #[default]
    Machine,
    /// Its network: private, link-local, and a carrier's own (RFC 1918, RFC 4193, RFC 3927, RFC 4291, RFC 6598).
    Network,
    /// The world.
    World,
}

impl Scope {
    /// The scope of this address. `None`: it is nobody's, but for all (multicast, broadcast) or for none (unspecified).
    pub fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        let carriers = |v4: Ipv4Addr| v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
        match address {
            _ if address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST => None,
            _ if address.is_loopback() => Some(Self::Machine),
            _ if is_near(address) => Some(Self::Network),
            IpAddr::V4(v4) if carriers(v4) => Some(Self::Network),
            _ => Some(Self::World),
        }
    }

    /// That of the address which reaches farthest. Who has none does not get beyond this machine.
    pub fn farthest(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        addresses.into_iter().filter_map(Self::of).max().unwrap_or_default()
    }

    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Network => "network",
            Self::World => "world",
        }
    }

    /// What [`Scope::word`] said.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Machine, Self::Network, Self::World].into_iter().find(|scope| scope.word() == word)
    }
}

/// Loopback, private and link-local addresses (RFC 1918, RFC 4193, RFC 3927, RFC 4291), where nobody far away stands in between. A
/// carrier's own are not among them: all its customers are there.
pub fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reaches_as_far_as_its_registry_says() {
        let scope = |address: &str| Scope::of(address.parse().unwrap());
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(scope(here), Some(Scope::Machine), "{here}");
        }
        for near in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "fd00::1",
            "fe80::1",
        ] {
            assert_eq!(scope(near), Some(Scope::Network), "{near}");
        }
        for far in ["8.8.8.8", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert_eq!(scope(far), Some(Scope::World), "{far}");
        }
        for nobodys in ["0.0.0.0", "::", "224.0.0.251", "ff02::fb", "255.255.255.255"] {
            assert_eq!(scope(nobodys), None, "{nobodys}");
        }
    }

    #[test]
    fn nobody_far_away_is_near() {
        for near in
            ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "fd00::1", "fe80::1", "::ffff:10.0.0.1"]
        {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        for far in ["8.8.8.8", "2001:db8::1", "172.32.0.1", "::ffff:8.8.8.8", "0.0.0.0", "100.64.0.1"] {
            assert!(!is_near(far.parse().unwrap()), "{far}");
        }
    }

    #[test]
    fn the_farthest_of_none_is_here() {
        let farthest = |addresses: &[&str]| Scope::farthest(addresses.iter().map(|address| address.parse().unwrap()));
        assert_eq!(farthest(&["127.0.0.1", "192.168.1.1", "0.0.0.0"]), Scope::Network);
        assert_eq!(farthest(&[]), Scope::Machine);
    }
}
