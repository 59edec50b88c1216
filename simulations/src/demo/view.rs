//! What a person sees while it runs: on a terminal a table that is redrawn in place, otherwise plain lines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::listener::Heard;
use super::registry::{Look, short};
use crate::client::load::{Sample, View, quantile};
use crate::terminal::{Style, grouped, human, say};

/// How often the table is redrawn.
const REDRAW: Duration = Duration::from_millis(250);
/// How often a plain line is written where there is no terminal.
const PLAIN_LINE: Duration = Duration::from_secs(2);
/// Over how much of the past the rates are taken.
const RECENT: Duration = Duration::from_secs(2);

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Up,
    Paused,
    Killed,
    Left,
}

#[derive(Debug)]
struct Row {
    name: String,
    role: &'static str,
    detail: String,
    state: State,
    id: String,
    served: usize,
}

#[derive(Debug)]
struct Inner {
    style: Style,
    length: Duration,
    began: Mutex<Option<Instant>>,
    rows: Mutex<Vec<Row>>,
    /// What was seen last of the registry.
    look: Mutex<Look>,
    /// The traffic, and how much of each has been counted.
    followed: Mutex<Vec<(View, usize)>>,
    bar: ProgressBar,
}

/// The board that everybody writes on.
#[derive(Debug, Clone)]
pub(super) struct Board(Arc<Inner>);

impl Board {
    pub(super) fn new(style: Style, length: Duration) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(style));
        Self(Arc::new(Inner {
            style,
            length,
            began: Mutex::default(),
            rows: Mutex::default(),
            look: Mutex::default(),
            followed: Mutex::default(),
            bar,
        }))
    }

    /// A spinner for what takes a while before the traffic begins.
    pub(super) fn phase(&self, message: &'static str) -> ProgressBar {
        let spinner = ProgressBar::with_draw_target(None, target(self.0.style)).with_message(message);
        spinner.enable_steady_tick(Duration::from_millis(80));
        spinner
    }

    pub(super) fn add(&self, name: &str, role: &'static str, detail: String, state: State) {
        let row = Row { name: name.to_owned(), role, detail, state, id: String::new(), served: 0 };
        self.rows().push(row);
    }

    pub(super) fn identify(&self, name: &str, id: &str) {
        self.with_row(name, |row| row.id = id.to_owned());
    }

    pub(super) fn describe(&self, name: &str, detail: String) {
        self.with_row(name, |row| row.detail = detail);
    }

    pub(super) fn set(&self, name: &str, state: State) {
        self.with_row(name, |row| row.state = state);
    }

    /// What is to be shown of the registry from now on.
    pub(super) fn see(&self, look: Look) {
        *lock(&self.0.look) = look;
    }

    /// This traffic counts too.
    pub(super) fn follow(&self, load: View) {
        lock(&self.0.followed).push((load, 0));
    }

    /// A line that stays.
    pub(super) fn note(&self, line: impl AsRef<str>) {
        if self.0.style.live {
            self.0.bar.suspend(|| say(line.as_ref()));
        } else {
            say(line.as_ref());
        }
    }

    /// Something that was done, with its time.
    pub(super) fn act(&self, what: &str) {
        let at = self.elapsed().unwrap_or_default().as_secs_f64();
        self.note(format!("{} {what}", self.0.style.yellow(format!("{at:6.2} s"))));
    }

    /// Draws until it is aborted.
    pub(super) fn paint(&self, heard: Arc<Mutex<Heard>>) -> JoinHandle<()> {
        *lock(&self.0.began) = Some(Instant::now());
        self.0.bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or(ProgressStyle::default_bar()));
        let board = self.clone();
        tokio::spawn(async move {
            let mut recent = Recent::default();
            let mut ticks = tokio::time::interval(if board.0.style.live { REDRAW } else { PLAIN_LINE });
            ticks.tick().await;
            loop {
                ticks.tick().await;
                for (began, fresh) in board.fresh() {
                    board.count(&fresh);
                    recent.add(began, fresh);
                }
                let line = board.status_line(&mut recent, &lock(&heard));
                if board.0.style.live {
                    board.0.bar.set_message(format!("{}\n{line}\n{}", board.table(), board.bar_line()));
                } else {
                    say(line);
                }
            }
        })
    }

    /// Takes the table away.
    pub(super) fn finish(&self) {
        self.0.bar.finish_and_clear();
    }

    /// The samples that came since this was asked last, each load's with its beginning.
    fn fresh(&self) -> Vec<(Instant, Vec<Sample>)> {
        let mut followed = lock(&self.0.followed);
        let fresh = followed.iter_mut().map(|(load, counted)| {
            let fresh = load.samples_from(*counted);
            *counted += fresh.len();
            (load.began(), fresh)
        });
        fresh.collect()
    }

    fn count(&self, fresh: &[Sample]) {
        let mut served: BTreeMap<&str, usize> = BTreeMap::new();
        for sample in fresh.iter().filter_map(|sample| sample.result.as_ref().ok()) {
            *served.entry(&sample.node).or_default() += 1;
        }
        for row in self.rows().iter_mut() {
            row.served += if row.role == "entry" {
                served.values().sum()
            } else {
                served.get(row.id.as_str()).copied().unwrap_or(0)
            };
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let head = ["process", "state", "answers", "registry, home", "where and what"];
        table.load_preset(UTF8_BORDERS_ONLY).set_header(head);
        if !self.0.style.colour {
            table.force_no_tty();
        }
        let look = lock(&self.0.look).clone();
        let rows = self.rows();
        for row in rows.iter() {
            let (word, colour) = match row.state {
                State::Up => ("up", Color::Green),
                State::Starting => ("starting", Color::Yellow),
                State::Paused => ("paused", Color::Magenta),
                State::Killed => ("killed", Color::Red),
                State::Left => ("left", Color::DarkGrey),
            };
            let answers = if row.role == "coordinator" { String::new() } else { grouped(row.served) };
            table.add_row([
                Cell::new(&row.name).add_attribute(Attribute::Bold),
                Cell::new(format!("● {word}")).fg(colour),
                Cell::new(answers).set_alignment(CellAlignment::Right),
                registry_cell(&row.name, &look, &rows),
                Cell::new(&row.detail),
            ]);
        }
        table
    }

    fn status_line(&self, recent: &mut Recent, heard: &Heard) -> String {
        let style = self.0.style;
        let failed = recent.failed;
        let failed = if failed == 0 { style.green("0 failed") } else { style.yellow(format!("{failed} failed")) };
        format!(
            "{:5.1} s  {:>7} requests, {failed}  {:4.0}/s  p50 {}  p99 {}  {} events  {}",
            self.elapsed().unwrap_or_default().as_secs_f64(),
            grouped(recent.taken),
            recent.rate(),
            human(recent.quantile(0.5)),
            human(recent.quantile(0.99)),
            grouped(heard.events),
            self.agreement()
        )
    }

    /// Whether all who hold the registry hold the same.
    fn agreement(&self) -> String {
        let (style, look) = (self.0.style, lock(&self.0.look).clone());
        let coordinators = look.coordinators().count();
        match (look.agreed(), look.coordinators_agreed()) {
            (Some(digest), _) => style.green(format!("registry {} × {}", look.digests.len(), short(digest))),
            (None, Some(digest)) => {
                style.green(format!("registry {coordinators} × {}, the entry another", short(digest)))
            }
            (None, None) => style.yellow("registries differ"),
        }
    }

    fn bar_line(&self) -> String {
        const WIDTH: usize = 60;
        let share = self.elapsed().unwrap_or_default().as_secs_f64() / self.0.length.as_secs_f64();
        let full = ((share * WIDTH as f64) as usize).min(WIDTH);
        format!("{}{}", self.0.style.green("━".repeat(full)), self.0.style.dim("━".repeat(WIDTH - full)))
    }

    fn elapsed(&self) -> Option<Duration> {
        lock(&self.0.began).map(|began| began.elapsed())
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        lock(&self.0.rows)
    }

    fn with_row(&self, name: &str, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.rows().iter_mut().find(|row| row.name == name) {
            change(row);
        }
    }
}

/// The digest of who holds the registry, the home of a worker.
fn registry_cell(name: &str, look: &Look, rows: &[Row]) -> Cell {
    if let Some(digest) = look.digests.get(name) {
        let colour = if digest.as_deref() == look.prevailing() { Color::Green } else { Color::Yellow };
        return Cell::new(digest.as_deref().map_or("silent", short)).fg(colour);
    }
    match look.homes.get(name) {
        None => Cell::new(""),
        Some(None) => Cell::new("no home").fg(Color::Yellow),
        Some(Some(home)) => {
            let row = rows.iter().find(|row| row.id == *home);
            Cell::new(format!("at {}", row.map_or(short(home), |row| &row.name)))
        }
    }
}

/// The last moments of the traffic.
#[derive(Debug, Default)]
struct Recent {
    taken: usize,
    failed: usize,
    /// When each ended, and how long it had taken.
    samples: VecDeque<(Instant, Duration)>,
}

impl Recent {
    fn add(&mut self, began: Instant, fresh: Vec<Sample>) {
        self.taken += fresh.len();
        for sample in fresh {
            self.failed += usize::from(sample.result.is_err());
            self.samples.push_back((began + sample.at + sample.took, sample.took));
        }
        self.samples.retain(|(at, _)| at.elapsed() <= RECENT);
    }

    fn rate(&self) -> f64 {
        self.samples.len() as f64 / RECENT.as_secs_f64()
    }

    fn quantile(&self, share: f64) -> Duration {
        let mut took: Vec<_> = self.samples.iter().map(|(_, took)| *took).collect();
        quantile(&mut took, share)
    }
}

fn target(style: Style) -> ProgressDrawTarget {
    if style.live { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
