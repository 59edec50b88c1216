//! Where other coordinators can dial this one: some addresses, none by its operator's word, or as the node sees fit.

use std::str::FromStr;

use hedgerow_mesh::host::Multiaddr;
use hedgerow_process::exit::Failure;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Candidacy, Roles};

use super::unique;

/// The word that turns it off.
const OFF: &str = "off";
/// More than a record names are of no use: nobody would hear of them.
const ADDRESSES_MAX: usize = Limits::PRODUCTION.multiaddrs_per_node_max;

/// What is said of where other coordinators can dial this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MeshListen {
    /// Nothing: the node does as it does by itself.
    #[default]
    Default,
    /// It is not to listen.
    Off,
    /// There; at least one address, each once, and no more than a record names.
    At(Vec<Multiaddr>),
}

impl MeshListen {
    /// The addresses that were named.
    pub fn addresses(&self) -> &[Multiaddr] {
        match self {
            Self::Default | Self::Off => &[],
            Self::At(addresses) => addresses,
        }
    }

    /// What these words, all of one source, say together.
    pub(super) fn of(words: Vec<MeshAddress>, roles: Roles, candidacy: Candidacy) -> Result<Self, Failure> {
        let off = words.contains(&MeshAddress::Off);
        let at = |word| match word {
            MeshAddress::Off => None,
            MeshAddress::At(address) => Some(address),
        };
        let addresses = unique(words.into_iter().filter_map(at).collect());
        match (off, addresses.len()) {
            (false, 0) => return Ok(Self::Default),
            (true, 0) => return Ok(Self::Off),
            (true, _) => {
                return Err(Failure::usage("--mesh-listen is off, and names an address as well")
                    .means("it is not clear whether the node is to listen")
                    .advice("leave one of the two out"));
            }
            (false, 1..=ADDRESSES_MAX) => {}
            (false, given) => {
                let happened = format!("--mesh-listen names {given} addresses, and a node has at most {ADDRESSES_MAX}");
                return Err(Failure::usage(happened)
                    .means("nobody would hear of the rest")
                    .advice("name an address of each kind once, such as /ip4/0.0.0.0/udp/4001/quic-v1"));
            }
        }
        if !roles.coordinates() && candidacy == Candidacy::Fixed {
            return Err(Failure::usage("--mesh-listen is for coordinators, and this node is a worker")
                .means("nobody would dial it there")
                .advice("add --role both, or leave --mesh-listen out"));
        }
        Ok(Self::At(addresses))
    }
}

/// One word of it: an address, or `off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshAddress {
    /// Not at all.
    Off,
    /// There.
    At(Multiaddr),
}

impl FromStr for MeshAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == OFF {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|error| {
            format!("{text:?} is not a multiaddr ({error}); write for example /ip4/0.0.0.0/udp/4001/quic-v1, or {OFF}")
        })
    }
}
