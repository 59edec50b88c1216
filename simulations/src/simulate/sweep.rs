//! `hedgerow-sim sweep SCENARIO…`: many seeds, on all cores, until one fails.

use std::cmp::Reverse;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_sim_model::scenario::Level;

use super::commit::program;
use super::engine::{Done, Engine, Job, Outcome, Progress};
use super::finished::{Fingerprint, Finished, Journal};
use super::gate::Gate;
use super::run::SEED_MAX;
use super::setting::{Overrides, Subject};
use super::{failure, files, finished, goes_on, on_a_thread, report, usage, watch};
use crate::terminal::{Style, grouped, say};

/// What is taken where the system does not say how much memory there is.
const MEMORY_MIB: u64 = 2048;

/// Arguments of `hedgerow-sim sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// Scenarios that come with Hedgerow, or paths of files
    #[arg(required = true)]
    scenarios: Vec<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// So many seeds, from 0; or those from A to before B
    #[arg(long, value_name = "N|A..B", default_value = "100")]
    seeds: Seeds,
    /// So many runs at once; as many as there are cores, if it is not said
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// No more runs at once than fit into so much memory (MiB); half of what is free, if it is not said
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    memory: Option<u64>,
    /// Remembers in this file which runs are over, and leaves them out the next time
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Writes summary and time series of every run into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Which seeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seeds(pub(super) Range<u64>);

impl FromStr for Seeds {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse::<u64>() {
            Ok(number) if number <= SEED_MAX => Ok(number),
            _ => Err(format!(
                "'{text}' is no seed: write how many, as in 1000, or from which to before which, as in 20..30"
            )),
        };
        let range = match text.split_once("..") {
            Some((from, to)) => number(from)?..number(to)?,
            None => 0..number(text)?,
        };
        if range.is_empty() {
            return Err("there is no seed in it".to_owned());
        }
        Ok(Self(range))
    }
}

/// Sweeps; an error if something was wrong, or if it was stopped before the end.
pub async fn run(args: SweepArgs) -> Result<()> {
    let subjects = args.scenarios.iter().map(|named| Subject::find(named, &args.overrides));
    let subjects: Vec<Subject> = subjects.collect::<Result<_, _>>()?;
    let (finished, mut journal) = match args.resume.as_deref().map(finished::open).transpose()? {
        Some((finished, journal)) => (finished, Some(journal)),
        None => (Finished::default(), None),
    };
    on_a_thread(move |shutdown| {
        let engines = Engines::of(subjects.iter().map(|subject| subject.level))?;
        let bounds = Bounds::of(&args);
        let directory = args.out.clone().unwrap_or_else(|| PathBuf::from("."));
        let sweep = Sweep::new(&engines, subjects, args.seeds.0, finished, args.out, bounds)?;
        let ended = sweep.run(journal.as_mut(), shutdown)?;
        sweep.tell(ended, journal.is_some(), &directory, shutdown)
    })
    .await
}

/// The levels that a sweep needs.
struct Engines {
    core: Option<Box<dyn Engine>>,
    full: Option<Box<dyn Engine>>,
}

impl Engines {
    fn of(levels: impl Iterator<Item = Level>) -> Result<Self> {
        let mut engines = Self { core: None, full: None };
        for level in levels {
            let engine = match level {
                Level::Core => &mut engines.core,
                Level::Full => &mut engines.full,
            };
            if engine.is_none() {
                *engine = Some(super::engine_of(level)?);
            }
        }
        Ok(engines)
    }
}

impl Engine for Engines {
    fn run(&self, job: &Job, progress: &mut Progress<'_>) -> Result<Outcome> {
        let engine = match job.level {
            Level::Core => self.core.as_deref(),
            Level::Full => self.full.as_deref(),
        };
        engine.with_context(|| format!("the {} level was not made ready", job.level))?.run(job, progress)
    }
}

/// What it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) jobs: usize,
    pub(super) memory_mib: u64,
}

impl Bounds {
    fn of(args: &SweepArgs) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let free = || usage::available_mib().map_or(MEMORY_MIB, |mib| (mib / 2).max(1));
        Self { jobs: args.jobs.map_or_else(cores, usize::from), memory_mib: args.memory.unwrap_or_else(free) }
    }
}

/// All runs, and which of them are over.
pub(super) struct Sweep<'a> {
    engine: &'a dyn Engine,
    subjects: Vec<(Subject, Fingerprint)>,
    seeds: Range<u64>,
    finished: Finished,
    out: Option<PathBuf>,
    gate: Gate,
    jobs: usize,
}

/// How it ended.
pub(super) struct Ended {
    /// So many runs were over before it began.
    pub(super) before: u64,
    /// And so many good ones have ended since.
    pub(super) now: u64,
    pub(super) took: Duration,
    /// The run in which something was wrong.
    pub(super) failed: Option<Box<(Job, Done)>>,
}

/// What a thread has to say.
enum Told {
    Good { index: u64, trace_hash: String },
    Failed(Box<(Job, Done)>),
    Broken(anyhow::Error),
}

/// When no further run begins, and those that go on are ended.
#[derive(Clone, Copy)]
struct Halt<'a> {
    stopped: &'a AtomicBool,
    shutdown: &'a Shutdown,
}

impl Halt<'_> {
    fn now(self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn is_not_asked_for(self) -> bool {
        !self.stopped.load(Ordering::Relaxed) && goes_on(self.shutdown)
    }
}

impl<'a> Sweep<'a> {
    pub(super) fn new(
        engine: &'a dyn Engine,
        mut subjects: Vec<Subject>,
        seeds: Range<u64>,
        finished: Finished,
        out: Option<PathBuf>,
        bounds: Bounds,
    ) -> Result<Self> {
        // The first run goes alone and shows how much memory a run takes: the largest.
        subjects.sort_by_key(|subject| Reverse(subject.scenario.population.nodes()));
        let program = program();
        let subjects = subjects.into_iter().map(|subject| {
            let fingerprint = Fingerprint::of(&subject, &program)?;
            Ok((subject, fingerprint))
        });
        let subjects = subjects.collect::<Result<Vec<_>>>()?;
        let gate = Gate::new(bounds.jobs, bounds.memory_mib as f64);
        Ok(Self { engine, subjects, seeds, finished, out, gate, jobs: bounds.jobs.max(1) })
    }

    /// How many runs there are.
    pub(super) fn runs(&self) -> u64 {
        (self.seeds.end - self.seeds.start).saturating_mul(self.subjects.len() as u64)
    }

    /// The `index`-th: every scenario with one seed before any with the next.
    fn pick(&self, index: u64) -> (&Subject, &Fingerprint, u64) {
        let subjects = self.subjects.len() as u64;
        let (subject, fingerprint) = &self.subjects[(index % subjects) as usize];
        (subject, fingerprint, self.seeds.start + index / subjects)
    }

    fn is_over(&self, index: u64) -> bool {
        let (_, fingerprint, seed) = self.pick(index);
        self.finished.has(fingerprint, seed)
    }

    /// Runs all that is not over, until one fails or somebody asks for an end. What is in memory are the runs that go on.
    pub(super) fn run(&self, mut journal: Option<&mut Journal>, shutdown: &Shutdown) -> Result<Ended> {
        let before = match self.finished.len() {
            0 => 0,
            _ => (0..self.runs()).filter(|index| self.is_over(*index)).count() as u64,
        };
        let bar = watch::sweep_bar(self.runs(), before);
        let (next, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
        let halt = Halt { stopped: &stopped, shutdown };
        let mut ended = Ended { before, now: 0, took: Duration::ZERO, failed: None };
        let began = Instant::now();
        let result = std::thread::scope(|scope| {
            let (tell, told) = mpsc::sync_channel(self.jobs);
            for _ in 0..self.jobs {
                let (tell, next) = (tell.clone(), &next);
                scope.spawn(move || self.work(next, halt, &tell));
            }
            drop(tell);
            // What still comes after the first failure was finished, and is worth being remembered.
            let mut result = Ok(());
            for message in told {
                let heard = match message {
                    Told::Good { index, trace_hash } => {
                        bar.inc(1);
                        ended.now += 1;
                        let (subject, fingerprint, seed) = self.pick(index);
                        journal
                            .as_mut()
                            .map_or(Ok(()), |journal| journal.add(&subject.name, fingerprint, seed, &trace_hash))
                    }
                    Told::Failed(failed) => {
                        ended.failed.get_or_insert(failed);
                        Ok(())
                    }
                    Told::Broken(error) => Err(error),
                };
                if heard.is_err() {
                    halt.now();
                    result = result.and(heard);
                }
            }
            result
        });
        bar.finish_and_clear();
        ended.took = began.elapsed();
        result.map(|()| ended)
    }

    /// One thread: one run after another.
    fn work(&self, next: &AtomicU64, halt: Halt<'_>, tell: &mpsc::SyncSender<Told>) {
        while halt.is_not_asked_for() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= self.runs() {
                return;
            }
            if self.is_over(index) {
                continue;
            }
            self.gate.enter();
            // Of a process of its own it is always known what it took; of this one, only while there is one run in it.
            let alone = self.gate.is_first() || self.pick(index).0.level == Level::Full;
            let result = self.one(index, halt);
            let peak = match &result {
                Ok(Some((_, done))) if alone => Some(done.summary.peak_rss_mib),
                _ => None,
            };
            self.gate.leave(peak);
            let message = match result {
                Err(error) => {
                    halt.now();
                    Told::Broken(error)
                }
                Ok(None) => return,
                Ok(Some((_, done))) if done.summary.is_good() => {
                    Told::Good { index, trace_hash: done.summary.trace_hash }
                }
                Ok(Some(failed)) => {
                    halt.now();
                    Told::Failed(Box::new(failed))
                }
            };
            if tell.send(message).is_err() {
                return;
            }
        }
    }

    /// One run; nothing, if it was ended before its end.
    fn one(&self, index: u64, halt: Halt<'_>) -> Result<Option<(Job, Done)>> {
        let (subject, _, seed) = self.pick(index);
        let job = Job::new(subject, seed);
        let outcome = self.engine.run(&job, &mut |_| match halt.is_not_asked_for() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        })?;
        let Outcome::Done(done) = outcome else { return Ok(None) };
        if let Some(out) = &self.out {
            files::write(out, &job, &done)?;
        }
        Ok(Some((job, *done)))
    }

    /// Says how it ended.
    fn tell(&self, ended: Ended, resumes: bool, directory: &Path, shutdown: &Shutdown) -> Result<()> {
        let style = Style::detect();
        let Ended { before, now, took, failed } = ended;
        let rate = now as f64 / took.as_secs_f64().max(1e-3);
        let mut text = format!("{} of {} runs are over", count(before + now), count(self.runs()));
        if before > 0 {
            text.push_str(&format!(", {} of them from before", count(before)));
        }
        say(format!("{text}; {rate:.1} runs/s, {} at once", self.gate.allowed().min(self.jobs)));
        if let Some(failed) = failed {
            let (job, done) = *failed;
            say(format!("{} {}", style.red("●"), style.bold(report::title(&job))));
            report::violation_lines(&done.summary.violations).into_iter().for_each(say);
            return Err(failure::tell(self.engine, &job, &done, directory, shutdown)?.into());
        }
        if before + now < self.runs() {
            let failure = Failure::runtime("stopped before all runs were over");
            return Err(match resumes {
                true => {
                    failure.means("nothing is lost that was finished").advice("the same command: it goes on from here")
                }
                false => failure.advice("--resume FILE the next time, which remembers what is over"),
            }
            .into());
        }
        say(format!("{} nothing was wrong", style.green("●")));
        Ok(())
    }
}

fn count(runs: u64) -> String {
    grouped(usize::try_from(runs).unwrap_or(usize::MAX))
}
