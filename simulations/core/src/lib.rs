//! The core level of the simulation: the state machines that ship (`hedgerow-proto`), driven by simulated connections, disks and
//! clocks. Thousands of nodes, one thread, one seed, the same trace.
//!
//! ```text
//!  plan ─▶ world ─▶ machines: entry │ member (replica, peering, homes, election, services) ─▶ net ─▶ world
//!             │            what they decide is decided by hedgerow-proto
//!             └─▶ check: safety after every step, liveness at the end
//! ```

use std::ops::ControlFlow;
use std::time::Duration;

use hedgerow_sim_model::plan::{Layout, Plan};
use hedgerow_sim_model::results::{FORMAT, Sample, Summary};
use hedgerow_sim_model::scenario::{Level, Scenario};

mod book;
mod check;
mod clock;
mod context;
mod entry;
pub mod limits;
pub mod malice;
mod member;
mod mesh;
mod message;
mod narrator;
mod net;
pub mod safety;
mod sample;
mod settings;
mod verify;
pub mod version;
mod world;

use message::Link;
use sample::Samples;
use world::World;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// What the scenario is called.
    pub name: String,
    /// What is simulated.
    pub scenario: Scenario,
    /// The seed.
    pub seed: u64,
    /// The faults.
    pub plan: Plan,
    /// Who takes part.
    pub layout: Layout,
    /// The node whose view is told, line by line.
    pub trace_node: Option<u32>,
    /// Nanoseconds that no seed decides, on top of every latency: for the test that a leak of that kind shows in the trace's hash.
    /// None in every other run.
    pub leak: Option<fn() -> u64>,
}

impl RunConfig {
    /// The run of a scenario with a seed, with the faults that these two make.
    pub fn new(name: &str, scenario: &Scenario, seed: u64) -> Self {
        let (plan, layout) = Plan::draw(scenario, seed);
        Self { name: name.to_owned(), scenario: scenario.clone(), seed, plan, layout, trace_node: None, leak: None }
    }
}

/// What a run leaves behind.
#[derive(Debug, Clone)]
pub struct Run {
    /// The whole in figures. What a seed does not decide (`cpu_s`, `peak_rss_mib`, `commit`) is for the caller to fill in.
    pub summary: Summary,
    /// How things stood, once a second.
    pub series: Vec<Sample>,
    /// What the node of [`RunConfig::trace_node`] was told, for people.
    pub trace: Vec<String>,
}

/// Runs to the end, or until `progress` breaks, which is called now and then with the virtual time.
pub fn run(config: RunConfig, progress: &mut dyn FnMut(Duration) -> ControlFlow<()>) -> Run {
    let RunConfig { name, scenario, seed, plan, layout, trace_node, leak } = config;
    verify::forget();
    let mut world = World::new(&scenario, plan, &layout, seed, trace_node);
    if let Some(nanos) = leak {
        world.net.links.leak_from(nanos);
    }
    world.run(progress);
    let figures = Samples::figures(&world);
    verify::forget();
    let World { net, mut book, samples, narrator, plan, .. } = world;
    let summary = Summary {
        format: FORMAT,
        scenario: name,
        level: Level::Core,
        seed,
        commit: String::new(),
        coordinators: layout.coordinators.len() as u32,
        workers: layout.workers.len() as u32,
        entries: layout.entries.len() as u32,
        virtual_s: net.now.as_secs_f64(),
        cpu_s: 0.0,
        peak_rss_mib: 0.0,
        trace_hash: net.trace.hash(),
        events: net.trace.events(),
        violations: std::mem::take(&mut book.violations),
        figures,
        plan,
        neighbours: net.pairs(Link::Mesh),
    };
    Run { summary, series: samples.series, trace: narrator.finish() }
}
