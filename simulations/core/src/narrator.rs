//! Tells what one node is told, for people.

use std::time::Duration;

use hedgerow_sim_model::narration::Narration;
use hedgerow_sim_model::plan::Effect;

use crate::net::Input;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    of: Option<u32>,
    narration: Narration,
}

impl Narrator {
    pub(crate) fn new(of: Option<u32>) -> Self {
        Self { of, narration: Narration::default() }
    }

    pub(crate) fn told(&mut self, at: Duration, node: u32, input: &Input) {
        if self.of == Some(node) {
            self.narration.line(at, &format!("{input:?}"));
        }
    }

    pub(crate) fn fault(&mut self, at: Duration, effect: &Effect, begins: bool) {
        if self.of.is_some() {
            self.narration.fault(at, effect, begins);
        }
    }

    pub(crate) fn finish(self) -> Vec<String> {
        self.narration.finish()
    }
}
