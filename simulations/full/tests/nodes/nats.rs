//! Nodes that nobody can dial.

use crate::program;
use crate::trace::traced_in;

const SCENARIO: &str = program::scenario!("behind-nats");

#[test]
fn coordinators_that_nobody_can_dial_are_a_mesh_and_homes_by_way_of_the_entries() {
    let (entries, coordinators) = (2, 4);
    let (summary, trace) = traced_in(SCENARIO, entries);
    assert!(summary.is_good(), "{:?}", summary.violations);
    assert_eq!((summary.entries, summary.coordinators), (entries, coordinators));
    assert_eq!(summary.neighbours.len() as u32, coordinators * (coordinators - 1) / 2, "all are connected to all");
    assert!(trace.said("connected peer=").0 > 0);
    assert_eq!(trace.said("path=entry").0, trace.said("path=").0, "there is no other way");
    let worker = traced_in(SCENARIO, entries + coordinators).1;
    assert!(worker.said("path=entry").0 > 0 && worker.said("at home with a coordinator").0 > 0);
}
