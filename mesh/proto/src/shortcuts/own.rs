//! From where this node's datagrams come, as entries see it: what is asked of them, and what to make of what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Time;
use crate::scope::Scope;

/// A NAT forgets a mapping that nothing goes through after 30 s or more (RFC 4787 asks for 2 minutes, and many are shorter): what was seen
/// so long ago is seen again before it is told.
const FRESH_FOR: Duration = Duration::from_secs(20);
/// Entries that are asked: what two see tells whether the NAT gives each destination another port.
const OBSERVERS_MAX: usize = 2;

/// What is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// No entry that this node has a tunnel to over QUIC can see where it listens.
    NoObserver,
    /// Nobody has been asked yet.
    Unknown,
    /// None of them has answered.
    Unseen,
    /// They see different ones: no other would be seen by a peer.
    Symmetric,
    /// From there.
    At(Vec<SocketAddr>),
}

#[derive(Debug, Default)]
struct Look {
    asked: bool,
    /// When it last answered, or failed to.
    at: Option<Time>,
    seen: Option<SocketAddr>,
}

/// This node's own address.
#[derive(Debug, Default)]
pub(super) struct Own {
    observers: BTreeMap<SocketAddr, Look>,
}

impl Own {
    /// These can be asked. Whether they are others than before.
    pub(super) fn observers(&mut self, all: &[SocketAddr]) -> bool {
        let scope = |observer: &SocketAddr| Scope::of(observer.ip());
        // To an entry of this machine it comes from this machine, which is nothing to others.
        let farthest = all.iter().filter_map(scope).max();
        let chosen: BTreeSet<SocketAddr> =
            all.iter().filter(|observer| scope(observer).is_some_and(|its| Some(its) == farthest)).copied().collect();
        let chosen: BTreeSet<SocketAddr> = chosen.into_iter().take(OBSERVERS_MAX).collect();
        if self.observers.keys().eq(chosen.iter()) {
            return false;
        }
        self.observers.retain(|observer, _| chosen.contains(observer));
        for observer in chosen {
            self.observers.entry(observer).or_default();
        }
        true
    }

    /// Whom to ask now, so that all of it is fresh. They count as asked.
    pub(super) fn ask(&mut self, now: Time) -> Vec<SocketAddr> {
        let stale = |look: &Look| !look.asked && look.at.is_none_or(|at| at + FRESH_FOR <= now);
        let due = self.observers.iter_mut().filter(|(_, look)| stale(look));
        due.map(|(observer, look)| {
            look.asked = true;
            *observer
        })
        .collect()
    }

    /// What was seen is to be seen again, however fresh.
    pub(super) fn expire(&mut self) {
        self.observers.values_mut().for_each(|look| look.at = None);
    }

    /// Whether somebody has yet to answer.
    pub(super) fn is_asking(&self) -> bool {
        self.observers.values().any(|look| look.asked)
    }

    /// An observer has answered, or has not.
    pub(super) fn told(&mut self, now: Time, observer: SocketAddr, seen: Option<SocketAddr>) {
        if let Some(look) = self.observers.get_mut(&observer) {
            *look = Look { asked: false, at: Some(now), seen };
        }
    }

    /// What is known.
    pub(super) fn standing(&self) -> Standing {
        if self.observers.is_empty() {
            return Standing::NoObserver;
        }
        let seen: BTreeSet<SocketAddr> = self.observers.values().filter_map(|look| look.seen).collect();
        if seen.is_empty() {
            let looked = self.observers.values().any(|look| look.at.is_some());
            return if looked { Standing::Unseen } else { Standing::Unknown };
        }
        let of = |v4: bool| seen.iter().filter(move |address| address.is_ipv4() == v4);
        let addresses: Vec<SocketAddr> =
            [true, false].into_iter().filter(|v4| of(*v4).count() == 1).flat_map(of).copied().collect();
        if addresses.is_empty() { Standing::Symmetric } else { Standing::At(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn observers(of: &[&str]) -> Own {
        let mut own = Own::default();
        own.observers(&of.iter().map(|observer| at(observer)).collect::<Vec<_>>());
        own
    }

    #[test]
    fn two_views_that_agree_are_an_address_and_two_that_differ_are_a_symmetric_nat() {
        let (one, other) = (at("198.51.100.1:443"), at("198.51.100.2:443"));
        let mut own = observers(&["198.51.100.1:443", "198.51.100.2:443"]);
        assert_eq!(own.standing(), Standing::Unknown);
        assert_eq!(own.ask(Time::ORIGIN), [one, other]);
        assert!(own.ask(Time::ORIGIN).is_empty(), "they are being asked");
        own.told(Time::ORIGIN, one, Some(at("203.0.113.7:4001")));
        assert!(own.is_asking());
        own.told(Time::ORIGIN, other, Some(at("203.0.113.7:4001")));
        assert_eq!(own.standing(), Standing::At(vec![at("203.0.113.7:4001")]));
        own.told(Time::ORIGIN, other, Some(at("203.0.113.7:4002")));
        assert_eq!(own.standing(), Standing::Symmetric);
        own.told(Time::ORIGIN, other, None);
        assert_eq!(own.standing(), Standing::At(vec![at("203.0.113.7:4001")]), "one is silent");
        own.told(Time::ORIGIN, one, None);
        assert_eq!(own.standing(), Standing::Unseen);
        own.told(Time::ORIGIN, at("198.51.100.9:443"), Some(at("203.0.113.7:1")));
        assert_eq!(own.standing(), Standing::Unseen, "nobody has asked that one");
    }

    #[test]
    fn what_was_seen_long_ago_is_asked_again_and_what_is_fresh_is_not() {
        let mut own = observers(&["198.51.100.1:443"]);
        let (start, one) = (Time::ORIGIN, at("198.51.100.1:443"));
        assert_eq!(own.ask(start).len(), 1);
        own.told(start, one, Some(at("203.0.113.7:4001")));
        assert!(own.ask(start + FRESH_FOR / 2).is_empty());
        assert_eq!(own.ask(start + FRESH_FOR).len(), 1);
        own.told(start + FRESH_FOR, one, Some(at("203.0.113.7:4001")));
        own.expire();
        assert_eq!(own.ask(start + FRESH_FOR).len(), 1);
    }

    #[test]
    fn only_the_entries_that_are_farthest_away_see_what_others_would() {
        let mut own = observers(&["127.0.0.1:4433", "198.51.100.1:443"]);
        assert_eq!(own.ask(Time::ORIGIN), [at("198.51.100.1:443")]);
        assert!(!own.observers(&[at("198.51.100.1:443")]), "it is the same one");
        assert!(own.observers(&[]));
        assert_eq!(own.standing(), Standing::NoObserver);
        assert_eq!(observers(&["127.0.0.1:4433"]).ask(Time::ORIGIN), [at("127.0.0.1:4433")]);
    }
}
