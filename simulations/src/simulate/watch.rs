//! What a person sees while it runs.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use hedgerow_process::shutdown::Shutdown;
use hedgerow_sim_model::span::Span;
use indicatif::{ProgressBar, ProgressStyle};

use super::goes_on;

/// How often the numbers change: faster than this nobody reads.
const REDRAWN: Duration = Duration::from_millis(200);

/// One run's way through virtual time, on standard error where that is a terminal.
pub(super) struct Watch<'a> {
    bar: ProgressBar,
    until: Duration,
    began: Instant,
    drawn: Instant,
    shutdown: &'a Shutdown,
}

impl<'a> Watch<'a> {
    pub(super) fn new(until: Duration, shutdown: &'a Shutdown) -> Self {
        let bar = ProgressBar::new(u64::try_from(until.as_millis()).unwrap_or(u64::MAX));
        bar.set_style(style("{bar:40} {percent:>3}%  {msg}, {eta} left"));
        bar.enable_steady_tick(Duration::from_secs(1));
        let now = Instant::now();
        Self { bar, until, began: now, drawn: now, shutdown }
    }

    /// For an engine.
    pub(super) fn at(&mut self, now: Duration) -> ControlFlow<()> {
        if !goes_on(self.shutdown) {
            return ControlFlow::Break(());
        }
        if self.drawn.elapsed() >= REDRAWN {
            self.drawn = Instant::now();
            let speed = now.as_secs_f64() / self.began.elapsed().as_secs_f64().max(1e-3);
            self.bar.set_position(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
            self.bar.set_message(format!("{} of {}, {speed:.0} × real time", whole(now), Span(self.until)));
        }
        ControlFlow::Continue(())
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A sweep's way through its runs.
pub(super) fn sweep_bar(runs: u64, before: u64) -> ProgressBar {
    let bar = ProgressBar::new(runs);
    bar.set_style(style("{bar:40} {pos}/{len} runs, {per_sec}, {eta} left  {msg}"));
    // Those of an earlier sweep say nothing of how fast this one is.
    bar.set_position(before);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// What is done when nobody knows how long it takes.
pub(super) fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_message(message);
    bar.enable_steady_tick(REDRAWN);
    bar
}

/// In whole seconds.
pub(super) fn whole(time: Duration) -> Span {
    Span::seconds(time.as_secs())
}

fn style(template: &str) -> ProgressStyle {
    // A template with a mistake in it must not take the run with it; a test reads both.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
