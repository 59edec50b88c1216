//! Ranges of addresses (RFC 4632, RFC 4291 §2.3), for the proxies that are trusted and the caps per source.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses that share the first `bits` bits with `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CidrError {
    #[error("{0:?} is no range of addresses; write one like 10.0.0.0/8, 2001:db8::/32, or a single address")]
    Form(String),
    #[error("{0} has bits set behind its prefix; the range that it lies in is {1}")]
    HostBits(String, Cidr),
}

impl Cidr {
    /// The range of this length that `address` lies in. Lengths over the address's own are cut to it.
    pub(crate) fn around(address: IpAddr, bits: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let bits = bits.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Self { address: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), bits }
            }
            IpAddr::V6(v6) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Self { address: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), bits }
            }
        }
    }

    /// What counts as one source: an IPv4 /24, an IPv6 /48. Addresses inside one of these cost their owner nothing.
    pub(crate) fn source(address: IpAddr) -> Self {
        match address.to_canonical() {
            v4 @ IpAddr::V4(_) => Self::around(v4, 24),
            v6 @ IpAddr::V6(_) => Self::around(v6, 48),
        }
    }

    /// Whether the address lies in it. IPv4 addresses in their IPv6 form count as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        Self::around(address.to_canonical(), self.bits).address == self.address
            && address.to_canonical().is_ipv4() == self.address.is_ipv4()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| form())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(longest);
        if bits > longest {
            return Err(form());
        }
        let range = Self::around(address, bits);
        if range.address == address { Ok(range) } else { Err(CidrError::HostBits(text.to_owned(), range)) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_shares_its_prefix() {
        let contains =
            |range: &str, address: &str| range.parse::<Cidr>().expect(range).contains(address.parse().expect(address));
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("2001:db8::/32", "2001:db9::1"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::1", "::1") && !contains("127.0.0.1", "127.0.0.2"));
    }

    #[test]
    fn what_is_no_range_is_said() {
        for bad in ["", "10.0.0.0/33", "10.0.0.0/x", "example.org", "::/129", "10.0.0.0/-1"] {
            assert!(matches!(bad.parse::<Cidr>(), Err(CidrError::Form(_))), "{bad}");
        }
        let error = "10.1.2.3/8".parse::<Cidr>().unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8"), "{error}");
    }

    #[test]
    fn neighbours_are_one_source() {
        let source = |address: &str| Cidr::source(address.parse().unwrap());
        assert_eq!(source("192.0.2.1"), source("192.0.2.254"));
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.9"));
        assert_ne!(source("192.0.2.1"), source("192.0.3.1"));
        assert_eq!(source("2001:db8:1::1"), source("2001:db8:1:ffff::1"));
    }
}
