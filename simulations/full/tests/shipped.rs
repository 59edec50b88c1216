//! A scenario that says it is for this level can be run at it.
#![allow(clippy::unwrap_used, reason = "a scenario that is none has failed the test")]

use hedgerow_sim_full::federation::Settings;
use hedgerow_sim_full::net::transport::Security;
use hedgerow_sim_model::scenario::Level;
use hedgerow_sim_model::shipped::SHIPPED;

#[test]
fn nothing_is_refused_of_the_scenarios_that_name_this_level() {
    let mut named = 0;
    for shipped in SHIPPED {
        let scenario = shipped.scenario().unwrap();
        if scenario.levels.contains(&Level::Full) {
            named += 1;
            let directory = std::env::temp_dir();
            let settings = Settings { scenario, seed: 1, plan: None, security: Security::Plaintext, directory };
            if let Err(error) = settings.check() {
                panic!("{}: {error}", shipped.name);
            }
        }
    }
    assert!(named > 10, "{named}");
}
