//! Scenarios: what is simulated, as TOML. Unknown keys are errors. `simulations/README.md` describes every key.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::nat::{Dependence, Nat};
use crate::span::Span;

mod fault;

pub use fault::{Among, Fault, Malice, Shape, Who};

/// Why a file is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error(
        "cannot read the scenario {path}: {reason}. The scenarios that come with Hedgerow are in simulations/scenarios"
    )]
    Read {
        /// As given.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// It is no TOML, or says something that no scenario says.
    #[error("the scenario {path} is not one: {reason}")]
    Parse {
        /// As given.
        path: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// What it says cannot be.
    #[error("the scenario {path} cannot be run: {reason}")]
    Invalid {
        /// As given.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Which code a run drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The state machines of `hedgerow-proto`, over simulated connections.
    Core,
    /// Everything: libp2p, the tunnels, hyper, in virtual time.
    Full,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Core => "core",
            Self::Full => "full",
        })
    }
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it shows, in a sentence.
    pub about: String,
    /// The levels that it makes sense at; the first is the usual one.
    #[serde(default = "both_levels")]
    pub levels: Vec<Level>,
    /// Virtual time, from the first join to the end.
    pub duration: Span,
    /// For so long before the end nothing is wrong any more, and everything must be right: the bound of liveness.
    #[serde(default = "default_settle")]
    pub settle: Span,
    /// Who takes part.
    #[serde(default)]
    pub population: Population,
    /// How their links are.
    #[serde(default)]
    pub network: Network,
    /// Behind what they are; whoever is left over by the shares is open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nat: Vec<NatShare>,
    /// What clients ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// What changes in the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// Faults at a time of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Timed>,
    /// Faults at random times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub random: Vec<Recurring>,
}

fn both_levels() -> Vec<Level> {
    vec![Level::Core]
}

fn default_settle() -> Span {
    Span::seconds(120)
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Population {
    /// Entries of the public domain.
    pub entries: u32,
    /// Nodes that coordinate because their operators say so.
    pub coordinators: u32,
    /// Nodes that offer services.
    pub workers: u32,
    /// The share of the workers that stand for election.
    pub elective: f64,
    /// The share of the nodes that run a later version, which says things that this one does not know.
    pub newer_version: f64,
    /// They join one after another within this time.
    pub joins_over: Span,
    /// How many different services there are.
    pub services: u32,
    /// How many of them each worker offers.
    pub services_per_worker: u32,
    /// How many requests each takes at once.
    pub capacity: u32,
    /// The bounds that they run with.
    pub limits: LimitsName,
    /// Each node's clock begins up to so far from where the others' do: nobody's clock matters.
    pub clock_offset_max: Span,
    /// Each node's clock is up to so many parts per million too fast or too slow.
    pub clock_drift_ppm_max: u32,
}

impl Default for Population {
    fn default() -> Self {
        Self {
            entries: 1,
            coordinators: 5,
            workers: 20,
            elective: 0.0,
            newer_version: 0.0,
            joins_over: Span::seconds(10),
            services: 4,
            services_per_worker: 1,
            capacity: 4,
            limits: LimitsName::Production,
            clock_offset_max: Span::seconds(3600),
            clock_drift_ppm_max: 50,
        }
    }
}

impl Population {
    /// Entries, coordinators and workers together.
    pub fn nodes(&self) -> u32 {
        self.entries + self.coordinators + self.workers
    }

    /// The same mixture with this many coordinators and workers together; at least one coordinator stays.
    pub fn scaled_to(&self, nodes: u32) -> Self {
        let before = f64::from((self.coordinators + self.workers).max(1));
        let share = f64::from(self.coordinators) / before;
        let coordinators = ((f64::from(nodes) * share).round() as u32).clamp(1.min(nodes), nodes);
        Self { coordinators, workers: nodes - coordinators, ..self.clone() }
    }
}

/// The bounds of the registry, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitsName {
    /// What the binaries run with.
    Production,
    /// So small that every bound is reached.
    Tiny,
}

/// How links are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Network {
    /// One way, of each pair.
    pub latency: Latency,
    /// On top of it, for each message: from nothing up to so much.
    pub jitter: Span,
    /// Of each node's uplink, in kbit/s; an entry's is a hundred times as wide. 0 is without bound.
    pub uplink_kbit: u64,
    /// The share of packets that are lost; each costs a retransmission.
    pub loss: f64,
    /// Losses come in bursts of this many packets on average (Gilbert, "Capacity of a burst-noise channel", 1960); 1 is each for
    /// itself.
    pub loss_burst: f64,
    /// A connection over which nothing gets through for so long is given up by both ends.
    pub gives_up_after: Span,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency: Latency::Uniform { min: Span::millis(5), max: Span::millis(60) },
            jitter: Span::millis(5),
            uplink_kbit: 10_000,
            loss: 0.0,
            loss_burst: 1.0,
            gives_up_after: Span::seconds(15),
        }
    }
}

/// How long a packet is on its way, one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "kind")]
pub enum Latency {
    /// Each pair draws its own from this range.
    Uniform {
        /// The least.
        min: Span,
        /// The most.
        max: Span,
    },
    /// Each pair draws its own: most are near, a few are far.
    LogNormal {
        /// Half of the pairs are below this.
        median: Span,
        /// The deviation of the logarithm.
        sigma: f64,
    },
    /// Nodes are in regions.
    Regions {
        /// The share of the nodes in each region.
        shares: Vec<f64>,
        /// From each region to each, in milliseconds.
        matrix_ms: Vec<Vec<f64>>,
    },
}

/// A share of the nodes that is behind one kind of NAT.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NatShare {
    /// Of all coordinators and workers.
    pub share: f64,
    /// RFC 4787 §4.1.
    pub mapping: Dependence,
    /// RFC 4787 §5.
    pub filtering: Dependence,
    /// Whether UDP goes out.
    #[serde(default = "yes")]
    pub udp: bool,
}

fn yes() -> bool {
    true
}

impl NatShare {
    /// The NAT.
    pub fn nat(&self) -> Nat {
        Nat { mapping: self.mapping, filtering: self.filtering, udp: self.udp }
    }
}

/// What clients ask, from the time when all have joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Load {
    /// Requests a second, at random times, by all clients together.
    pub requests_per_second: f64,
    /// The share of them that must not run twice.
    pub once: f64,
    /// How long a service takes: exponential, with this mean.
    pub service_time: Span,
    /// A client waits for so long.
    pub patience: Span,
}

impl Default for Load {
    fn default() -> Self {
        Self { requests_per_second: 10.0, once: 0.3, service_time: Span::millis(50), patience: Span::seconds(30) }
    }
}

/// Agents of the existing contract that register at one coordinator after another, from when all have joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Changes {
    /// From then on.
    #[serde(default)]
    pub from: Span,
    /// One after so long.
    pub every: Span,
    /// How many.
    pub count: usize,
    /// So many stay: with each that registers beyond them the oldest one leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_after: Option<usize>,
}

/// A fault at a time of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Timed {
    /// When, from the beginning.
    pub at: Span,
    /// For how long; for ever, without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
    /// What.
    pub fault: Fault,
}

/// Faults that come at random times: as a Poisson process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recurring {
    /// How many a minute.
    pub per_minute: f64,
    /// From when.
    #[serde(default)]
    pub from: Span,
    /// Until when; the time to settle is always kept free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Span>,
    /// Each lasts from so long …
    pub lasts_min: Span,
    /// … to so long.
    pub lasts_max: Span,
    /// What.
    pub fault: Fault,
}

impl Scenario {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScenarioError::Read { path: path.display().to_string(), reason: error.to_string() })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads a text; `path` is what it is called in errors.
    pub fn parse(path: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|error| ScenarioError::Parse { path: path.to_owned(), reason: error.to_string() })?;
        scenario.check().map_err(|reason| ScenarioError::Invalid { path: path.to_owned(), reason })?;
        Ok(scenario)
    }

    /// What it says must be possible.
    pub fn check(&self) -> Result<(), String> {
        let share = |what: &str, share: f64| match (0.0..=1.0).contains(&share) {
            true => Ok(()),
            false => Err(format!("{what} is {share}, and must be from 0 to 1")),
        };
        let rate = |what: &str, rate: f64| match rate.is_finite() && rate >= 0.0 {
            true => Ok(()),
            false => Err(format!("{what} is {rate}, and must be 0 or more")),
        };
        if self.levels.is_empty() {
            return Err("levels is empty: name core, full, or both".into());
        }
        if self.settle >= self.duration {
            return Err(format!("it lasts for {}, and is to settle for {}", self.duration, self.settle));
        }
        let Population { coordinators, services, services_per_worker, capacity, .. } = self.population;
        if coordinators == 0 {
            return Err("population.coordinators is 0: somebody must hold the registry".into());
        }
        if services == 0 || services_per_worker == 0 || services_per_worker > services || capacity == 0 {
            return Err("services, services-per-worker and capacity must be 1 or more, and no worker offers more services than there are".into());
        }
        share("population.elective", self.population.elective)?;
        share("population.newer-version", self.population.newer_version)?;
        share("network.loss", self.network.loss)?;
        if self.network.loss > 0.9 {
            return Err("network.loss is above 0.9: no connection would come up".into());
        }
        if !(self.network.loss_burst >= 1.0 && self.network.loss_burst.is_finite()) {
            return Err("network.loss-burst must be 1 or more".into());
        }
        self.network.latency.check()?;
        for nat in &self.nat {
            share("nat.share", nat.share)?;
        }
        if self.nat.iter().map(|nat| nat.share).sum::<f64>() > 1.0 + 1e-9 {
            return Err("the shares of nat are more than 1 together".into());
        }
        if let Some(load) = &self.load {
            rate("load.requests-per-second", load.requests_per_second)?;
            share("load.once", load.once)?;
        }
        let quiet_from = self.duration.0 - self.settle.0;
        if let Some(changes) = &self.changes {
            if self.levels.contains(&Level::Core) {
                return Err("there are [changes], which the core level does not make: levels = [\"full\"]".into());
            }
            let count = u32::try_from(changes.count).unwrap_or(u32::MAX);
            let lasts = changes.every.0.saturating_mul(count).saturating_add(changes.from.0);
            if lasts.saturating_add(self.population.joins_over.0) > quiet_from {
                return Err("the changes go on into the time to settle".into());
            }
        }
        for timed in &self.timeline {
            timed.fault.check()?;
            let end = timed.at.0 + timed.lasts.map_or(std::time::Duration::ZERO, |lasts| lasts.0);
            if end > quiet_from {
                return Err(format!("a fault at {} goes on into the time to settle", timed.at));
            }
        }
        for recurring in &self.random {
            rate("random.per-minute", recurring.per_minute)?;
            recurring.fault.check()?;
            if recurring.lasts_min > recurring.lasts_max {
                return Err("random.lasts-min is above lasts-max".into());
            }
        }
        Ok(())
    }
}

impl Latency {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Uniform { min, max } if min > max => Err("latency.min is above latency.max".into()),
            Self::LogNormal { sigma, .. } if !(0.0..=3.0).contains(sigma) => {
                Err("latency.sigma must be from 0 to 3".into())
            }
            Self::Regions { shares, matrix_ms } => {
                let n = shares.len();
                let square = n > 0 && matrix_ms.len() == n && matrix_ms.iter().all(|row| row.len() == n);
                let good = |ms: &f64| ms.is_finite() && (0.0..=60_000.0).contains(ms);
                if !square || !matrix_ms.iter().flatten().all(good) || !shares.iter().all(|share| *share >= 0.0) {
                    return Err(
                        "latency.matrix-ms needs a row for each region, and in it a time for each region".into()
                    );
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "about = 'x'\nduration = '5m'\n";

    #[test]
    fn what_is_left_out_is_what_is_usual() {
        let scenario = Scenario::parse("x", SMALL).unwrap();
        assert_eq!(scenario.population, Population::default());
        assert_eq!(scenario.network, Network::default());
        assert_eq!(scenario.levels, [Level::Core]);
    }

    #[test]
    fn a_key_that_no_scenario_has_is_named() {
        for (text, named) in [
            ("wobble = 1", "wobble"),
            ("[population]\ncoordinatros = 3", "coordinatros"),
            ("[network.latency]\nkind = 'uniform'\nmin = '1ms'\nmax = '2ms'\nmean = '1ms'", "mean"),
            ("[[timeline]]\nat = '1s'\nfault = { kind = 'pause', whom = 1 }", "whom"),
            ("[[timeline]]\nat = '1s'\nfault = { kind = 'paws' }", "paws"),
        ] {
            let error = Scenario::parse("x", &format!("{SMALL}{text}")).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        for (text, reason) in [
            ("settle = '6m'", "settle"),
            ("[population]\ncoordinators = 0", "coordinators"),
            ("[network]\nloss = 1.5", "loss"),
            ("[network.latency]\nkind = 'regions'\nshares = [0.5, 0.5]\nmatrix-ms = [[1.0]]", "needs a row"),
            ("[changes]\nevery = '1s'\ncount = 1", "core level"),
            ("levels = ['full']\n[changes]\nevery = '1s'\ncount = 200", "settle"),
            ("[[timeline]]\nat = '4m 50s'\nfault = { kind = 'crash' }", "settle"),
            (
                "[[random]]\nper-minute = -1.0\nlasts-min = '1s'\nlasts-max = '2s'\nfault = { kind = 'crash' }",
                "per-minute",
            ),
        ] {
            let error = Scenario::parse("x", &format!("{SMALL}{text}")).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn scaling_keeps_the_mixture() {
        let population = Population { coordinators: 50, workers: 950, ..Population::default() };
        let small = population.scaled_to(20);
        assert_eq!((small.coordinators, small.workers), (1, 19));
        let large = population.scaled_to(5000);
        assert_eq!((large.coordinators, large.workers), (250, 4750));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let scenario = Scenario::parse(
            "x",
            &format!(
                "{SMALL}[load]\n[[nat]]\nshare = 0.5\nmapping = 'endpoint-independent'\nfiltering = 'address-dependent'\n\
                 [[timeline]]\nat = '1m'\nlasts = '30s'\nfault = {{ kind = 'partition', shape = 'ring' }}"
            ),
        )
        .unwrap();
        let text = toml::to_string(&scenario).unwrap();
        assert_eq!(Scenario::parse("y", &text).unwrap(), scenario);
    }
}
