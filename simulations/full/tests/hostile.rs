//! Coordinators that keep no rule change nothing for those that do.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

mod program;

#[test]
fn whatever_hostile_coordinators_do_honest_ones_hold_what_was_said_and_agree() {
    for seed in 1..3 {
        let summary = program::run(program::scenario!("hostile"), seed, |_| {});
        assert!(summary.is_good(), "seed {seed}: {:?}", summary.violations);
        // Nobody who is kept out can do harm.
        assert_eq!(summary.figures["hostile_let_in"], 5.0, "seed {seed}");
    }
}
