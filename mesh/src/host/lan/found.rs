//! Who was found on the LAN, and when to dial them there. Anybody on the LAN can say anything, so all of it has a bound. No I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

/// Peers that are remembered: more coordinators than stand on one LAN.
const PEERS_MAX: usize = 32;
/// Addresses of one: a port of TCP and one of QUIC, on two networks.
const ADDRESSES_MAX: usize = 4;
/// No dial begins sooner after another one, whoever is dialled: a liar makes no scanner of this node.
const DIALS_APART: Duration = Duration::from_millis(250);
/// Of two that find each other the one with the lower id dials, and the other one after this: two connections would be one too many.
const HEAD_START: Duration = Duration::from_secs(2);
/// The pause after the first dial, doubled after each …
const RETRY_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long one is let alone that is of another federation, or connected and not needed.
const LET_ALONE: Duration = Duration::from_secs(600);
/// One that was dialled so often in vain gives its place to a new one.
const IN_VAIN: u32 = 3;

/// One that was found.
#[derive(Debug, Clone)]
struct Hint {
    addresses: Vec<Multiaddr>,
    dial_at: Instant,
    /// Dials since it was last known to be of this federation.
    tries: u32,
    /// It has said that it is of this federation, on a connection that there is.
    met: bool,
}

/// Those that were found.
#[derive(Debug)]
pub(in crate::host) struct Found {
    me: PeerId,
    peers: BTreeMap<PeerId, Hint>,
    dial_at: Option<Instant>,
}

impl Found {
    /// Nobody yet.
    pub(in crate::host) fn new(me: PeerId) -> Self {
        Self { me, peers: BTreeMap::new(), dial_at: None }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// All of them, and where they may be.
    pub(super) fn all(&self) -> impl Iterator<Item = (&PeerId, &[Multiaddr])> {
        self.peers.iter().map(|(peer, hint)| (peer, &*hint.addresses))
    }

    /// Somebody says that this peer is there. Whether that is worth knowing, and new.
    pub(super) fn heard(&mut self, now: Instant, peer: PeerId, address: &Multiaddr) -> bool {
        let Some(address) = on_a_lan(address).filter(|_| peer != self.me) else { return false };
        if !self.peers.contains_key(&peer) && !self.has_room() {
            return false;
        }
        let dial_at = if self.me < peer { now } else { now + HEAD_START };
        let new = || Hint { addresses: Vec::new(), dial_at, tries: 0, met: false };
        let hint = self.peers.entry(peer).or_insert_with(new);
        let news = hint.addresses.len() < ADDRESSES_MAX && !hint.addresses.contains(&address);
        if news {
            hint.addresses.push(address);
        }
        news
    }

    /// Whether one more fits, if need be in the place of one that was never there.
    fn has_room(&mut self) -> bool {
        if self.peers.len() < PEERS_MAX {
            return true;
        }
        let in_vain = self.peers.iter().filter(|(_, hint)| hint.tries >= IN_VAIN && !hint.met);
        let Some(worst) = in_vain.max_by_key(|(_, hint)| hint.tries).map(|(peer, _)| *peer) else { return false };
        self.peers.remove(&worst);
        true
    }

    /// Nobody says so any more. Whether that is news.
    pub(super) fn forget(&mut self, peer: &PeerId, address: &Multiaddr) -> bool {
        let (Some(hint), Some(address)) = (self.peers.get_mut(peer), on_a_lan(address)) else { return false };
        let before = hint.addresses.len();
        hint.addresses.retain(|known| *known != address);
        let news = hint.addresses.len() < before;
        if hint.addresses.is_empty() {
            self.peers.remove(peer);
        }
        news
    }

    /// Where this peer may be.
    pub(in crate::host) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.peers.get(peer).map_or(&[], |hint| &hint.addresses)
    }

    /// Whether this peer was found at this address.
    pub(super) fn is_at(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        on_a_lan(address).is_some_and(|address| self.addresses(peer).contains(&address))
    }

    /// Whom to dial now, and where, if it is not there already.
    pub(super) fn due(&mut self, now: Instant, is_there: impl Fn(&PeerId) -> bool) -> Option<(PeerId, Vec<Multiaddr>)> {
        if self.dial_at.is_some_and(|at| now < at) {
            return None;
        }
        let due = self.peers.iter_mut().filter(|(peer, hint)| hint.dial_at <= now && !is_there(peer));
        let (peer, hint) = due.min_by_key(|(_, hint)| hint.dial_at)?;
        hint.dial_at = now + RETRY_MIN.saturating_mul(1 << hint.tries.min(16)).min(RETRY_MAX);
        hint.tries = hint.tries.saturating_add(1);
        self.dial_at = Some(now + DIALS_APART);
        Some((*peer, hint.addresses.clone()))
    }

    /// It is connected, by whichever way, and of this federation.
    pub(in crate::host) fn met(&mut self, peer: &PeerId) {
        if let Some(hint) = self.peers.get_mut(peer) {
            (hint.met, hint.tries) = (true, 0);
        }
    }

    /// It is of another federation.
    pub(in crate::host) fn is_a_stranger(&mut self, now: Instant, peer: &PeerId) {
        if let Some(hint) = self.peers.get_mut(peer) {
            hint.dial_at = now + LET_ALONE;
        }
    }

    /// It is connected no longer, and not because nobody needed that.
    pub(super) fn lost(&mut self, now: Instant, peer: &PeerId) {
        if let Some(hint) = self.peers.get_mut(peer).filter(|hint| hint.met) {
            (hint.met, hint.dial_at) = (false, now + RETRY_MIN);
        }
    }

    /// It is connected no longer, since nobody needed that.
    pub(super) fn let_go(&mut self, now: Instant, peer: &PeerId) {
        if let Some(hint) = self.peers.get_mut(peer) {
            (hint.met, hint.dial_at) = (false, now + LET_ALONE);
        }
    }
}

/// The address without the peer's id, if a machine of a LAN can have it: private, of TCP or QUIC, and nothing else. (Link-local ones of IPv6
/// cannot be dialled without their interface.)
fn on_a_lan(address: &Multiaddr) -> Option<Multiaddr> {
    let mut address = address.clone();
    if let Some(Protocol::P2p(_)) = address.iter().last() {
        address.pop();
    }
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let near = match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    let carries = match (parts.next()?, parts.next(), parts.next()) {
        (Protocol::Tcp(port), None, None) | (Protocol::Udp(port), Some(Protocol::QuicV1), None) => port != 0,
        _ => false,
    };
    (near && carries).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "/ip4/192.168.1.7/tcp/4001";
    const QUIC: &str = "/ip4/192.168.1.7/udp/4001/quic-v1";

    fn at(address: &str) -> Multiaddr {
        address.parse().unwrap()
    }

    /// A low id and a high one.
    fn two() -> (PeerId, PeerId) {
        let (one, other) = (PeerId::random(), PeerId::random());
        (one.min(other), one.max(other))
    }

    fn nobody(_: &PeerId) -> bool {
        false
    }

    #[test]
    fn only_private_addresses_of_tcp_and_quic_are_taken() {
        let peer = PeerId::random();
        let (mut found, now) = (Found::new(PeerId::random()), Instant::now());
        for address in [
            "/ip4/93.184.215.14/tcp/4001",
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/100.64.0.1/tcp/4001",
            "/ip4/192.168.1.7/tcp/0",
            "/ip4/192.168.1.7/udp/4001",
            "/ip4/192.168.1.7/tcp/4001/ws",
            "/ip6/fe80::1/tcp/4001",
            "/dns4/printer.local/tcp/4001",
            "/ip4/192.168.1.7/tcp/4001/p2p/12D3KooWDMCQbZZvLgHiHntG1KwcHoqHPAxL37KvhgibWqFtpqUY/p2p-circuit",
        ] {
            assert!(!found.heard(now, peer, &at(address)), "{address}");
        }
        for address in [TCP, QUIC, "/ip4/169.254.3.4/tcp/1", "/ip6/fd00::7/udp/1/quic-v1"] {
            assert!(found.heard(now, peer, &at(address).with_p2p(peer).unwrap()), "{address}");
            assert!(!found.heard(now, peer, &at(address)), "no news the second time");
            assert!(found.is_at(&peer, &at(address).with_p2p(peer).unwrap()));
        }
        assert!(!found.heard(now, peer, &at("/ip4/10.0.0.1/tcp/1")), "it has addresses enough");
    }

    #[test]
    fn the_lower_id_dials_first_and_then_less_and_less_often() {
        let (low, high) = two();
        let (mut found, now) = (Found::new(low), Instant::now());
        found.heard(now, high, &at(TCP));
        found.heard(now, high, &at(QUIC));
        assert_eq!(found.due(now, nobody), Some((high, vec![at(TCP), at(QUIC)])));
        let mut later = now;
        let mut dials = 1;
        while later < now + Duration::from_secs(3600) {
            later += DIALS_APART;
            dials += u32::from(found.due(later, nobody).is_some());
        }
        assert!((60..70).contains(&dials), "{dials}");
        assert_eq!(found.due(later + RETRY_MAX, |_| true), None, "it is connected");

        let mut found = Found::new(high);
        found.heard(now, low, &at(TCP));
        assert_eq!(found.due(now, nobody), None);
        assert!(found.due(now + HEAD_START, nobody).is_some());
    }

    #[test]
    fn one_that_was_there_and_is_lost_is_dialled_at_once_and_one_that_nobody_needs_is_not() {
        let (low, high) = two();
        let (mut found, now) = (Found::new(low), Instant::now());
        found.heard(now, high, &at(TCP));
        found.due(now, nobody);
        found.met(&high);
        let later = now + RETRY_MAX * 5;
        found.lost(later, &high);
        assert_eq!(found.due(later, nobody), None);
        assert!(found.due(later + RETRY_MIN, nobody).is_some());
        found.met(&high);
        found.let_go(later, &high);
        assert_eq!(found.due(later + RETRY_MAX, nobody), None);
        assert!(found.due(later + LET_ALONE, nobody).is_some());
        found.is_a_stranger(later, &high);
        found.lost(later, &high);
        assert_eq!(found.due(later + RETRY_MAX, nobody), None, "and neither is a stranger, whoever hung up");
    }

    #[test]
    fn a_liar_who_answers_for_thousands_takes_a_few_places_and_a_few_dials_a_second() {
        let (low, high) = two();
        let (mut found, now) = (Found::new(low), Instant::now());
        found.heard(now, high, &at(TCP));
        found.met(&high);
        let lie = |found: &mut Found, now| {
            (0..1000).any(|_| found.heard(now, PeerId::random(), &at(QUIC)) && found.len() > PEERS_MAX)
        };
        let mut dials = 0;
        for tick in 0..1000 {
            let now = now + Duration::from_millis(10) * tick;
            assert!(!lie(&mut found, now));
            dials += u32::from(found.due(now, nobody).is_some());
        }
        assert!(dials <= 41, "{dials} in ten seconds");
        assert_eq!(found.addresses(&high), [at(TCP)], "who is there keeps its place");
    }

    #[test]
    fn what_nobody_says_any_more_is_forgotten() {
        let (me, peer) = two();
        let (mut found, now) = (Found::new(me), Instant::now());
        found.heard(now, peer, &at(TCP));
        assert!(!found.forget(&peer, &at(QUIC)));
        assert!(found.forget(&peer, &at(TCP).with_p2p(peer).unwrap()));
        assert_eq!((found.len(), found.due(now, nobody)), (0, None));
        assert!(!found.heard(now, me, &at(TCP)), "this node itself is nobody new");
    }
}
