//! A node on a full disk.

use crate::program;
use crate::trace::traced_in;

const SCENARIO: &str = program::scenario!("full-disks");

#[test]
fn a_coordinator_says_that_what_it_knows_is_not_on_disk_while_there_is_no_room_and_goes_on() {
    let (summary, trace) = traced_in(SCENARIO, 1);
    assert!(summary.is_good(), "{:?}", summary.violations);
    assert_eq!(trace.said("** DiskFull { node: 1 } begins"), (1, 30.0));
    let ((times, at), (again, back)) = (trace.said("is not on disk"), trace.said("is on disk again"));
    assert_eq!((times, again), (1, 1));
    assert!((30.0..150.0).contains(&at) && back > 150.0, "{at} {back}");
}
