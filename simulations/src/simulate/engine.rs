//! One run of one level, whichever that is.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use hedgerow_sim_model::plan::{Layout, Plan};
use hedgerow_sim_model::results::{FORMAT, Sample, Summary, Violation};
use hedgerow_sim_model::scenario::{Level, Scenario};

use super::commit::commit;
use super::setting::Subject;

/// What is to be run.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) name: String,
    pub(super) scenario: Scenario,
    pub(super) level: Level,
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) layout: Layout,
    /// Whose view is to be told.
    pub(super) trace_node: Option<u32>,
}

impl Job {
    pub(super) fn new(subject: &Subject, seed: u64) -> Self {
        let (plan, layout) = Plan::draw(&subject.scenario, seed);
        Self {
            name: subject.name.clone(),
            scenario: subject.scenario.clone(),
            level: subject.level,
            seed,
            plan,
            layout,
            trace_node: None,
        }
    }

    /// What its files are called, without an ending.
    pub(super) fn stem(&self) -> String {
        let nodes = self.layout.coordinators.len() + self.layout.workers.len();
        format!("{}-{}-n{nodes}-s{}", self.name, self.level, self.seed)
    }

    /// The results of a run that ended without any: the program itself broke. That is as wrong as anything that is checked.
    pub(super) fn broke(&self, rule: &str, what: String) -> Done {
        let violation = Violation { rule: rule.to_owned(), at_s: 0.0, node: None, what };
        Done {
            summary: Summary {
                format: FORMAT,
                scenario: self.name.clone(),
                level: self.level,
                seed: self.seed,
                commit: commit().to_owned(),
                coordinators: self.layout.coordinators.len() as u32,
                workers: self.layout.workers.len() as u32,
                entries: self.layout.entries.len() as u32,
                virtual_s: 0.0,
                cpu_s: 0.0,
                peak_rss_mib: 0.0,
                trace_hash: String::new(),
                events: 0,
                violations: vec![violation],
                figures: Default::default(),
                plan: self.plan.clone(),
                neighbours: Vec::new(),
            },
            series: Vec::new(),
            trace: Vec::new(),
        }
    }
}

/// What a run leaves behind.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) summary: Summary,
    pub(super) series: Vec<Sample>,
    pub(super) trace: Vec<String>,
}

/// How a run came to its end.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(Box<Done>),
    /// Whoever watches it asked for that; the virtual time until then, where it is known.
    Stopped(Duration),
}

/// Told the virtual time now and then; the answer is whether to go on.
pub(super) type Progress<'a> = dyn FnMut(Duration) -> ControlFlow<()> + 'a;

/// A level. Runs of several threads go on at once.
pub(super) trait Engine: Sync {
    /// Runs to the end, or until `progress` breaks. An error is a failure of the machine or of the installation, not of what was
    /// simulated.
    fn run(&self, job: &Job, progress: &mut Progress<'_>) -> Result<Outcome>;
}
