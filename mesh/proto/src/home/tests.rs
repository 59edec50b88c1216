//! Both sides of homes, as their shells would drive them.

use std::time::Duration;

use super::{Hints, Roster, Seeker, Told};
use crate::clock::Time;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::record::{Body, Record, Signed};
use crate::registry::tests::{at, coordinator, id, say};

mod roster;
mod seeker;
mod world;

fn now() -> Time {
    at(Duration::ZERO)
}

fn open(signed: &Signed) -> Record {
    signed.record().clone()
}

/// A coordinator's record that others are told of.
fn dialable(n: u8, seq: u64) -> Signed {
    let Body::Node(mut node) = coordinator() else { unreachable!() };
    node.multiaddrs = vec![format!("/ip4/127.0.0.1/tcp/{n}")];
    say(n, 1, seq, &Body::Node(node))
}
