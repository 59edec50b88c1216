//! How links behave: latency of each pair, jitter, the sender's uplink, losses as retransmissions, and who is cut off from whom.
//!
//! What travels are the bytes of connections, so nothing is lost in them for good and nothing overtakes: a lost packet is late by
//! its retransmission time-out, and so is everything behind it (RFC 6298). What a cut holds back is kept by the sender; whoever
//! runs the connections gives them up after a while.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::nat::Place;
use crate::plan::{Effect, Layout};
use crate::random;
use crate::scenario::{Latency, Network, Scenario, Shape};

/// One packet's payload.
const PACKET_BYTES: usize = 1200;
/// What goes with each packet.
const PACKET_OVERHEAD_BYTES: usize = 50;
/// An entry is in a data centre, and the others are at home: its uplink is so many times as wide.
const ENTRY_UPLINK_WIDER: f64 = 100.0;
/// The shortest retransmission time-out (RFC 6298 has a second; Linux has this).
const RTO_MIN: Duration = Duration::from_millis(200);
/// And the longest.
const RTO_MAX: Duration = Duration::from_secs(60);

/// One direction of one connection: what it sends arrives in order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direction {
    arrived_last: Duration,
    /// From one end to the other, once somebody has asked: it costs a hash.
    latency: Option<Duration>,
}

/// All links.
#[derive(Debug, Clone)]
pub struct Links {
    seed: u64,
    network: Network,
    places: Vec<Place>,
    regions: Vec<u16>,
    /// When each node's uplink is free again.
    uplinks: Vec<Duration>,
    /// Cuts that hold now, by the number of their incident.
    cuts: BTreeMap<u64, Cut>,
    loss: BTreeMap<u64, f64>,
    random: fastrand::Rng,
    entries_end: u32,
    leak: Option<fn() -> u64>,
}

#[derive(Debug, Clone)]
enum Cut {
    /// Nodes of different groups do not reach each other; those without a group reach all.
    Groups(BTreeMap<u32, u8>),
    /// Only neighbours in this order reach each other.
    Ring(BTreeMap<u32, u32>),
    /// These do not reach each other.
    Among(Vec<u32>),
    /// What this one sends does not arrive.
    From(u32),
}

impl Links {
    /// The links of a run.
    pub fn new(scenario: &Scenario, layout: &Layout, seed: u64) -> Self {
        let nodes = layout.len();
        let mut random = random::stream(seed, "places", 0);
        let places = (0..nodes).map(|node| {
            let draw = random.f64();
            if layout.entries.contains(&node) || layout.adversaries.contains(&node) {
                return Place::Open;
            }
            let mut below = 0.0;
            let nat = scenario.nat.iter().find(|nat| {
                below += nat.share;
                draw < below
            });
            nat.map_or(Place::Open, |nat| Place::Behind(nat.nat()))
        });
        let places = places.collect();
        let regions = (0..nodes).map(|node| region(&scenario.network.latency, seed, node)).collect();
        Self {
            seed,
            network: scenario.network.clone(),
            places,
            regions,
            uplinks: vec![Duration::ZERO; nodes as usize],
            cuts: BTreeMap::new(),
            loss: BTreeMap::new(),
            random: random::stream(seed, "links", 0),
            entries_end: layout.entries.end,
            leak: None,
        }
    }

    /// From now on this many nanoseconds are on top of every latency, which a seed does not decide: the test of determinism shows
    /// with it that it can fail.
    pub fn leak_from(&mut self, nanos: fn() -> u64) {
        self.leak = Some(nanos);
    }

    /// How a node stands in the network.
    pub fn place(&self, node: u32) -> Place {
        self.places.get(node as usize).copied().unwrap_or_default()
    }

    /// A connection over which nothing gets through for so long is given up.
    pub fn gives_up_after(&self) -> Duration {
        self.network.gives_up_after.0
    }

    /// How long a packet is on its way between two nodes, one way, without jitter; the same both ways and for the whole run.
    pub fn latency(&self, one: u32, other: u32) -> Duration {
        let (low, high) = (one.min(other), one.max(other));
        let mut random = random::stream(self.seed, "pair", u64::from(low) << 32 | u64::from(high));
        match &self.network.latency {
            Latency::Uniform { min, max } => min.0 + (max.0.saturating_sub(min.0)).mul_f64(random.f64()),
            Latency::LogNormal { median, sigma } => {
                // A pair on two sides of the Moon is a mistake of the distribution.
                median.0.mul_f64((random::normal(&mut random) * sigma).exp()).min(Duration::from_secs(2))
            }
            Latency::Regions { matrix_ms, .. } => {
                let region = |node: u32| usize::from(self.regions.get(node as usize).copied().unwrap_or_default());
                let ms = matrix_ms.get(region(one)).and_then(|row| row.get(region(other))).copied();
                Duration::from_secs_f64(ms.unwrap_or_default() / 1000.0)
            }
        }
    }

    /// When these bytes arrive that are sent now in a direction of a connection between these two, whatever is cut. The caller asks [`Links::is_cut`] when they do.
    pub fn arrival(&mut self, now: Duration, from: u32, to: u32, bytes: usize, direction: &mut Direction) -> Duration {
        let packets = bytes.div_ceil(PACKET_BYTES).max(1);
        let latency = *direction.latency.get_or_insert_with(|| self.latency(from, to));
        let mut begins = now;
        if self.network.uplink_kbit > 0
            && let Some(free) = self.uplinks.get_mut(from as usize)
        {
            let bits = (bytes + packets * PACKET_OVERHEAD_BYTES) as f64 * 8.0;
            let wider = if from < self.entries_end { ENTRY_UPLINK_WIDER } else { 1.0 };
            let rate = self.network.uplink_kbit as f64 * 1000.0 * wider;
            let sent = (*free).max(now) + Duration::from_secs_f64(bits / rate);
            *free = sent;
            begins = sent;
        }
        let mut on_its_way = latency + self.network.jitter.0.mul_f64(self.random.f64());
        on_its_way += self.retransmissions(latency, packets);
        on_its_way += self.leak.map_or(Duration::ZERO, |nanos| Duration::from_nanos(nanos()));
        let arrives = (begins + on_its_way).max(direction.arrived_last);
        direction.arrived_last = arrives;
        arrives
    }

    /// How late they are for losses. Within one send, losses are repaired together unless the repair is lost as well.
    fn retransmissions(&mut self, latency: Duration, packets: usize) -> Duration {
        let loss = self.loss_rate();
        if loss <= 0.0 {
            return Duration::ZERO;
        }
        // In bursts, fewer sends meet losses, and each meets more of them.
        let burst = self.network.loss_burst.max(1.0);
        let per_send = 1.0 - (1.0 - loss / burst).powi(i32::try_from(packets).unwrap_or(i32::MAX));
        let mut late = Duration::ZERO;
        let mut timeout = (latency * 2 + RTO_MIN / 2).max(RTO_MIN);
        let mut lost = self.random.f64() < per_send;
        while lost {
            late += timeout;
            timeout = (timeout * 2).min(RTO_MAX);
            // By then the burst is over.
            lost = self.random.f64() < loss;
        }
        late
    }

    /// The share of packets that is lost now.
    pub fn loss_rate(&self) -> f64 {
        let passes = self.loss.values().fold(1.0 - self.network.loss, |passes, rate| passes * (1.0 - rate));
        (1.0 - passes).clamp(0.0, 0.95)
    }

    /// Whether what the one sends now does not reach the other.
    pub fn is_cut(&self, from: u32, to: u32) -> bool {
        self.cuts.values().any(|cut| match cut {
            Cut::Groups(groups) => match (groups.get(&from), groups.get(&to)) {
                (Some(one), Some(other)) => one != other,
                _ => false,
            },
            Cut::Ring(order) => match (order.get(&from), order.get(&to)) {
                (Some(one), Some(other)) => {
                    let n = order.len() as u32;
                    let apart = one.abs_diff(*other);
                    apart.min(n - apart) > 1
                }
                _ => false,
            },
            Cut::Among(nodes) => nodes.contains(&from) && nodes.contains(&to) && from != to,
            Cut::From(node) => *node == from,
        })
    }

    /// Whether anything is cut now.
    pub fn has_cuts(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// A fault of the network begins. False: it is none of the network's.
    pub fn begin(&mut self, incident: u64, effect: &Effect) -> bool {
        let cut = match effect {
            Effect::Loss { rate } => {
                self.loss.insert(incident, *rate);
                return true;
            }
            Effect::OneWay { node } => Cut::From(*node),
            Effect::Cut { shape: Shape::Halves, order } => {
                let half = order.len() / 2;
                let mut groups: BTreeMap<u32, u8> =
                    order.iter().enumerate().map(|(n, node)| (*node, u8::from(n >= half))).collect();
                // The entries are on one side.
                groups.extend((0..self.entries_end).map(|entry| (entry, 0)));
                Cut::Groups(groups)
            }
            Effect::Cut { shape: Shape::Bridge, order } => {
                let others = order.iter().skip(1);
                let half = order.len() / 2;
                Cut::Groups(others.enumerate().map(|(n, node)| (*node, u8::from(n >= half))).collect())
            }
            Effect::Cut { shape: Shape::One, order } => {
                let nodes = 0..self.places.len() as u32;
                Cut::Groups(nodes.map(|node| (node, u8::from(order.contains(&node)))).collect())
            }
            Effect::Cut { shape: Shape::Ring, order } => {
                Cut::Ring(order.iter().enumerate().map(|(n, node)| (*node, n as u32)).collect())
            }
            Effect::Cut { shape: Shape::Mesh, order } => Cut::Among(order.clone()),
            _ => return false,
        };
        self.cuts.insert(incident, cut);
        true
    }

    /// And is over.
    pub fn end(&mut self, incident: u64) {
        self.cuts.remove(&incident);
        self.loss.remove(&incident);
    }
}

/// The region of a node, if there are any.
fn region(latency: &Latency, seed: u64, node: u32) -> u16 {
    let Latency::Regions { shares, .. } = latency else { return 0 };
    let total: f64 = shares.iter().sum();
    let mut draw = random::stream(seed, "region", u64::from(node)).f64() * total;
    for (region, share) in shares.iter().enumerate() {
        draw -= share;
        if draw < 0.0 {
            return region as u16;
        }
    }
    (shares.len().saturating_sub(1)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn links(text: &str) -> (Links, Layout) {
        let text = format!("about = 'x'\nduration = '30m'\n[population]\ncoordinators = 6\nworkers = 6\n{text}");
        let scenario = Scenario::parse("x", &text).unwrap();
        let (_, layout) = Plan::draw(&scenario, 3);
        (Links::new(&scenario, &layout, 3), layout)
    }

    #[test]
    fn latency_is_of_the_pair_and_nothing_overtakes() {
        let (mut links, _) = links("[network]\nloss = 0.3\nloss-burst = 4.0\njitter = '30ms'");
        assert_eq!(links.latency(2, 5), links.latency(5, 2));
        assert_ne!(links.latency(2, 5), links.latency(2, 6));
        let mut direction = Direction::default();
        let mut last = Duration::ZERO;
        for n in 0..1000 {
            let sent = Duration::from_millis(n);
            let arrives = links.arrival(sent, 2, 5, 500, &mut direction);
            assert!(arrives >= last && arrives >= sent + links.latency(2, 5));
            last = arrives;
        }
    }

    #[test]
    fn an_uplink_carries_no_more_than_it_can() {
        let (mut links, _) = links("[network]\nuplink-kbit = 1000\njitter = '0s'");
        let mut direction = Direction::default();
        // A megabit takes a second.
        let last = (0..125).map(|_| links.arrival(Duration::ZERO, 2, 3, 1000, &mut direction)).last().unwrap();
        let on_the_line = last - links.latency(2, 3);
        assert!((1.0..1.2).contains(&on_the_line.as_secs_f64()), "{on_the_line:?}");
    }

    #[test]
    fn losses_cost_what_they_should() {
        let (mut links, _) = links("[network]\nloss = 0.3\njitter = '0s'\nuplink-kbit = 0");
        let late = |links: &mut Links| {
            let mut direction = Direction::default();
            let arrives = links.arrival(Duration::ZERO, 1, 2, 100, &mut direction);
            arrives > links.latency(1, 2)
        };
        let share = (0..4000).filter(|_| late(&mut links)).count() as f64 / 4000.0;
        assert!((0.25..0.35).contains(&share), "{share}");
    }

    #[test]
    fn each_shape_cuts_what_it_says_and_heals() {
        let (mut links, layout) = links("");
        let order: Vec<u32> = layout.honest().collect();
        let cut = |links: &mut Links, shape| {
            assert!(links.begin(1, &Effect::Cut { shape, order: order.clone() }));
            let pairs = order.iter().flat_map(|a| order.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b);
            let cut = pairs.filter(|(a, b)| links.is_cut(*a, *b)).count();
            let entry = order.iter().filter(|node| links.is_cut(**node, 0)).count();
            links.end(1);
            assert!(!links.has_cuts());
            (cut, entry)
        };
        assert_eq!(cut(&mut links, Shape::Halves), (36, 6));
        assert_eq!(cut(&mut links, Shape::Ring), (66 - 12, 0));
        assert_eq!(cut(&mut links, Shape::Bridge), (30, 0));
        assert!(links.begin(2, &Effect::OneWay { node: 3 }));
        assert!(links.is_cut(3, 4) && !links.is_cut(4, 3));
    }
}
