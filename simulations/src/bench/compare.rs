//! Pairs of slices, and what they say together.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::cpu;
use super::sides::Side;
use super::wrk::{self, Slice};
use crate::interop::peers::Peer;

/// Above this share of one core, others disturbed the measurement.
const FOREIGN_MAX: f64 = 0.2;

/// The head of the table that [`Comparison::row`] fills.
pub(super) const HEADER: &str = "\
| beside | c | CPU µs/request, hedgerow | other | ratio (quartiles) | requests/s, hedgerow | other | p99 ms, hedgerow | other | foreign CPU |
|---|--:|--:|--:|:-:|--:|--:|--:|--:|--:|";

/// One slice with its cost.
#[derive(Debug, Clone, Copy)]
struct Measured {
    slice: Slice,
    micros_per_request: f64,
}

/// Two sides, measured in turns.
#[derive(Debug)]
pub(super) struct Comparison {
    other: &'static str,
    connections: u32,
    pairs: Vec<(Measured, Measured)>,
    foreign: f64,
}

impl Comparison {
    /// Measures so many pairs.
    pub(super) async fn measure(
        ours: &Side,
        other: &Side,
        origin: &Peer,
        connections: u32,
        pairs: u32,
    ) -> Result<Self> {
        let taking_part = || anyhow::Ok(ours.cpu()? + other.cpu()? + cpu::of_group(origin.process.pid())?);
        for side in [ours, other] {
            wrk::slice(&side.url, connections).await?;
        }
        let mut measured = Vec::new();
        let mut foreign = Vec::new();
        for number in 0..pairs {
            let before = (cpu::of_machine()?, cpu::of_harness()?, taking_part()?);
            let begin = std::time::Instant::now();
            // A B, then B A, and so on: what drifts meets both alike.
            measured.push(if number.is_multiple_of(2) {
                let first = one(ours, connections).await?;
                (first, one(other, connections).await?)
            } else {
                let first = one(other, connections).await?;
                (one(ours, connections).await?, first)
            });
            let machine = cpu::of_machine()?.saturating_sub(before.0);
            let own = cpu::of_harness()?.saturating_sub(before.1) + taking_part()?.saturating_sub(before.2);
            foreign.push(machine.saturating_sub(own).as_secs_f64() / begin.elapsed().as_secs_f64());
        }
        Ok(Self { other: other.name, connections, pairs: measured, foreign: median(foreign) })
    }

    /// A row of the table.
    pub(super) fn row(&self) -> String {
        let of = |side: fn(&(Measured, Measured)) -> &Measured, value: fn(&Measured) -> f64| {
            median(self.pairs.iter().map(|pair| value(side(pair))).collect())
        };
        let cost = |measured: &Measured| measured.micros_per_request;
        let rate = |measured: &Measured| measured.slice.rate;
        let p99 = |measured: &Measured| measured.slice.p99.as_secs_f64() * 1e3;
        let ratios: Vec<_> = self.pairs.iter().map(|(ours, other)| cost(ours) / cost(other)).collect();
        format!(
            "| {} | {} | {:.1} | {:.1} | **{:.2}** ({:.2}–{:.2}) | {:.0} | {:.0} | {:.2} | {:.2} | {:.0}% |",
            self.other,
            self.connections,
            of(|pair| &pair.0, cost),
            of(|pair| &pair.1, cost),
            median(ratios.clone()),
            at(ratios.clone(), 0.25),
            at(ratios, 0.75),
            of(|pair| &pair.0, rate),
            of(|pair| &pair.1, rate),
            of(|pair| &pair.0, p99),
            of(|pair| &pair.1, p99),
            self.foreign * 100.0
        )
    }

    /// What a reader has to know about these figures.
    pub(super) fn warnings(&self) -> Vec<String> {
        let name = format!("{} at c={}", self.other, self.connections);
        let errors: u64 = self.pairs.iter().map(|(ours, other)| ours.slice.errors + other.slice.errors).sum();
        let mut warnings = Vec::new();
        if errors > 0 {
            warnings.push(format!("{name}: {errors} requests failed; its figures are worth nothing."));
        }
        if self.foreign > FOREIGN_MAX {
            warnings
                .push(format!("{name}: other processes took {:.0}% of a core; measure again.", self.foreign * 100.0));
        }
        warnings
    }
}

async fn one(side: &Side, connections: u32) -> Result<Measured> {
    let before = side.cpu()?;
    let slice = wrk::slice(&side.url, connections).await?;
    let used: Duration = side.cpu()?.saturating_sub(before);
    ensure!(slice.requests > 0, "{} answered nothing", side.name);
    Ok(Measured { slice, micros_per_request: used.as_secs_f64() * 1e6 / slice.requests as f64 })
}

fn median(values: Vec<f64>) -> f64 {
    at(values, 0.5)
}

/// The value below which this share of them lies, between two of them if need be.
fn at(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles_lie_between_the_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(at(vec![1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
    }
}
