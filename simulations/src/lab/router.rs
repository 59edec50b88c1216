//! What stands between a node and the segment, as Linux builds it: which NAT it is, and the rules that make it one.

use std::collections::BTreeSet;
use std::fmt::Write;

use hedgerow_sim_model::nat::{Dependence, Nat, Place};
use serde::Deserialize;

use super::fault::Way;

/// Where a list of connections has a port of who opened it; its answers' ports come later.
const PORT_KEY: &str = "sport=";
/// After so many rebindings the ports begin anew.
const RANGES: u32 = 40;
/// Ports of one range; there are many more than a home has connections.
const RANGE_PORTS: u32 = 1000;
/// The first port of the first range.
const RANGE_FIRST: u32 = 20_000;

/// Kinds of routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Router {
    /// The node is on the segment.
    #[default]
    None,
    /// As most at home: masquerades, and keeps ports where it can.
    Masquerade,
    /// Masquerades with a new port for every destination.
    Symmetric,
    /// Two in a row: one at home, and its carrier's.
    Cgnat,
    /// Masquerades, and lets no UDP out.
    UdpBlocked,
    /// Masquerades, and lets nothing out but TCP to port 443.
    HttpsOnly,
    /// No IPv4, no NAT, and nothing comes in that nobody has asked for.
    Ipv6Only,
}

impl Router {
    /// What it is in the words of RFC 4787. Linux' masquerading keeps the port where nobody else has it, so the mapping is the same for all
    /// destinations; what comes in is looked up by both ends of a connection.
    pub(super) fn place(self) -> Place {
        let cone =
            Nat { mapping: Dependence::EndpointIndependent, filtering: Dependence::AddressAndPortDependent, udp: true };
        match self {
            Self::None => Place::Open,
            // Without NAT the mapping is the address itself, and the firewall filters.
            Self::Masquerade | Self::Cgnat | Self::Ipv6Only => Place::Behind(cone),
            Self::Symmetric => Place::Behind(Nat { mapping: Dependence::AddressAndPortDependent, ..cone }),
            Self::UdpBlocked | Self::HttpsOnly => Place::Behind(Nat { udp: false, ..cone }),
        }
    }

    /// Rules for `nft`, for the router that is next to the segment. Its devices are called `wan` and `lan`.
    pub(super) fn rules(self) -> String {
        let out = match self {
            Self::UdpBlocked => "meta l4proto udp drop\niifname \"lan\" accept",
            Self::HttpsOnly => {
                "iifname \"lan\" tcp dport 443 accept\niifname \"lan\" reject with icmpx admin-prohibited"
            }
            _ => "iifname \"lan\" accept",
        };
        // Unsolicited datagrams are dropped and not refused: a refusal would end what another home is just trying to open.
        let mut rules = format!(
            "table inet firewall {{
              chain hole {{ type filter hook forward priority -10; }}
              chain through {{
                type filter hook forward priority 0; policy drop;
                ct state established,related accept
                {out}
              }}
              chain here {{
                type filter hook input priority 0; policy accept;
                ct state established,related accept
                iifname \"wan\" meta l4proto {{ tcp, udp }} drop
              }}
            }}\n"
        );
        if let Some(masquerade) = self.masquerade() {
            // Writing to a text cannot fail.
            let _ = write!(
                rules,
                "table ip nat {{
                  chain out {{
                    type nat hook postrouting priority 100;
                    oifname \"wan\" {masquerade}
                  }}
                }}\n"
            );
        }
        rules
    }

    fn masquerade(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Ipv6Only => None,
            Self::Symmetric => Some("masquerade fully-random"),
            _ => Some("masquerade"),
        }
    }

    /// Rules that give new mappings ports of another range, the `turn`-th. None where there is no mapping.
    pub(super) fn rebound(self, turn: u32) -> Option<String> {
        let masquerade = self.masquerade()?;
        let first = RANGE_FIRST + turn % RANGES * RANGE_PORTS;
        let random = masquerade.strip_prefix("masquerade").unwrap_or_default();
        Some(format!(
            "flush chain ip nat out
             add rule ip nat out oifname \"wan\" meta l4proto {{ tcp, udp }} masquerade to :{first}-{}{random}
             add rule ip nat out oifname \"wan\" {masquerade}\n",
            first + RANGE_PORTS - 1
        ))
    }
}

/// Rules by which the connections that were opened from these ports lose one direction.
pub(super) fn hole(ports: &BTreeSet<u16>, loses: Way) -> String {
    if ports.is_empty() {
        return String::new();
    }
    let direction = match loses {
        Way::Sent => "original",
        Way::Received => "reply",
    };
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    format!(
        "add rule inet firewall hole meta l4proto {{ tcp, udp }} ct original proto-src {{ {ports} }} ct direction {direction} drop\n"
    )
}

/// The ports that connections were opened from, out of what `conntrack -L` says.
pub(super) fn ports(listed: &str) -> BTreeSet<u16> {
    let first = |line: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(PORT_KEY)?.parse().ok());
    listed.lines().filter_map(first).collect()
}

/// Rules by which they lose nothing any more.
pub(super) const NO_HOLE: &str = "flush chain inet firewall hole\n";

#[cfg(test)]
mod tests {
    use super::*;
    use hedgerow_sim_model::nat::can_punch;

    #[test]
    fn only_homes_whose_mapping_stays_can_meet_each_other() {
        let punches = |one: Router, other: Router| can_punch(one.place(), other.place());
        assert!(punches(Router::Masquerade, Router::Cgnat));
        assert!(!punches(Router::Masquerade, Router::Symmetric));
        assert!(!punches(Router::UdpBlocked, Router::Masquerade));
        assert!(!punches(Router::HttpsOnly, Router::Cgnat));
        assert!(Router::None.place().is_dialable() && !Router::Ipv6Only.place().is_dialable());
    }

    #[test]
    fn two_rebindings_in_a_row_never_give_the_same_ports_and_all_ports_are_ports() {
        for turn in 0..200 {
            let rules = Router::Masquerade.rebound(turn).unwrap();
            assert_ne!(Some(&rules), Router::Masquerade.rebound(turn + 1).as_ref());
            let last: u32 =
                rules.split("to :").nth(1).unwrap().split(['-', '\n']).nth(1).unwrap().trim().parse().unwrap();
            assert!(last <= 65_535, "{rules}");
        }
        assert_eq!(Router::Ipv6Only.rebound(0), None);
        assert!(Router::Symmetric.rebound(0).unwrap().contains("fully-random"));
    }

    #[test]
    fn a_hole_is_dug_for_the_connections_that_there_are() {
        let listed = "udp      17 119 src=192.168.1.2 dst=203.0.113.10 sport=40001 dport=443 src=203.0.113.10 dst=203.0.113.12 sport=443 dport=40001 [ASSURED]\n\
                      icmp     1 29 src=192.168.1.2 dst=203.0.113.10 type=8 code=0 id=1\n\
                      tcp      6 9 TIME_WAIT src=192.168.1.2 dst=203.0.113.10 sport=50002 dport=443 src=203.0.113.10 sport=443 dport=50002\n";
        let ports = ports(listed);
        assert_eq!(ports, BTreeSet::from([40001, 50002]));
        assert!(hole(&ports, Way::Received).contains("{ 40001, 50002 } ct direction reply drop"));
        assert_eq!(hole(&BTreeSet::new(), Way::Sent), "", "a set without elements is an error to nft");
    }
}
