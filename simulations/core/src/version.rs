//! Nodes of a later version: which they are, and what they say that this version cannot read. At whichever level.

use hedgerow_proto::record::{Body, Kind, Unknown};
use hedgerow_sim_model::random;

/// What they call their version.
pub const LATER: &str = "2";

/// Whether this node is one of them, where so large a share of all is.
pub fn is_later(seed: u64, node: u32, share: f64) -> bool {
    random::stream(seed, "newer-version", u64::from(node)).f64() < share
}

/// Something of a kind that only their version knows, and that travels all the same.
pub fn unknown() -> Body {
    Body::Unknown(Unknown { kind: Kind(200), subject: Default::default(), content: vec![1, 2, 3].into() })
}
