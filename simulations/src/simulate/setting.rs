//! Which scenario, at which level, how large, for how long.

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hedgerow_process::exit::Failure;
use hedgerow_sim_model::scenario::{Level, Scenario};
use hedgerow_sim_model::shipped::{self, SHIPPED};
use hedgerow_sim_model::span::Span;

/// What a scenario's file says, and somebody wants otherwise.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Overrides {
    /// So many coordinators and workers together, in the scenario's mixture
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub(super) nodes: Option<u32>,
    /// For so long in virtual time, as in 90s or "1h 30m"; faults of the timeline that no longer fit are left out
    #[arg(long = "for", value_name = "TIME")]
    pub(super) duration: Option<Span>,
    /// Which code is driven: the state machines alone, or everything with libp2p and hyper
    #[arg(long, value_enum)]
    pub(super) level: Option<LevelName>,
}

/// A level on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LevelName {
    /// The state machines of hedgerow-proto: thousands of nodes
    Core,
    /// Everything, with unmodified libp2p: tens to hundreds of nodes
    Full,
}

impl From<LevelName> for Level {
    fn from(name: LevelName) -> Self {
        match name {
            LevelName::Core => Self::Core,
            LevelName::Full => Self::Full,
        }
    }
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Subject {
    /// What it is called, in results and file names.
    pub(super) name: String,
    pub(super) scenario: Scenario,
    pub(super) level: Level,
    /// How many faults of the timeline were left out since it lasts for less.
    pub(super) left_out: usize,
}

impl Subject {
    /// The scenario of this name or path, as it is wanted.
    pub(super) fn find(named: &str, overrides: &Overrides) -> Result<Self, Failure> {
        let (name, mut scenario) = find(named)?;
        if let Some(nodes) = overrides.nodes {
            scenario.population = scenario.population.scaled_to(nodes);
        }
        let left_out = overrides.duration.map_or(0, |duration| shorten(&mut scenario, duration));
        scenario.check().map_err(|reason| {
            Failure::usage(format!("with these options the scenario {name} cannot be run: {reason}"))
        })?;
        let level = match overrides.level.map(Level::from) {
            None => scenario.levels[0],
            Some(level) if scenario.levels.contains(&level) => level,
            Some(level) => {
                return Err(Failure::usage(format!("the scenario {name} makes no sense at the {level} level"))
                    .advice("leave --level out, or choose another scenario: `hedgerow-sim run` lists them"));
            }
        };
        Ok(Self { name, scenario, level, left_out })
    }
}

fn find(named: &str) -> Result<(String, Scenario), Failure> {
    if let Some(shipped) = shipped::named(named) {
        return Ok((named.to_owned(), shipped.scenario().map_err(Failure::usage)?));
    }
    let path = Path::new(named);
    if !path.exists() && !named.contains(std::path::MAIN_SEPARATOR) && path.extension().is_none() {
        let nearest = SHIPPED
            .iter()
            .map(|shipped| shipped.name)
            .max_by(|one, other| strsim::jaro_winkler(one, named).total_cmp(&strsim::jaro_winkler(other, named)));
        return Err(Failure::usage(format!("no scenario is called {named}")).advice(format!(
            "{}, the path of a file, or `hedgerow-sim run` for what there is",
            nearest.unwrap_or_default()
        )));
    }
    let scenario = Scenario::load(path).map_err(Failure::usage)?;
    Ok((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), scenario))
}

/// Makes it last for this long; how many faults at a time of their own no longer fit.
fn shorten(scenario: &mut Scenario, duration: Span) -> usize {
    scenario.duration = duration;
    let quiet_from = duration.0.saturating_sub(scenario.settle.0);
    let before = scenario.timeline.len();
    scenario.timeline.retain(|timed| timed.at.0 + timed.lasts.map_or(Duration::ZERO, |lasts| lasts.0) <= quiet_from);
    before - scenario.timeline.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(nodes: Option<u32>, duration: Option<u64>, level: Option<LevelName>) -> Overrides {
        Overrides { nodes, duration: duration.map(Span::seconds), level }
    }

    #[test]
    fn every_shipped_scenario_can_be_made_larger_and_shorter() {
        for shipped in SHIPPED {
            let subject = Subject::find(shipped.name, &overrides(Some(200), Some(600), None)).unwrap();
            assert_eq!(subject.scenario.population.coordinators + subject.scenario.population.workers, 200);
            assert_eq!(subject.scenario.duration, Span::seconds(600));
        }
    }

    #[test]
    fn faults_that_no_longer_fit_are_left_out_and_counted() {
        let whole = Subject::find("coordinators-die", &Overrides::default()).unwrap();
        let short = Subject::find("coordinators-die", &overrides(None, Some(13 * 60), None)).unwrap();
        assert_eq!(
            (short.left_out, short.scenario.timeline.len() + short.left_out),
            (3, whole.scenario.timeline.len())
        );
    }

    #[test]
    fn what_cannot_be_is_the_callers_mistake_and_told_with_what_to_do() {
        let none = overrides(None, None, None);
        let full = overrides(None, None, Some(LevelName::Full));
        for (named, overrides, says) in [
            ("chrun", &none, "try: churn"),
            ("missing/file.toml", &none, "cannot read the scenario"),
            ("churn", &Overrides { duration: Some(Span::seconds(30)), ..none.clone() }, "settle"),
            ("thousand", &full, "no sense at the full level"),
        ] {
            let failure = Subject::find(named, overrides).unwrap_err();
            assert_eq!(failure.code(), 2);
            assert!(failure.to_string().contains(says), "{failure}");
        }
    }

    #[test]
    fn a_file_is_called_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my-own.toml");
        std::fs::write(&path, "about = 'x'\nduration = '5m'\nlevels = ['full', 'core']").unwrap();
        let subject = Subject::find(path.to_str().unwrap(), &Overrides::default()).unwrap();
        assert_eq!((subject.name.as_str(), subject.level), ("my-own", Level::Full));
    }
}
