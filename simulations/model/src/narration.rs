//! What one node's view of a run is told as, for people: one line for each thing, with the virtual time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::plan::Effect;

/// Lines that are kept: what comes later is what one looks for.
const LINES_MAX: usize = 200_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Narration {
    lines: VecDeque<String>,
}

impl Narration {
    /// Something happened then.
    pub fn line(&mut self, at: Duration, text: &str) {
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>14.6} s  {text}", at.as_secs_f64()));
    }

    /// A fault began then, or was over.
    pub fn fault(&mut self, at: Duration, effect: &Effect, begins: bool) {
        let word = if begins { "begins" } else { "is over" };
        self.line(at, &format!("** {effect:?} {word}"));
    }

    /// All that was told, the earliest first.
    pub fn finish(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_lines_are_kept_and_say_when_to_the_microsecond() {
        let mut narration = Narration::default();
        for n in 0..=LINES_MAX as u64 {
            narration.line(Duration::from_micros(n), "x");
        }
        narration.fault(Duration::from_secs(90), &Effect::Leave { node: 3 }, false);
        let lines = narration.finish();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!(lines[0], "      0.000002 s  x");
        assert_eq!(lines[LINES_MAX - 1], "     90.000000 s  ** Leave { node: 3 } is over");
    }
}
