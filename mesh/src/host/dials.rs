//! In which order a peer's addresses are tried. libp2p has no order among them: whichever answers first wins, and an entry is often
//! nearer than the peer. So what is better is dialled first, and has a head start; what is worse follows when that has failed, or has
//! not answered by then. No I/O.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use super::Multiaddr;
use super::paths::Path;

/// How long the better addresses are waited for: more than a handshake takes from the other side of the world, and still no long
/// wait for who comes by way of the entry.
const HEAD_START: Duration = Duration::from_millis(500);

/// Which addresses are tried before which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preference {
    /// Direct ones, then those at entries.
    Direct,
    /// TCP, then QUIC, then those at entries: over TCP the end of a process is known at once.
    Tcp,
}

impl Preference {
    fn rank(self, address: &Multiaddr) -> usize {
        match (self, Path::of(address)) {
            (Self::Direct, Path::DirectQuic | Path::DirectTcp) | (Self::Tcp, Path::DirectTcp) => 0,
            (Self::Tcp, Path::DirectQuic) => 1,
            (_, Path::Entry) => 2,
        }
    }
}

/// What became of an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// Others of this peer's addresses are being tried, or will be.
    GoesOn,
    /// It was the last.
    Over,
}

/// Who is being dialled.
#[derive(Debug)]
pub(super) struct Dials {
    preference: Preference,
    peers: BTreeMap<PeerId, Dial>,
}

#[derive(Debug)]
struct Dial {
    /// What has not been tried yet, the best first.
    waiting: VecDeque<Vec<Multiaddr>>,
    next_at: Instant,
    running: Vec<ConnectionId>,
    /// Direct addresses have been tried.
    directly: bool,
}

impl Dials {
    /// Nobody yet.
    pub(super) fn new(preference: Preference) -> Self {
        Self { preference, peers: BTreeMap::new() }
    }

    /// Begins to dial a peer, if it is not being dialled.
    pub(super) fn begin(&mut self, now: Instant, peer: PeerId, addresses: Vec<Multiaddr>) {
        let preference = self.preference;
        self.peers.entry(peer).or_insert_with(|| {
            let mut ranks: BTreeMap<usize, Vec<Multiaddr>> = BTreeMap::new();
            for address in addresses {
                ranks.entry(preference.rank(&address)).or_default().push(address);
            }
            let mut waiting: VecDeque<_> = ranks.into_values().collect();
            if waiting.is_empty() {
                // To be told so, as of any other failure.
                waiting.push_back(Vec::new());
            }
            Dial { waiting, next_at: now, running: Vec::new(), directly: false }
        });
    }

    /// Whom to dial now, and where. Then comes [`Dials::started`].
    pub(super) fn due(&mut self, now: Instant) -> Option<(PeerId, Vec<Multiaddr>)> {
        let (peer, dial) = self.peers.iter_mut().find(|(_, dial)| dial.next_at <= now && !dial.waiting.is_empty())?;
        dial.next_at = now + HEAD_START;
        let addresses = dial.waiting.pop_front()?;
        dial.directly |= addresses.iter().any(|address| Path::of(address) != Path::Entry);
        Some((*peer, addresses))
    }

    /// The attempt has this number.
    pub(super) fn started(&mut self, peer: &PeerId, id: ConnectionId) {
        if let Some(dial) = self.peers.get_mut(peer) {
            dial.running.push(id);
        }
    }

    /// An attempt has failed, one of these or somebody else's.
    pub(super) fn failed(&mut self, now: Instant, peer: &PeerId, id: ConnectionId) -> Failed {
        let Some(dial) = self.peers.get_mut(peer) else { return Failed::Over };
        dial.running.retain(|running| *running != id);
        if dial.running.is_empty() && dial.waiting.is_empty() {
            self.peers.remove(peer);
            return Failed::Over;
        }
        if dial.running.is_empty() {
            dial.next_at = now;
        }
        Failed::GoesOn
    }

    /// A connection is there: no more is tried. Whether direct addresses had been tried before.
    pub(super) fn connected(&mut self, peer: &PeerId) -> bool {
        self.peers.remove(peer).is_some_and(|dial| dial.directly)
    }

    /// When somebody is due.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.peers.values().filter(|dial| !dial.waiting.is_empty()).map(|dial| dial.next_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::swarm::dial_opts::DialOpts;

    const QUIC: &str = "/ip4/192.0.2.1/udp/1/quic-v1";
    const TCP: &str = "/ip4/192.0.2.1/tcp/1";
    const ENTRY: &str = "/dns/a.org/tcp/443/wss";

    fn addresses(of: &[&str]) -> Vec<Multiaddr> {
        of.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn number() -> ConnectionId {
        DialOpts::unknown_peer_id().address(TCP.parse().unwrap()).build().connection_id()
    }

    /// What is dialled now, and under which number.
    fn next(dials: &mut Dials, now: Instant) -> Option<(Vec<Multiaddr>, ConnectionId)> {
        let ((peer, addresses), id) = (dials.due(now)?, number());
        dials.started(&peer, id);
        Some((addresses, id))
    }

    #[tokio::test(start_paused = true)]
    async fn direct_addresses_have_a_head_start_and_the_entry_follows() {
        let (mut dials, peer, now) = (Dials::new(Preference::Direct), PeerId::random(), Instant::now());
        dials.begin(now, peer, addresses(&[ENTRY, QUIC, TCP]));
        let (first, first_id) = next(&mut dials, now).unwrap();
        assert_eq!(first, addresses(&[QUIC, TCP]));
        assert_eq!(next(&mut dials, now), None);
        assert_eq!(dials.next_at(), Some(now + HEAD_START));
        dials.begin(now, peer, addresses(&[TCP]));
        let later = now + HEAD_START;
        let (second, second_id) = next(&mut dials, later).unwrap();
        assert_eq!(second, addresses(&[ENTRY]));
        assert_eq!(dials.next_at(), None);
        assert_eq!(dials.failed(later, &peer, first_id), Failed::GoesOn);
        assert_eq!(dials.failed(later, &peer, second_id), Failed::Over);
        assert_eq!(next(&mut dials, later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_at_once_is_followed_at_once() {
        let (mut dials, peer, now) = (Dials::new(Preference::Tcp), PeerId::random(), Instant::now());
        dials.begin(now, peer, addresses(&[ENTRY, QUIC, TCP]));
        for expected in [TCP, QUIC, ENTRY] {
            let (tried, id) = next(&mut dials, now).unwrap();
            assert_eq!(tried, addresses(&[expected]));
            assert_eq!(dials.failed(now, &peer, number()), Failed::GoesOn, "somebody else's attempt");
            assert_eq!(dials.failed(now, &peer, id) == Failed::Over, expected == ENTRY);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_the_search_and_says_whether_it_came_directly() {
        let (mut dials, now) = (Dials::new(Preference::Direct), Instant::now());
        for (of, directly) in [(&[TCP, ENTRY][..], true), (&[ENTRY], false)] {
            let peer = PeerId::random();
            dials.begin(now, peer, addresses(of));
            next(&mut dials, now).unwrap();
            assert_eq!(dials.connected(&peer), directly);
            assert_eq!(dials.next_at(), None);
            assert_eq!(dials.failed(now, &peer, number()), Failed::Over, "an attempt that was overtaken");
        }
        // Somebody without an address fails as others do.
        dials.begin(now, PeerId::random(), vec![]);
        assert_eq!(next(&mut dials, now).unwrap().0, vec![]);
    }
}
