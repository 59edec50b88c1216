//! What happened, against what must hold.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use hedgerow_sim_model::span::Span;

use super::course::{Happened, Suffered, Traffic};
use super::doors::Door;
use super::lans;
use super::paths;
use super::people::{Node, People};
use super::scenario::Scenario;
use super::traffic::KINDS;
use super::world::World;
use crate::client::load::{Sample, quantile, reasons};
use crate::terminal::{Style, grouped, human, say};

/// So many of those with whom something is wrong are named.
const NAMED_MAX: usize = 5;

/// One figure, and whether it is as it must be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    /// What it is of.
    name: &'static str,
    /// It, in words.
    value: String,
    /// What it must be.
    bound: String,
    /// Whether it is.
    pub(super) holds: bool,
}

impl Figure {
    fn within(name: &'static str, value: Result<Duration, String>, bound: Span) -> Self {
        let holds = value.as_ref().is_ok_and(|value| *value <= bound.0);
        let value = value.map_or_else(|why| why, human);
        Self { name, value, bound: format!("at most {bound}"), holds }
    }

    fn back(node: &str, value: Result<Duration, String>, bound: Span) -> Self {
        let figure = Self::within("answered again", value, bound);
        Self { value: format!("{node} {}", figure.value), ..figure }
    }

    fn at_most(name: &'static str, value: f64, unit: &str, detail: &str, bound: f64) -> Self {
        let value = format!("{value:.1} {unit}{detail}");
        Self { name, holds: value_of(&value) <= bound, value, bound: format!("at most {bound} {unit}") }
    }

    /// Writes it on a line.
    pub(super) fn say(&self, style: Style) {
        let mark = if self.holds { style.green("  ok") } else { style.red("FAIL") };
        say(format!("{mark}  {:22} {}  {}", self.name, self.value, style.dim(format!("({})", self.bound))));
    }
}

/// What stands there is what is judged: a figure of 10.04 is shown as 10.0, and holds.
fn value_of(shown: &str) -> f64 {
    shown.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(f64::MAX)
}

/// How it began.
#[derive(Debug)]
pub(super) struct Began {
    /// How long it took until all had joined.
    pub(super) joined: Result<Duration, String>,
    /// And until all that can have a direct path had one, if that is asked for.
    pub(super) met: Option<Result<Duration, String>>,
}

/// All figures that the scenario asks for.
pub(super) async fn judge(
    scenario: &Scenario,
    world: &World,
    people: &People,
    began: Began,
    happened: &Happened,
) -> Result<Vec<Figure>> {
    let Began { joined, met } = began;
    let must = &scenario.must;
    let mut figures = Vec::new();
    figures.extend(must.join_within.map(|bound| Figure::within("joined", joined, bound)));
    if let (Some(bound), Some(met)) = (must.paths_within, met) {
        figures.push(Figure::within("direct paths", met, bound));
        figures.push(others_rest(people).await);
    }
    if let (Some(bound), Some(back)) = (must.paths_back_within, happened.paths_back.clone()) {
        figures.push(Figure::within("direct paths again", back, bound));
    }
    figures.extend(must.failed_max.map(|bound| failed(&happened.samples, bound)));
    if must.all_serve {
        figures.push(all_serve(people, &happened.samples));
    }
    for suffered in &happened.faults {
        if let Some(bound) = must.stops_sending_within {
            figures.push(Figure::within("stopped sending", Ok(stopped_sending(suffered, happened)), bound));
        }
        if let Some(bound) = must.back_within {
            figures.extend(suffered.back.iter().map(|(name, back)| Figure::back(name, back.clone(), bound)));
        }
        figures.extend(suffered.connected.map(parted));
        if let (Some(bound), Some(rehomed)) = (must.home_within, suffered.rehomed.clone()) {
            figures.push(Figure::within("another home", rehomed, bound));
        }
    }
    if let (Some(bound), Some(met)) = (must.on_lan_within, happened.on_lan.clone()) {
        figures.push(Figure::within("connected on the LAN", met, bound));
    }
    if must.never_on_lan {
        let found = lans::found(people).await?;
        let value = format!("{found} found another one there");
        figures.push(Figure { name: "on the LAN", value, bound: "none".to_owned(), holds: found == 0 });
    }
    if let (Some(bound), Some(agreed)) = (must.agree_within, happened.agreed.clone()) {
        figures.push(Figure::within("agreed", agreed, bound));
        if !happened.changes.is_empty() {
            figures.push(nothing_lost(world, people, happened).await?);
        }
    }
    for (name, share, bound) in
        [("change known, p50", 0.5, must.change_p50), ("change known, p99", 0.99, must.change_p99)]
    {
        figures.extend(bound.map(|bound| Figure::within(name, known(happened, share), bound)));
    }
    figures.extend(cost(scenario, people, happened).await?);
    Ok(figures)
}

/// Whether those that can have no direct path are connected by way of the entry, and have given the others up.
async fn others_rest(people: &People) -> Figure {
    let others = paths::others(people).await;
    let holds = others.is_ok();
    let value = others.map_or_else(|wrong| wrong, |ends| format!("{ends} ends by the entry, and at rest"));
    Figure { name: "no direct path", value, bound: "by the entry".to_owned(), holds }
}

fn failed(samples: &[Sample], bound: usize) -> Figure {
    let reasons: Vec<String> =
        reasons(samples).into_iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
    let count = samples.iter().filter(|sample| sample.result.is_err()).count();
    let again = samples.iter().filter(|sample| was_tried_again(sample)).count();
    let mut took: Vec<Duration> = samples.iter().map(|sample| sample.took).collect();
    let (p50, p99, longest) = (quantile(&mut took, 0.5), quantile(&mut took, 0.99), quantile(&mut took, 1.0));
    let mut value = format!(
        "{} of {} requests; {again} tried elsewhere; p50 {}, p99 {}, longest {}",
        grouped(count),
        grouped(samples.len()),
        human(p50),
        human(p99),
        human(longest)
    );
    if !reasons.is_empty() {
        value += &format!(": {}", reasons.join("; "));
    }
    // A load that never asked proves nothing.
    Figure { name: "failed", value, bound: format!("at most {bound}"), holds: count <= bound && !samples.is_empty() }
}

/// A fault that was to keep them apart, and did not, proves nothing.
fn parted(connected: u64) -> Figure {
    let value = format!("{connected} connections to other coordinators when it was over");
    Figure { name: "parted", value, bound: "none".to_owned(), holds: connected == 0 }
}

fn was_tried_again(sample: &Sample) -> bool {
    sample.result.as_ref().is_ok_and(|served| served.attempts > 1)
}

fn served_by(sample: &Sample, node: &Node) -> bool {
    sample.result.as_ref().is_ok_and(|served| *served.node == *node.id)
}

fn all_serve(people: &People, samples: &[Sample]) -> Figure {
    let count = |node: &Node| samples.iter().filter(|sample| served_by(sample, node)).count();
    let counts: Vec<(&str, usize)> = people.serving().map(|node| (node.member.name.as_str(), count(node))).collect();
    let value: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
    let holds = counts.iter().all(|(_, count)| *count > 0);
    Figure { name: "served", value: value.join(", "), bound: "each has".to_owned(), holds }
}

/// Until the last request was sent to one that did not answer it: each such request was tried elsewhere, or failed. What was still going on
/// when the next fault began may have been hit by that one, and does not count.
fn stopped_sending(suffered: &Suffered, happened: &Happened) -> Duration {
    let next = happened.faults.iter().map(|other| other.from).filter(|from| *from > suffered.from).min();
    let (until, next) = (suffered.until.unwrap_or(Duration::MAX), next.unwrap_or(Duration::MAX));
    let during = |sample: &&Sample| (suffered.from..until).contains(&sample.at) && sample.at + sample.took < next;
    let in_vain = |sample: &&Sample| was_tried_again(sample) || sample.result.is_err();
    let sent = happened.samples.iter().filter(during).filter(in_vain).map(|sample| sample.at - suffered.from);
    sent.max().unwrap_or_default()
}

/// Whether each coordinator knows every agent that registered and has not left, and none that has.
async fn nothing_lost(world: &World, people: &People, happened: &Happened) -> Result<Figure> {
    let of = |left: bool| -> BTreeSet<&str> {
        happened.changes.iter().filter(|changed| changed.left == left).map(|changed| changed.agent.as_str()).collect()
    };
    let (stayed, left) = (of(false), of(true));
    let (mut lost, mut risen) = (BTreeSet::new(), BTreeSet::new());
    for node in people.coordinators() {
        let known = Door::of(node, world)?.agents().await?;
        lost.extend(stayed.iter().filter(|agent| !known.contains(**agent)));
        risen.extend(left.iter().filter(|agent| known.contains(**agent)));
    }
    let wrong: Vec<&str> = lost.union(&risen).copied().take(NAMED_MAX).collect();
    let named = if wrong.is_empty() { String::new() } else { format!(": {}", wrong.join(", ")) };
    let value = format!(
        "{} of {} lost, {} of {} that left came back{named}",
        lost.len(),
        stayed.len(),
        risen.len(),
        left.len()
    );
    Ok(Figure { name: "changes", value, bound: "none".to_owned(), holds: lost.is_empty() && risen.is_empty() })
}

/// Until such a share of the changes was everywhere.
pub(super) fn known(happened: &Happened, share: f64) -> Result<Duration, String> {
    let never = happened.changes.iter().filter(|changed| changed.known_after.is_none()).count();
    if never > 0 {
        return Err(format!("{never} of {} never reached all", happened.changes.len()));
    }
    let mut took: Vec<Duration> = happened.changes.iter().filter_map(|changed| changed.known_after).collect();
    match took.len() {
        0 => Err("nothing was changed".to_owned()),
        _ => Ok(quantile(&mut took, share)),
    }
}

async fn cost(scenario: &Scenario, people: &People, happened: &Happened) -> Result<Vec<Figure>> {
    let must = &scenario.must;
    let (mut coordinators, mut workers, mut resident) = (Traffics::default(), Traffics::default(), Vec::new());
    for (node, traffic) in people.nodes.iter().zip(&happened.traffic) {
        if !node.member.role.coordinates() {
            workers.add(traffic, 1.0);
        } else if must.coordinator_kbit_max.is_some() {
            let neighbours = node.on_the_mesh().await?["coordinators"].as_f64().unwrap_or_default();
            coordinators.add(traffic, neighbours.max(1.0));
        }
    }
    if must.coordinator_mib_max.is_some() {
        for node in people.coordinators() {
            resident.push(node.actor.process().usage()?.resident_bytes as f64 / f64::from(1 << 20));
        }
    }
    let mut figures = Vec::new();
    if let Some(bound) = must.coordinator_kbit_max {
        figures.push(coordinators.figure("coordinator at rest", "a neighbour", happened.counted_for, bound));
    }
    if let Some(bound) = must.coordinator_mib_max {
        let detail = format!(" resident at most, mean {:.1}", mean(&resident));
        figures.push(Figure::at_most("coordinator", most(&resident), "MiB", &detail, bound));
    }
    if let Some(bound) = must.worker_kbit_max {
        figures.push(workers.figure("worker at rest", "in all", happened.counted_for, bound));
    }
    Ok(figures)
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len().max(1) as f64
}

fn most(of: &[f64]) -> f64 {
    of.iter().copied().fold(0.0, f64::max)
}

/// What nodes of one kind have sent and received.
#[derive(Debug, Default)]
struct Traffics {
    /// Bytes of each, for each of its neighbours.
    bytes: Vec<f64>,
    /// Of all of them, without that division, of each kind.
    bytes_of: [u64; KINDS.len()],
    neighbours: Vec<f64>,
}

impl Traffics {
    fn add(&mut self, traffic: &Traffic, neighbours: f64) {
        self.bytes.push(traffic.bytes as f64 / neighbours);
        self.neighbours.push(neighbours);
        self.bytes_of.iter_mut().zip(traffic.bytes_of).for_each(|(sum, bytes)| *sum += bytes);
    }

    fn figure(&self, name: &'static str, each: &str, measured: Duration, bound: f64) -> Figure {
        let kbit = |bytes: f64| bytes * 8.0 / 1000.0 / measured.as_secs_f64();
        let one = |bytes: u64| kbit(bytes as f64) / self.bytes.len().max(1) as f64;
        let parts: Vec<String> = KINDS
            .iter()
            .zip(self.bytes_of)
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(kind, bytes)| format!("{kind} {:.1}", one(bytes)))
            .collect();
        let mut detail = format!(" {each} at most, mean {:.1}; of one: {}", kbit(mean(&self.bytes)), parts.join(", "));
        if most(&self.neighbours) > 1.0 {
            detail += &format!("; {:.0} neighbours", mean(&self.neighbours));
        }
        Figure::at_most(name, kbit(most(&self.bytes)), "kbit/s", &detail, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::load::Served;

    fn sample(at: u64, took: u64, attempts: u32) -> Sample {
        let [at, took] = [at, took].map(Duration::from_millis);
        Sample { at, took, target: 0, result: Ok(Served { node: "n".into(), attempts }) }
    }

    fn fault(from: u64, until: Option<u64>) -> Suffered {
        let until = until.map(Duration::from_millis);
        Suffered { from: Duration::from_millis(from), until, connected: None, rehomed: None, back: Vec::new() }
    }

    #[test]
    fn requests_in_vain_are_counted_to_the_fault_that_they_met() {
        let faults = vec![fault(1000, Some(5000)), fault(8000, None)];
        let samples = vec![
            sample(900, 10, 2),
            sample(1400, 330, 2),
            sample(4000, 10, 1),
            // After the end of the first fault, and on its way when the second one began.
            sample(5100, 10, 2),
            sample(7990, 330, 2),
            sample(8200, 330, 2),
        ];
        let happened = Happened { samples, faults, ..Happened::default() };
        let stopped = |index: usize| stopped_sending(&happened.faults[index], &happened);
        assert_eq!(stopped(0), Duration::from_millis(400));
        assert_eq!(stopped(1), Duration::from_millis(200));
    }

    #[test]
    fn a_load_that_never_asked_has_not_held_anything() {
        assert!(!failed(&[], 0).holds);
        assert!(failed(&[sample(0, 1, 1)], 0).holds);
    }

    #[test]
    fn what_is_shown_is_what_is_judged() {
        assert!(Figure::at_most("x", 10.04, "kbit/s", "", 10.0).holds);
        assert!(!Figure::at_most("x", 10.06, "kbit/s", "", 10.0).holds);
        assert!(!Figure::within("x", Err("never".to_owned()), Span::seconds(1)).holds);
    }
}
