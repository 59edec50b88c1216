//! Which addresses belong to the public internet: those that no registry of special purposes claims (RFC 6890, and what IANA's
//! registries of special-purpose addresses have taken in since). Nothing else may stand here.
//!
//! It decides where the entry dials for a stranger, so in doubt an address is not public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a connection to this address leaves for the public internet. An IPv6 address that carries an IPv4 address is as
/// public as that one: whoever translates it back would reach it.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        // This network; private (RFC 1918); loopback.
        (0 | 10 | 127, ..) => true,
        // Behind a provider's NAT (RFC 6598).
        (100, 64..=127, _) => true,
        // Link-local, where clouds keep their metadata.
        (169, 254, _) => true,
        (172, 16..=31, _) | (192, 168, _) => true,
        // Protocol assignments, documentation, AS112 twice, and the old anycast of 6to4.
        (192, 0, 0 | 2) | (192, 31, 196) | (192, 52, 193) | (192, 88, 99) | (192, 175, 48) => true,
        // Benchmarks; documentation.
        (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224..=255, ..) => true,
        _ => false,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let carried = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match segments {
        // IPv4-mapped (RFC 4291), and NAT64's well-known prefix (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(carried(high, low)),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => is_public_v4(carried(high, low)),
        // Protocol assignments, with Teredo (RFC 4380), benchmarks, ORCHID and AMT among them.
        [0x2001, 0x0000..=0x01ff, ..] => false,
        // Documentation (RFC 3849, RFC 9637); AS112; deprecated 6bone.
        [0x2001, 0xdb8, ..] | [0x3fff, 0x0000..=0x0fff, ..] | [0x2620, 0x4f, 0x8000, ..] | [0x3ffe, ..] => false,
        // Global unicast is what IANA gives out of 2000::/3. All else is loopback, unspecified, IPv4-compatible, local NAT64
        // (RFC 8215), discard, segment routing, unique local, link-local, site-local, multicast, or not given out.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().expect(text))
    }

    #[test]
    fn what_the_world_reaches_is_public() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "104.16.230.132",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::6810:e684",
            "2a00:1450:4001:828::200e",
            "2001:200::1",
            "2001:4860:4860::8888",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn what_is_near_or_nowhere_is_not_public() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.170",
            "192.0.2.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.88.99.1",
            "192.168.0.0",
            "192.168.255.255",
            "192.175.48.1",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::1.1.1.1",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2620:4f:8000::1",
            "3ffe::1",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(address), "{address}");
        }
    }

    #[test]
    fn an_ipv4_address_in_disguise_is_what_it_is_within() {
        for (near, bits) in [("127.0.0.1", "7f00:1"), ("10.1.2.3", "a01:203"), ("169.254.169.254", "a9fe:a9fe")] {
            for disguise in [format!("::ffff:{near}"), format!("64:ff9b::{near}"), format!("2002:{bits}::1")] {
                assert!(!public(&disguise), "{disguise}");
            }
        }
    }
}
