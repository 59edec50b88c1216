//! By which ways the peers are connected, and which connection is one too many. No I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use super::paths::Path;

/// How long two ways to one peer are kept, when the better one has come up. Gossipsub writes on the new one from the next ping on:
/// until then it goes on over the old one.
const SURPLUS_AFTER: Duration = Duration::from_secs(10);

/// The way by which a peer is connected, and why by this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The way.
    pub path: Path,
    /// Why.
    pub why: Why,
}

/// Why a peer is connected by the way that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// This node has dialled it there, and had no better address of it, or none.
    Dialled,
    /// This node has dialled it by way of an entry: it names no address of its own.
    NoOtherAddress,
    /// This node has dialled it by way of an entry: its own addresses did not answer, or not soon enough.
    OthersUnanswered,
    /// This node has dialled it where it was found on the LAN.
    FoundOnLan,
    /// Both sides have punched a hole for it, by appointment.
    Punched,
    /// It came so.
    Came,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dialled => "this node dialled it there",
            Self::NoOtherAddress => "it names no address of its own",
            Self::OthersUnanswered => "its own addresses did not answer",
            Self::FoundOnLan => "found on the LAN",
            Self::Punched => "both punched a hole, by appointment",
            Self::Came => "it came this way",
        })
    }
}

impl Way {
    /// As programs read it.
    pub fn as_str(self) -> &'static str {
        match self.why {
            Why::Punched => "hole-punched",
            _ => self.path.as_str(),
        }
    }

    /// Of a connection that has come up. `directly`: this node had tried the peer's own addresses.
    pub(super) fn of(endpoint: &ConnectedPoint, directly: bool) -> Self {
        match endpoint {
            ConnectedPoint::Dialer { address, .. } => {
                let path = Path::of(address);
                let why = match path {
                    Path::Entry if directly => Why::OthersUnanswered,
                    Path::Entry => Why::NoOtherAddress,
                    Path::DirectQuic | Path::DirectTcp => Why::Dialled,
                };
                Self { path, why }
            }
            ConnectedPoint::Listener { local_addr, .. } => Self { path: Path::of(local_addr), why: Why::Came },
        }
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Ways {
    peers: BTreeMap<PeerId, BTreeMap<ConnectionId, (Way, Instant)>>,
}

impl Ways {
    pub(super) fn opened(&mut self, now: Instant, peer: PeerId, id: ConnectionId, way: Way) {
        self.peers.entry(peer).or_default().insert(id, (way, now));
    }

    pub(super) fn closed(&mut self, peer: &PeerId, id: ConnectionId) {
        if let Some(connections) = self.peers.get_mut(peer) {
            connections.remove(&id);
            if connections.is_empty() {
                self.peers.remove(peer);
            }
        }
    }

    /// The best way to a peer.
    pub(super) fn best(&self, peer: &PeerId) -> Option<Way> {
        self.peers.get(peer)?.values().map(|(way, _)| *way).min_by_key(|way| way.path)
    }

    /// Connections beside one that has been direct for long enough: those by way of entries, and of the direct ones all but the best
    /// and oldest. Which one of these is kept, the one with the smaller id decides: two that choose for themselves may close both.
    pub(super) fn surplus(&self, now: Instant, me: &PeerId) -> Vec<(PeerId, ConnectionId)> {
        let mut surplus = Vec::new();
        for (peer, connections) in &self.peers {
            let direct = connections.iter().filter(|(_, (way, _))| way.path != Path::Entry);
            let best = direct.min_by_key(|(id, (way, since))| (way.path, *since, **id));
            let Some((kept, _)) = best.filter(|(_, (_, since))| *since + SURPLUS_AFTER <= now) else { continue };
            let closes = |id: &ConnectionId, way: &Way| id != kept && (way.path == Path::Entry || me < peer);
            surplus.extend(connections.iter().filter(|(id, (way, _))| closes(id, way)).map(|(id, _)| (*peer, *id)));
        }
        surplus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::swarm::dial_opts::DialOpts;

    fn number() -> ConnectionId {
        DialOpts::from(PeerId::random()).connection_id()
    }

    fn by(path: Path) -> Way {
        Way { path, why: Why::Came }
    }

    fn surplus(ways: &Ways, now: Instant) -> Vec<(PeerId, ConnectionId)> {
        ways.surplus(now, &PeerId::random())
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_direct_connections_one_side_closes_the_younger_one() {
        let (mut ways, start) = (Ways::default(), Instant::now());
        let (one, other) = (PeerId::random(), PeerId::random());
        let (smaller, greater) = (one.min(other), one.max(other));
        let (old, young) = (number(), number());
        ways.opened(start, greater, old, by(Path::DirectQuic));
        ways.opened(start + SURPLUS_AFTER, greater, young, by(Path::DirectQuic));
        let late = start + SURPLUS_AFTER * 2;
        assert_eq!(ways.surplus(late, &smaller), [(greater, young)]);
        assert_eq!(ways.surplus(start, &smaller), [], "none has stood for long enough");
        let mut ways_of_greater = Ways::default();
        ways_of_greater.opened(start, smaller, old, by(Path::DirectQuic));
        ways_of_greater.opened(start, smaller, young, by(Path::DirectQuic));
        assert_eq!(ways_of_greater.surplus(late, &greater), [], "it leaves it to the other one");
    }

    #[tokio::test(start_paused = true)]
    async fn the_entry_is_let_go_of_when_the_direct_way_has_stood_for_a_while() {
        let (mut ways, peer, start) = (Ways::default(), PeerId::random(), Instant::now());
        let (entry, direct, another) = (number(), number(), number());
        ways.opened(start, peer, entry, by(Path::Entry));
        ways.opened(start, PeerId::random(), another, by(Path::Entry));
        let late = start + SURPLUS_AFTER * 10;
        assert_eq!(surplus(&ways, late), [], "there is no better way");
        ways.opened(late, peer, direct, by(Path::DirectQuic));
        assert_eq!(ways.best(&peer), Some(by(Path::DirectQuic)));
        assert_eq!(surplus(&ways, late), [], "it has just come up");
        assert_eq!(surplus(&ways, late + SURPLUS_AFTER), [(peer, entry)]);
        ways.closed(&peer, direct);
        assert_eq!(surplus(&ways, late + SURPLUS_AFTER), []);
        assert_eq!(ways.best(&peer), Some(by(Path::Entry)));
        ways.closed(&peer, entry);
        assert_eq!(ways.best(&peer), None);
    }

    #[test]
    fn a_way_says_why_it_is_the_one() {
        let dialled = |address: &str| ConnectedPoint::Dialer {
            address: address.parse().unwrap(),
            role_override: libp2p::core::Endpoint::Dialer,
            port_use: libp2p::core::transport::PortUse::New,
        };
        let (tcp, entry) = ("/ip4/192.0.2.1/tcp/1", "/dns/a.org/tcp/443/wss");
        assert_eq!(Way::of(&dialled(tcp), true), Way { path: Path::DirectTcp, why: Why::Dialled });
        assert_eq!(Way::of(&dialled(entry), true), Way { path: Path::Entry, why: Why::OthersUnanswered });
        assert_eq!(Way::of(&dialled(entry), false), Way { path: Path::Entry, why: Why::NoOtherAddress });
        let here = super::super::paths::EntryTransport::here();
        let came = ConnectedPoint::Listener { local_addr: here.clone(), send_back_addr: here };
        assert_eq!(Way::of(&came, false), Way { path: Path::Entry, why: Why::Came });
    }
}
