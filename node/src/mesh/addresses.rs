//! Which of its addresses a node tells others: those that can mean something to whoever the entry serves.

use std::net::IpAddr;

use hedgerow_mesh::host::{Multiaddr, Protocol};
use hedgerow_proto::scope::Scope;

/// The addresses worth telling in a federation whose entry is this far away: over an entry of the world come nodes from all
/// over, to whom `192.168.1.7` is somebody else's printer. Those that reach farthest come first.
pub fn worth_telling(listening: &[Multiaddr], entry: Scope) -> Vec<Multiaddr> {
    let mut told: Vec<(Scope, &Multiaddr)> = listening
        .iter()
        .filter_map(|address| Some((Scope::of(ip(address)?)?, address)))
        .filter(|(scope, _)| *scope >= entry)
        .collect();
    told.sort_by_key(|(scope, _)| std::cmp::Reverse(*scope));
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
            "/ip4/100.64.1.7/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/93.184.215.14/tcp/1",
            "/ip6/::1/udp/1/quic-v1",
            "/ip6/fe80::1/udp/1/quic-v1",
            "/dns4/example.org/tcp/1",
        ]
        .map(|address| address.parse().unwrap())
        .into();
        let told = |entry| worth_telling(&all, entry).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(Scope::World), ["/ip4/93.184.215.14/tcp/1"]);
        assert_eq!(
            told(Scope::Network),
            [
                "/ip4/93.184.215.14/tcp/1",
                "/ip4/192.168.1.7/tcp/1",
                "/ip4/100.64.1.7/tcp/1",
                "/ip6/fe80::1/udp/1/quic-v1"
            ]
        );
        assert_eq!(told(Scope::Machine).len(), 6);
    }
}
