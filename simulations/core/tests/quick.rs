use hedgerow_sim_core::{RunConfig, run};
use hedgerow_sim_model::scenario::Scenario;
#[test]
fn quick() {
    let text = std::env::var("SCN")
        .map(|p| std::fs::read_to_string(p).unwrap())
        .unwrap_or("about='x'\nduration='5m'\nlevels=['core']\n[load]\n".into());
    let s = Scenario::parse("x", &text).unwrap();
    let from: u64 = std::env::var("FROM").map(|s| s.parse().unwrap()).unwrap_or(0);
    for seed in from..from + std::env::var("SEEDS").map(|s| s.parse().unwrap()).unwrap_or(1) {
        let t = std::time::Instant::now();
        let mut c = RunConfig::new("x", &s, seed);
        c.trace_node = std::env::var("NODE").ok().map(|n| n.parse().unwrap());
        let r = run(c, &mut |_| std::ops::ControlFlow::Continue(()));
        println!(
            "seed {seed} {:?} events {} violations {} hash {}",
            t.elapsed(),
            r.summary.events,
            r.summary.violations.len(),
            r.summary.trace_hash
        );
        if std::env::var("FIG").is_ok() {
            println!("{:#?}\n{:#?}", r.summary.figures, r.series.last());
        }
        for l in &r.trace {
            println!("{l}");
        }
        for v in r.summary.violations.iter().take(8) {
            println!("  {v}");
        }
    }
}
