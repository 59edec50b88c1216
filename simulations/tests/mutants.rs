//! The simulation finds mistakes: those that are made on purpose (`hedgerow_proto::mutation`), and nothing without them.

mod cargo;

/// A cargo call of its own, for this one package: in one call the feature would be on for all who use `hedgerow-proto`.
#[test]
fn every_mistake_made_on_purpose_is_found_within_a_thousand_seeds_and_nothing_without_one() {
    let said = cargo::succeeds("run", "core", &["--features", "mutations", "--example", "mutants"]);
    for mutation in hedgerow_proto::mutation::Mutation::ALL {
        let found = format!("{}: found with seed", mutation.as_str());
        assert!(said.contains(&found), "{} was not looked for:\n{said}", mutation.as_str());
    }
}
