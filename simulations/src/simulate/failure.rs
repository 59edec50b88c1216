//! What is told when something was wrong: what, with which seed of which commit, the faults made as few as still do it, and the one
//! command that shows it again.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_sim_model::plan::{Incident, Plan};
use hedgerow_sim_model::regression::Regression;
use hedgerow_sim_model::results::Violation;
use hedgerow_sim_model::shrink::shrink;

use super::commit::commit;
use super::engine::{Done, Engine, Job, Outcome};
use super::{files, goes_on, report, watch};
use crate::terminal::{Style, say};

/// So many runs, at most, to make the schedule shorter; a hundred faults need about as many.
const TRIES_MAX: usize = 200;
/// And so long, at most, in real time.
const SHORTENING_MAX: Duration = Duration::from_secs(300);

/// Tells it, and writes the regression into `directory`. What is returned ends the program with exit code 1.
pub(super) fn tell(
    engine: &dyn Engine,
    job: &Job,
    done: &Done,
    directory: &Path,
    shutdown: &Shutdown,
) -> Result<Failure> {
    let style = Style::detect();
    let violations = &done.summary.violations;
    let whole = job.plan.incidents.len();
    let mut shortest =
        Shortest { engine, job, shutdown, began: Instant::now(), tries: 0, violations: violations.clone() };
    let plan = Plan { incidents: shortest.find() };
    let tries = shortest.tries;
    say(style.bold(format!(
        "{} of {whole} faults are enough ({tries} more run{}{}):",
        plan.incidents.len(),
        if tries == 1 { "" } else { "s" },
        if goes_on(shutdown) { "" } else { ", then stopped; it may be shorter" }
    )));
    report::schedule(&plan.incidents).into_iter().for_each(say);
    say(format!("seed {}, commit {}", job.seed, commit()));
    let found = shortest.violations.first().map(Violation::to_string).unwrap_or_default();
    let regression = Regression {
        name: job.name.clone(),
        found,
        commit: commit().to_owned(),
        level: job.level,
        seed: job.seed,
        scenario: job.scenario.clone(),
        plan,
    };
    let path = files::write_regression(directory, &job.stem(), &regression)?;
    say(format!("see it again with:  {} replay {}", program(), quoted(&path.display().to_string())));
    Ok(Failure::runtime(format!("{} in {} with seed {}", report::count(violations), job.name, job.seed)))
}

/// The search for the shortest schedule of faults with which the same is wrong.
struct Shortest<'a> {
    engine: &'a dyn Engine,
    job: &'a Job,
    shutdown: &'a Shutdown,
    began: Instant,
    tries: usize,
    /// What was wrong with the shortest until now.
    violations: Vec<Violation>,
}

impl Shortest<'_> {
    fn find(&mut self) -> Vec<Incident> {
        let all = &self.job.plan.incidents;
        let bar = watch::spinner(String::new());
        let mut shortest = all.len();
        let mut fails = |incidents: &[Incident]| {
            bar.set_message(format!(
                "making the faults fewer: {shortest} of {} (run {}, at most {TRIES_MAX})",
                all.len(),
                self.tries + 1
            ));
            let fails = self.fails(incidents);
            if fails {
                shortest = incidents.len();
            }
            fails
        };
        // That no fault is needed is worth one run: the search would come to it last.
        let short = match !all.is_empty() && fails(&[]) {
            true => Vec::new(),
            false => shrink(all, TRIES_MAX, fails),
        };
        bar.finish_and_clear();
        short
    }

    /// Whether the same rule is broken with these faults. Once nobody waits any more, nothing is.
    fn fails(&mut self, incidents: &[Incident]) -> bool {
        let goes_on = || goes_on(self.shutdown) && self.began.elapsed() < SHORTENING_MAX;
        if !goes_on() {
            return false;
        }
        self.tries += 1;
        let plan = Plan { incidents: incidents.to_vec() };
        let job = Job { plan, trace_node: None, ..self.job.clone() };
        let outcome = self.engine.run(&job, &mut |_| match goes_on() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        });
        let Ok(Outcome::Done(done)) = outcome else { return false };
        let violations = done.summary.violations;
        let same = self.violations.first().is_some_and(|before| violations.iter().any(|now| now.rule == before.rule));
        if same {
            let rule = self.violations[0].rule.clone();
            self.violations = violations.into_iter().filter(|violation| violation.rule == rule).collect();
        }
        same
    }
}

/// This program, as it was called.
pub(super) fn program() -> String {
    let called = std::env::args_os().next().map(|called| called.to_string_lossy().into_owned());
    quoted(&called.unwrap_or_else(|| "hedgerow-sim".to_owned()))
}

/// For a shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=,@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (text, in_a_shell) in [
            ("a/b-c.toml", "a/b-c.toml"),
            ("two words", "'two words'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(text), in_a_shell);
        }
    }
}
