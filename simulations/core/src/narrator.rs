//! Tells what one node is told, for people: one line for each thing.

use std::time::Duration;

use hedgerow_sim_model::plan::Effect;

use crate::net::Input;

/// Lines that are kept: what comes later is what one looks for.
const LINES_MAX: usize = 200_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    of: Option<u32>,
    lines: std::collections::VecDeque<String>,
}

impl Narrator {
    pub(crate) fn new(of: Option<u32>) -> Self {
        Self { of, lines: Default::default() }
    }

    pub(crate) fn told(&mut self, at: Duration, node: u32, input: &Input) {
        if self.of == Some(node) {
            self.line(at, &format!("{input:?}"));
        }
    }

    pub(crate) fn fault(&mut self, at: Duration, effect: &Effect, begins: bool) {
        if self.of.is_some() {
            let word = if begins { "begins" } else { "is over" };
            self.line(at, &format!("** {effect:?} {word}"));
        }
    }

    fn line(&mut self, at: Duration, text: &str) {
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>14.6} s  {text}", at.as_secs_f64()));
    }

    pub(crate) fn finish(self) -> Vec<String> {
        self.lines.into()
    }
}
