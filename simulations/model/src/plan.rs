//! The faults of one run: drawn from a scenario and a seed, so that each is about certain nodes at a certain time. A plan can be
//! written down, made shorter, and run again.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::random;
use crate::scenario::{Among, Fault, Malice, Recurring, Scenario, Shape, Who};
use crate::span::Span;

/// Who is who, by index: entries, then coordinators, workers, those of flash crowds, and at last those that keep no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The entries.
    pub entries: Range<u32>,
    /// The coordinators.
    pub coordinators: Range<u32>,
    /// The workers that are there from the beginning.
    pub workers: Range<u32>,
    /// The workers that come in a crowd.
    pub crowd: Range<u32>,
    /// Those that keep no rule, and second processes with one key.
    pub adversaries: Range<u32>,
}

impl Layout {
    /// All of them.
    pub fn len(&self) -> u32 {
        self.adversaries.end
    }
    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Coordinators and workers that keep the rules.
    pub fn honest(&self) -> Range<u32> {
        self.coordinators.start..self.crowd.end
    }
}

/// The faults of one run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// In order of time.
    pub incidents: Vec<Incident>,
}

/// One fault, about certain nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// When it begins.
    pub at: Span,
    /// When it is over; never, without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Span>,
    /// What it is.
    pub effect: Effect,
}

/// What happens to whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Effect {
    /// See [`Fault::Crash`], also for an entry.
    Crash {
        /// Who.
        node: u32,
        /// Peers see only silence.
        silent: bool,
        /// The disk is lost.
        wipe: bool,
    },
    /// See [`Fault::Leave`].
    Leave {
        /// Who.
        node: u32,
    },
    /// See [`Fault::Pause`].
    Pause {
        /// Who.
        node: u32,
    },
    /// See [`Fault::Suspend`].
    Suspend {
        /// Who.
        node: u32,
    },
    /// Who cannot reach whom.
    Cut {
        /// How.
        shape: Shape,
        /// The nodes in the order of the ring, or of the halves; a node alone is the only one.
        order: Vec<u32>,
    },
    /// See [`Fault::OneWay`].
    OneWay {
        /// Who.
        node: u32,
    },
    /// See [`Fault::Loss`].
    Loss {
        /// On top of the network's.
        rate: f64,
    },
    /// See [`Fault::ClockJump`].
    ClockJump {
        /// Who.
        node: u32,
        /// How far.
        by: Span,
    },
    /// See [`Fault::ClockDrift`].
    ClockDrift {
        /// Who.
        node: u32,
        /// How much.
        ppm: i32,
    },
    /// See [`Fault::SlowCpu`].
    SlowCpu {
        /// Who.
        node: u32,
        /// How long.
        per_message: Span,
    },
    /// See [`Fault::DiskFull`].
    DiskFull {
        /// Who.
        node: u32,
    },
    /// See [`Fault::CorruptSnapshot`].
    CorruptSnapshot {
        /// Who.
        node: u32,
    },
    /// See [`Fault::Clone`].
    Clone {
        /// Whose key.
        of: u32,
        /// The other process.
        node: u32,
    },
    /// A coordinator joins that keeps no rule.
    Byzantine {
        /// Which.
        node: u32,
        /// What it does.
        malice: Vec<Malice>,
    },
    /// One joins that invents others.
    Sybil {
        /// Which.
        node: u32,
        /// How many a second.
        identities_per_second: f64,
    },
    /// A worker of a crowd joins.
    Join {
        /// Which.
        node: u32,
    },
}

impl Plan {
    /// What happens in the run of this scenario with this seed, and who takes part.
    pub fn draw(scenario: &Scenario, seed: u64) -> (Self, Layout) {
        let population = &scenario.population;
        let mut begin = 0;
        let mut range = |count: u32| {
            let range = begin..begin + count;
            begin = range.end;
            range
        };
        let (entries, coordinators, workers) =
            (range(population.entries), range(population.coordinators), range(population.workers));
        let mut crowd = workers.end..workers.end;
        let timed = scenario.timeline.iter().map(|timed| (timed.at.0, timed.lasts.map(|lasts| lasts.0), &timed.fault));
        let mut all: Vec<(Duration, Option<Duration>, &Fault)> = timed.collect();
        let quiet_from = scenario.duration.0.saturating_sub(scenario.settle.0);
        for (index, recurring) in scenario.random.iter().enumerate() {
            let mut random = random::stream(seed, "recurring", index as u64);
            all.extend(
                recur(recurring, quiet_from, &mut random)
                    .into_iter()
                    .map(|(at, lasts)| (at, Some(lasts), &recurring.fault)),
            );
        }
        // The index that a crowd's workers get must not depend on the adversaries.
        for (.., fault) in &all {
            if let Fault::FlashCrowd { workers, .. } = fault {
                crowd.end += workers;
            }
        }
        let mut draw = Draw {
            layout: Layout { entries, coordinators, workers, adversaries: crowd.end..crowd.end, crowd },
            next_of_crowd: 0,
            incidents: Vec::new(),
        };
        for (index, (at, lasts, fault)) in all.into_iter().enumerate() {
            draw.add(at, lasts.map(|lasts| at + lasts), fault, &mut random::stream(seed, "fault", index as u64));
        }
        let Draw { layout, mut incidents, .. } = draw;
        incidents.sort_by_key(|incident| incident.at);
        (Self { incidents }, layout)
    }

    /// When the last fault is over, not counting those for ever.
    pub fn over_at(&self) -> Duration {
        self.incidents.iter().map(|incident| incident.until.unwrap_or(incident.at).0).max().unwrap_or_default()
    }
}

/// The times of a Poisson process.
fn recur(recurring: &Recurring, quiet_from: Duration, random: &mut fastrand::Rng) -> Vec<(Duration, Duration)> {
    let until = recurring.until.map_or(quiet_from, |until| until.0.min(quiet_from));
    let mut all = Vec::new();
    if recurring.per_minute <= 0.0 {
        return all;
    }
    let mut at = recurring.from.0;
    loop {
        at += Duration::from_secs_f64(random::exponential(random, 60.0 / recurring.per_minute));
        if at >= until {
            return all;
        }
        let (min, max) = (recurring.lasts_min.0, recurring.lasts_max.0);
        let lasts = min + (max - min).mul_f64(random.f64());
        all.push((at, lasts.min(quiet_from.saturating_sub(at))));
    }
}

struct Draw {
    layout: Layout,
    next_of_crowd: u32,
    incidents: Vec<Incident>,
}

impl Draw {
    fn add(&mut self, at: Duration, until: Option<Duration>, fault: &Fault, random: &mut fastrand::Rng) {
        let chosen = fault.who().map(|who| self.choose(who, random)).unwrap_or_default();
        let each = |effect: &dyn Fn(u32) -> Effect| chosen.iter().map(|node| effect(*node)).collect::<Vec<_>>();
        let effects = match *fault {
            Fault::Crash { silent, wipe, .. } => each(&|node| Effect::Crash { node, silent, wipe }),
            Fault::Leave { .. } => each(&|node| Effect::Leave { node }),
            Fault::Pause { .. } => each(&|node| Effect::Pause { node }),
            Fault::Suspend { .. } => each(&|node| Effect::Suspend { node }),
            Fault::OneWay { .. } => each(&|node| Effect::OneWay { node }),
            Fault::ClockJump { by, .. } => each(&|node| Effect::ClockJump { node, by }),
            Fault::ClockDrift { ppm, .. } => each(&|node| Effect::ClockDrift { node, ppm }),
            Fault::SlowCpu { per_message, .. } => each(&|node| Effect::SlowCpu { node, per_message }),
            Fault::DiskFull { .. } => each(&|node| Effect::DiskFull { node }),
            Fault::CorruptSnapshot { .. } => each(&|node| Effect::CorruptSnapshot { node }),
            Fault::Clone { .. } => chosen.iter().map(|of| Effect::Clone { of: *of, node: self.adversary() }).collect(),
            Fault::EntryRestart {} => {
                let entry = random.choice(self.layout.entries.clone());
                entry.map(|node| Effect::Crash { node, silent: false, wipe: false }).into_iter().collect()
            }
            Fault::Loss { rate } => vec![Effect::Loss { rate }],
            Fault::Partition { shape } => vec![Effect::Cut { shape, order: self.order(shape, random) }],
            Fault::Byzantine { count, ref malice } => {
                (0..count).map(|_| Effect::Byzantine { node: self.adversary(), malice: malice.clone() }).collect()
            }
            Fault::Sybil { identities_per_second } => {
                vec![Effect::Sybil { node: self.adversary(), identities_per_second }]
            }
            Fault::FlashCrowd { workers, within } => return self.crowd(at, until, workers, within, random),
        };
        let (at, until) = (Span(at), until.map(Span));
        self.incidents.extend(effects.into_iter().map(|effect| Incident { at, until, effect }));
    }

    fn crowd(&mut self, at: Duration, until: Option<Duration>, workers: u32, within: Span, random: &mut fastrand::Rng) {
        for _ in 0..workers {
            let node = self.layout.crowd.start + self.next_of_crowd;
            self.next_of_crowd += 1;
            let at = Span(at + within.0.mul_f64(random.f64()));
            self.incidents.push(Incident {
                at,
                until: until.map(|until| Span(until).max(at)),
                effect: Effect::Join { node },
            });
        }
    }

    fn adversary(&mut self) -> u32 {
        self.layout.adversaries.end += 1;
        self.layout.adversaries.end - 1
    }

    fn choose(&self, who: Who, random: &mut fastrand::Rng) -> Vec<u32> {
        let among = match who.among {
            Among::Nodes => self.layout.coordinators.start..self.layout.workers.end,
            Among::Coordinators => self.layout.coordinators.clone(),
            Among::Workers => self.layout.workers.clone(),
        };
        let all = among.len();
        let count = match (who.count, who.share) {
            (Some(count), _) => count as usize,
            (None, Some(share)) => (all as f64 * share).round() as usize,
            (None, None) => 1,
        };
        let mut chosen: Vec<u32> = among.collect();
        random.shuffle(&mut chosen);
        chosen.truncate(count);
        chosen.sort_unstable();
        chosen
    }

    fn order(&self, shape: Shape, random: &mut fastrand::Rng) -> Vec<u32> {
        let nodes = self.layout.coordinators.start..self.layout.crowd.end;
        let mut order: Vec<u32> = match shape {
            Shape::Mesh | Shape::Bridge => self.layout.coordinators.clone().collect(),
            _ => nodes.clone().collect(),
        };
        random.shuffle(&mut order);
        match shape {
            Shape::One => order.truncate(1),
            // The bridge stands first, and is a coordinator.
            Shape::Bridge => {
                let mut others: Vec<u32> = nodes.filter(|node| order.first() != Some(node)).collect();
                random.shuffle(&mut others);
                order.truncate(1);
                order.extend(others);
            }
            _ => {}
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(text: &str) -> Scenario {
        Scenario::parse("x", &format!("about = 'x'\nduration = '30m'\n{text}")).unwrap()
    }

    #[test]
    fn one_seed_one_plan_and_another_seed_another() {
        let scenario = scenario(
            "[[random]]\nper-minute = 6.0\nlasts-min = '1s'\nlasts-max = '1m'\nfault = { kind = 'crash' }\n\
             [[random]]\nper-minute = 1.0\nlasts-min = '1s'\nlasts-max = '1m'\nfault = { kind = 'partition', shape = 'halves' }",
        );
        let plan = |seed| Plan::draw(&scenario, seed).0;
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        let count = (0..20).map(|seed| plan(seed).incidents.len()).sum::<usize>() / 20;
        assert!((170..=220).contains(&count), "28 minutes with seven faults each: {count}");
    }

    #[test]
    fn nothing_is_wrong_any_more_in_the_time_to_settle() {
        let scenario = scenario(
            "settle = '5m'\n[[random]]\nper-minute = 30.0\nlasts-min = '1s'\nlasts-max = '10m'\nfault = { kind = 'pause' }",
        );
        for seed in 0..20 {
            let (plan, _) = Plan::draw(&scenario, seed);
            assert!(plan.over_at() <= Duration::from_secs(25 * 60));
            assert!(plan.incidents.is_sorted_by_key(|incident| incident.at));
        }
    }

    #[test]
    fn those_who_come_later_have_places_of_their_own() {
        let scenario = scenario(
            "[[timeline]]\nat = '1m'\nfault = { kind = 'byzantine', count = 2, malice = ['replay'] }\n\
             [[timeline]]\nat = '2m'\nfault = { kind = 'flash-crowd', workers = 30, within = '10s' }\n\
             [[timeline]]\nat = '3m'\nlasts = '1m'\nfault = { kind = 'clone' }",
        );
        let (plan, layout) = Plan::draw(&scenario, 1);
        assert_eq!((layout.crowd.len(), layout.adversaries.len()), (30, 3));
        let joins = plan.incidents.iter().filter(|incident| matches!(incident.effect, Effect::Join { .. }));
        assert_eq!(joins.count(), 30);
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(toml::from_str::<Plan>(&text).unwrap(), plan);
    }
}
