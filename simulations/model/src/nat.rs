//! NATs as values, in the words of RFC 4787 (Audet and Jennings, "NAT behavioral requirements for unicast UDP", 2007).

use serde::{Deserialize, Serialize};

/// What decides whether something (a mapping, a permission to come in) is shared between destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependence {
    /// All destinations share it.
    EndpointIndependent,
    /// The ports of one address share it.
    AddressDependent,
    /// Nothing shares it.
    AddressAndPortDependent,
}

/// What stands between a node and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nat {
    /// RFC 4787 §4.1: the mapping of an inside port to an outside one. (Address-and-port-dependent is what people call
    /// symmetric.)
    pub mapping: Dependence,
    /// RFC 4787 §5: who may send in through a mapping.
    pub filtering: Dependence,
    /// Whether UDP goes out at all: networks there are that pass TCP only.
    pub udp: bool,
}

/// How a node stands in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Place {
    /// It has a public address, and anybody can dial it.
    #[default]
    Open,
    /// It is behind a NAT: it dials out.
    Behind(Nat),
}

impl Place {
    /// Whether a stranger can dial it without help.
    pub fn is_dialable(self) -> bool {
        matches!(self, Self::Open)
    }
}

/// Whether two nodes can come to a direct path by sending at once, each to the outside address that the other had towards a third
/// party (Ford, Srisuresh and Kegel, "Peer-to-peer communication across network address translators", 2005).
pub fn can_punch(one: Place, other: Place) -> bool {
    let (Place::Behind(one), Place::Behind(other)) = (one, other) else {
        // One of them can simply be dialled, by the other over whatever it has.
        return true;
    };
    if !one.udp || !other.udp {
        return false;
    }
    // What the one sends comes from the port that the other expects, or the other does not look at ports.
    let passes = |from: Nat, to: Nat| match to.filtering {
        Dependence::EndpointIndependent => true,
        // The address is right; the port need not be.
        Dependence::AddressDependent => true,
        Dependence::AddressAndPortDependent => from.mapping == Dependence::EndpointIndependent,
    };
    // And somebody's packets must reach a mapping that exists: one of the two has one that does not depend on who is asked.
    let reachable = one.mapping == Dependence::EndpointIndependent || other.mapping == Dependence::EndpointIndependent;
    reachable && passes(one, other) && passes(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONE: Nat =
        Nat { mapping: Dependence::EndpointIndependent, filtering: Dependence::AddressAndPortDependent, udp: true };
    const SYMMETRIC: Nat = Nat { mapping: Dependence::AddressAndPortDependent, ..CONE };

    #[test]
    fn two_port_restricted_cones_punch_and_a_symmetric_one_does_not() {
        let (cone, symmetric) = (Place::Behind(CONE), Place::Behind(SYMMETRIC));
        assert!(can_punch(cone, cone));
        assert!(!can_punch(cone, symmetric) && !can_punch(symmetric, symmetric));
        let easy = Place::Behind(Nat { filtering: Dependence::AddressDependent, ..CONE });
        assert!(can_punch(easy, symmetric), "its filter does not look at ports");
        let mute = Place::Behind(Nat { udp: false, ..CONE });
        assert!(!can_punch(mute, cone));
        assert!(can_punch(Place::Open, symmetric) && Place::Open.is_dialable() && !cone.is_dialable());
    }
}
