//! The commands' parts together, with a level that takes no time: what it finds wrong is said by the faults.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_sim_model::plan::Effect;
use hedgerow_sim_model::results::{Sample, Violation};

use super::engine::{Done, Engine, Job, Outcome, Progress};
use super::finished::{self, Finished};
use super::setting::{Overrides, Subject};
use super::sweep::{Bounds, Seeds, Sweep};
use super::{failure, files, replay};

/// A level in which it is wrong that two machines die silently in one run, if the seed is one of these.
#[derive(Default)]
struct Fake {
    fragile: Vec<u64>,
    /// Tells somebody to stop after so many runs.
    stops: Option<(usize, Shutdown)>,
    began: Mutex<Vec<u64>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Fake {
    fn fragile(seed: u64) -> Self {
        Self { fragile: vec![seed], ..Self::default() }
    }

    fn runs(&self) -> usize {
        self.began.lock().unwrap().len()
    }
}

impl Engine for Fake {
    fn run(&self, job: &Job, progress: &mut Progress<'_>) -> Result<Outcome> {
        self.most_at_once.fetch_max(self.at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let runs = {
            let mut began = self.began.lock().unwrap();
            began.push(job.seed);
            began.len()
        };
        if let Some((after, shutdown)) = &self.stops
            && runs > *after
        {
            shutdown.drain();
        }
        let flow = progress(Duration::from_secs(1));
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        if flow == ControlFlow::Break(()) {
            return Ok(Outcome::Stopped(Duration::from_secs(1)));
        }
        let silent = |effect: &Effect| matches!(effect, Effect::Crash { silent: true, .. });
        let dead = job.plan.incidents.iter().filter(|incident| silent(&incident.effect)).count();
        let mut done = Done { series: vec![Sample::default()], ..job.broke("x", String::new()) };
        done.summary.violations.clear();
        done.summary.peak_rss_mib = 100.0;
        if dead >= 2 && self.fragile.contains(&job.seed) {
            let violation = Violation { rule: "two-died".into(), at_s: 1.0, node: None, what: format!("{dead} died") };
            done.summary.violations.push(violation);
        }
        Ok(Outcome::Done(Box::new(done)))
    }
}

const WIDE: Bounds = Bounds { jobs: 4, memory_mib: 1_000_000 };

fn churn() -> Subject {
    Subject::find("churn", &Overrides::default()).unwrap()
}

fn sweep<'a>(engine: &'a Fake, seeds: u64, finished: Finished, bounds: Bounds) -> Sweep<'a> {
    Sweep::new(engine, vec![churn()], 0..seeds, finished, None, bounds).unwrap()
}

#[test]
fn every_seed_of_every_scenario_runs_once() {
    let engine = Fake::default();
    let idle = Subject::find("idle", &Overrides::default()).unwrap();
    let sweep = Sweep::new(&engine, vec![churn(), idle], 5..30, Finished::default(), None, WIDE).unwrap();
    let ended = sweep.run(None, &Shutdown::new()).unwrap();
    assert!((ended.before, ended.now, ended.failed.is_none()) == (0, 50, true));
    let mut began = engine.began.into_inner().unwrap();
    began.sort_unstable();
    assert_eq!(began, (5..30).flat_map(|seed| [seed, seed]).collect::<Vec<_>>());
}

#[test]
fn no_more_runs_go_on_at_once_than_fit_into_memory() {
    let engine = Fake::default();
    // Each of them says that it takes 100 MiB.
    let ended = sweep(&engine, 300, Finished::default(), Bounds { jobs: 8, memory_mib: 250 });
    assert_eq!(ended.run(None, &Shutdown::new()).unwrap().now, 300);
    assert!(engine.most_at_once.into_inner() <= 2);
}

#[test]
fn the_first_failure_ends_a_sweep() {
    let engine = Fake::fragile(17);
    let ended = sweep(&engine, 100_000, Finished::default(), WIDE).run(None, &Shutdown::new()).unwrap();
    let (job, done) = *ended.failed.unwrap();
    assert!(job.seed == 17 && done.summary.violations[0].rule == "two-died");
    assert!(engine.runs() < 50_000, "{} runs went on", engine.runs());
}

#[test]
fn a_sweep_that_was_stopped_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("finished");
    let shutdown = Shutdown::new();
    let engine = Fake { stops: Some((40, shutdown.clone())), ..Fake::default() };
    let (finished, mut journal) = finished::open(&path).unwrap();
    let first = sweep(&engine, 100, finished, WIDE).run(Some(&mut journal), &shutdown).unwrap();
    assert!((1..100).contains(&first.now), "{} runs", first.now);
    drop(journal);
    let (finished, mut journal) = finished::open(&path).unwrap();
    assert_eq!(finished.len() as u64, first.now, "nothing that was finished is lost");
    let again = Fake::default();
    let second = sweep(&again, 100, finished, WIDE).run(Some(&mut journal), &Shutdown::new()).unwrap();
    assert_eq!((second.before, second.now), (first.now, 100 - first.now));
    assert_eq!(again.runs() as u64, second.now, "what was over is not run again");
}

#[test]
fn a_run_that_failed_is_not_remembered_as_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("finished");
    let (finished, mut journal) = finished::open(&path).unwrap();
    let one_job = Bounds { jobs: 1, ..WIDE };
    let engine = Fake::fragile(17);
    let ended = sweep(&engine, 100, finished, one_job).run(Some(&mut journal), &Shutdown::new()).unwrap();
    assert!(ended.failed.is_some());
    drop(journal);
    assert_eq!(finished::open(&path).unwrap().0.len(), 17);
}

#[test]
fn a_failure_is_written_with_as_few_faults_as_do_it_and_can_be_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake::fragile(17);
    let job = Job::new(&churn(), 17);
    assert!(job.plan.incidents.len() > 10);
    let Outcome::Done(done) = engine.run(&job, &mut |_| ControlFlow::Continue(())).unwrap() else {
        panic!("nobody stopped it")
    };
    let failed = failure::tell(&engine, &job, &done, directory.path(), &Shutdown::new()).unwrap();
    assert_eq!(failed.code(), 1);
    let path = directory.path().join(format!("regression-{}.toml", job.stem()));
    let regression = files::read_regression(&path).unwrap();
    assert_eq!((regression.plan.incidents.len(), regression.seed), (2, 17));
    assert!(regression.found.contains("two-died"), "{}", regression.found);
    let again = replay::job(&regression);
    assert_eq!((again.layout.clone(), &again.scenario), (job.layout.clone(), &job.scenario));
    let Outcome::Done(done) = engine.run(&again, &mut |_| ControlFlow::Continue(())).unwrap() else {
        panic!("nobody stopped it")
    };
    assert!(!done.summary.is_good());
}

#[test]
fn a_failure_that_needs_no_fault_says_so() {
    struct Always;
    impl Engine for Always {
        fn run(&self, job: &Job, _: &mut Progress<'_>) -> Result<Outcome> {
            Ok(Outcome::Done(Box::new(job.broke("always", "so it is".into()))))
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let job = Job::new(&churn(), 1);
    let done = job.broke("always", "so it is".into());
    failure::tell(&Always, &job, &done, directory.path(), &Shutdown::new()).unwrap();
    let path = directory.path().join(format!("regression-{}.toml", job.stem()));
    assert!(files::read_regression(&path).unwrap().plan.incidents.is_empty());
}

#[test]
fn whoever_asks_for_an_end_need_not_wait_for_the_shortest_schedule() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake::fragile(17);
    let job = Job::new(&churn(), 17);
    let Outcome::Done(done) = engine.run(&job, &mut |_| ControlFlow::Continue(())).unwrap() else {
        panic!("nobody stopped it")
    };
    let shutdown = Shutdown::new();
    shutdown.drain();
    failure::tell(&engine, &job, &done, directory.path(), &shutdown).unwrap();
    assert_eq!(engine.runs(), 1, "not one more");
    let path = directory.path().join(format!("regression-{}.toml", job.stem()));
    assert_eq!(files::read_regression(&path).unwrap().plan, job.plan);
}

#[test]
fn what_is_no_regression_is_told_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.toml");
    assert!(files::read_regression(&path).unwrap_err().to_string().contains("cannot read"));
    for text in ["", "about = 'a scenario'", "\u{0}"] {
        std::fs::write(&path, text).unwrap();
        let failure = files::read_regression(&path).unwrap_err();
        assert!(failure.code() == 2 && failure.to_string().contains("regression-"), "{failure}");
    }
}

#[test]
fn seeds_are_how_many_or_from_which_to_which() {
    let seeds = |text: &str| text.parse::<Seeds>().map(|seeds| seeds.0);
    assert_eq!(seeds("100"), Ok(0..100));
    assert_eq!(seeds("20..30"), Ok(20..30));
    for text in ["0", "30..20", "5..5", "x", "1..y", "-1", "9223372036854775808"] {
        assert!(seeds(text).is_err(), "{text}");
    }
}
