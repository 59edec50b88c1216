//! Whether others are looked for on the LAN (`--lan-discovery`), where its operator leaves that to the node.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use hedgerow_mesh::host::LanDiscovery;
use hedgerow_proto::scope::Scope;

use crate::cli::LanDiscoveryChoice;
use crate::entry_url::EntryUrl;

/// An address of the world that nobody has (RFC 5737): which way leads there is asked, and nothing is sent.
const THE_WORLD: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// What is done. By itself a node looks where others can be: not for a federation of one machine, and not on the networks of a machine
/// with a public address, which are a provider's.
pub fn decide(choice: LanDiscoveryChoice, entries: &[EntryUrl]) -> LanDiscovery {
    match choice {
        LanDiscoveryChoice::On => LanDiscovery::On,
        LanDiscoveryChoice::Off => LanDiscovery::Off,
        LanDiscoveryChoice::Auto => by_itself(entries, own_address()),
    }
}

fn by_itself(entries: &[EntryUrl], own_address: Option<IpAddr>) -> LanDiscovery {
    let of_this_machine = entries.iter().all(is_here);
    // Where there is no way into the world yet, a LAN is all that there may be.
    let is_public = own_address.is_some_and(|address| Scope::of(address) == Some(Scope::World));
    if of_this_machine || is_public { LanDiscovery::Off } else { LanDiscovery::On }
}

fn is_here(entry: &EntryUrl) -> bool {
    match entry.host.parse() {
        Ok(address) => Scope::of(address) == Some(Scope::Machine),
        Err(_) => entry.host == "localhost",
    }
}

/// The address by which this machine goes into the world.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(THE_WORLD).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_itself_a_node_looks_around_at_home_and_not_for_a_federation_of_one_machine() {
        let decided = |entries: &[&str], own: Option<&str>| {
            let entries: Vec<EntryUrl> = entries.iter().map(|entry| entry.parse().unwrap()).collect();
            by_itself(&entries, own.map(|own| own.parse().unwrap()))
        };
        let home = Some("192.168.1.7");
        assert_eq!(decided(&["https://example.org"], home), LanDiscovery::On);
        assert_eq!(decided(&["http://192.168.1.2:8080", "http://127.0.0.1:1"], home), LanDiscovery::On);
        assert_eq!(decided(&["https://example.org"], None), LanDiscovery::On);
        assert_eq!(decided(&["https://example.org"], Some("100.64.1.7")), LanDiscovery::On, "a carrier's");
        assert_eq!(decided(&["https://example.org"], Some("93.184.215.14")), LanDiscovery::Off);
        for here in ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:1"] {
            assert_eq!(decided(&[here], home), LanDiscovery::Off, "{here}");
        }
    }

    #[test]
    fn the_operators_word_is_the_last() {
        let here = ["http://127.0.0.1:8080".parse().unwrap()];
        assert_eq!(decide(LanDiscoveryChoice::On, &here), LanDiscovery::On);
        assert_eq!(decide(LanDiscoveryChoice::Off, &["https://example.org".parse().unwrap()]), LanDiscovery::Off);
    }
}
