//! One seed, one trace; and what the seed does not decide would show. Two processes, folders and time zones: hedgerow-sim's tests.

use std::ops::ControlFlow;
use std::time::SystemTime;

use hedgerow_sim_core::{Run, RunConfig, run};
use hedgerow_sim_model::scenario::Scenario;

/// Small, and with faults of several kinds.
const SCENARIO: &str = "
about = 'x'
duration = '2m'
settle = '60s'
population = { coordinators = 4, workers = 8 }
load = {}
[[random]]
per-minute = 6.0
lasts-min = '1s'
lasts-max = '20s'
fault = { kind = 'crash' }
[[random]]
per-minute = 3.0
lasts-min = '1s'
lasts-max = '20s'
fault = { kind = 'partition', shape = 'halves' }
";

fn trace(seed: u64, leak: Option<fn() -> u64>) -> Run {
    let scenario = Scenario::parse("determinism", SCENARIO).expect("a scenario");
    let config = RunConfig { leak, ..RunConfig::new("determinism", &scenario, seed) };
    run(config, &mut |_| ControlFlow::Continue(()))
}

/// What the machine's clock shows: the very thing that must not get in.
#[expect(clippy::disallowed_methods, reason = "it is leaked on purpose")]
fn machine_nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970");
    u64::from(since.subsec_nanos())
}

#[test]
fn one_seed_gives_one_trace_and_another_one_another() {
    let (one, again) = (trace(1, None), trace(1, None));
    assert!(one.summary.events > 5_000 && one.summary.plan.incidents.len() > 2, "{}", one.summary.events);
    assert_eq!(one.summary, again.summary);
    assert_eq!(one.series, again.series);
    assert_ne!(one.summary.trace_hash, trace(2, None).summary.trace_hash);
}

#[test]
fn a_clock_that_leaks_in_is_noticed() {
    let leaked = || trace(1, Some(machine_nanos)).summary.trace_hash;
    assert_ne!(leaked(), leaked());
    let constant = || trace(1, Some(|| 1000)).summary.trace_hash;
    assert_eq!(constant(), constant(), "it is the clock that is noticed, and not the switch");
}
