//! The course of a run: who joins when, which fault begins and ends, what is looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Candidacy, Roles};
use hedgerow_sim_core::{limits, version};
use hedgerow_sim_model::links::Links;
use hedgerow_sim_model::plan::{Incident, Layout, Plan};
use hedgerow_sim_model::random;
use hedgerow_sim_model::results::{Sample, Violation};
use hedgerow_sim_model::scenario::Scenario;
use tracing::warn;

use super::changes;
use super::clients::{self, Question};
use super::clock::MachineClock;
use super::entry::{Entry, RunningEntry};
use super::evidence::Evidence;
use super::hostile::RunningHostile;
use super::node::{self, NodeError, Running};
use super::service;
use crate::narrator::Narrator;
use crate::net::Network;
use crate::net::transport::Security;
use crate::time;

mod faults;
mod hints;
mod safety;
mod view;
mod words;

/// How often things are looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether all agree, and who knows of a change, while that is waited for.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// How often nodes are told of coordinators, as an entry does.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// The first client asks so long after all have joined.
const ASKED_AFTER: Duration = Duration::from_secs(10);
/// When nothing is wrong, what a node says is known to every coordinator within this.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// A node that stops by itself is started again after this, as a service manager does.
const RESTART_AFTER: Duration = Duration::from_secs(5);

/// What is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is simulated.
    pub scenario: Scenario,
    /// The seed.
    pub seed: u64,
    /// Another plan than the one that the seed gives: a shorter one.
    pub plan: Option<Plan>,
    /// How connections prove their keys.
    pub security: Security,
    /// A folder that is empty and stays there for the run.
    pub directory: PathBuf,
    /// Tells one node's view, if that is wanted.
    pub narrator: Option<Narrator>,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Who was who.
    pub layout: Layout,
    /// What happened to them.
    pub plan: Plan,
    /// The hash of all that happened.
    pub trace_hash: String,
    /// Of how many events.
    pub events: u64,
    /// How things stood, each second.
    pub series: Vec<Sample>,
    /// Named figures.
    pub figures: BTreeMap<String, f64>,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// Who was connected to whom at the end, among the coordinators.
    pub neighbours: Vec<(u32, u32)>,
}

/// Runs it; within virtual time.
pub async fn run(settings: Settings) -> Result<Outcome, NodeError> {
    let mut world = World::new(settings);
    let ended = world.live().await;
    ended.map(|()| world.outcome())
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
enum Action {
    Start(u32),
    StartEntry(u32),
    Ask,
    Begin(usize),
    End(usize),
    Tell,
    Look,
    Change,
    Watch,
    Remember,
    Finish,
}

/// A node's place.
struct Place {
    plan: node::Plan,
    /// It runs on through restarts of the node.
    clock: Arc<MachineClock>,
    running: Option<Running>,
    /// Its key's, once it has run.
    id: Option<NodeId>,
    /// It should run, if nothing is in the way.
    wanted: bool,
    /// Other nodes run with its key.
    cloned: bool,
}

/// An entry's place.
struct EntryPlace {
    entry: Entry,
    running: Option<RunningEntry>,
    /// How often it has been started.
    runs: u64,
}

/// When all coordinators, and the entries, had one registry.
#[derive(Debug, Default)]
struct Agreement {
    /// The last of them was started.
    joined_at: Duration,
    /// After that, for the first time.
    after_joining: Option<Duration>,
    /// After the last fault, for the first time.
    after_faults: Option<Duration>,
}

struct World {
    settings: Settings,
    layout: Layout,
    plan: Plan,
    network: Network,
    places: BTreeMap<u32, Place>,
    entries: BTreeMap<u32, EntryPlace>,
    /// Those that keep no rule and run.
    hostiles: BTreeMap<u32, RunningHostile>,
    evidence: Evidence,
    asked: u64,
    agenda: BTreeMap<(Duration, u64), Action>,
    number: u64,
    random: fastrand::Rng,
    faults_now: u32,
    /// Drifts of clocks before a fault changed them.
    drifts: BTreeMap<usize, i32>,
    /// What everybody had said a while before the end.
    said: Vec<view::Said>,
    changes: changes::Made,
    seen: safety::Seen,
    agreement: Agreement,
    series: Vec<Sample>,
    restarts: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        let Settings { scenario, seed, .. } = &settings;
        let (drawn, layout) = Plan::draw(scenario, *seed);
        let plan = settings.plan.clone().unwrap_or(drawn);
        let network = Network::new(Links::new(scenario, &layout, *seed), layout.len() + 1);
        let random = random::stream(*seed, "world", 0);
        let mut world = Self {
            layout,
            plan,
            network,
            places: BTreeMap::new(),
            entries: BTreeMap::new(),
            hostiles: BTreeMap::new(),
            evidence: Evidence::default(),
            asked: 0,
            agenda: BTreeMap::new(),
            number: 0,
            random,
            faults_now: 0,
            drifts: BTreeMap::new(),
            said: Vec::new(),
            changes: changes::Made::default(),
            seen: safety::Seen::default(),
            agreement: Agreement::default(),
            series: Vec::new(),
            restarts: 0,
            settings,
        };
        let nodes = world.layout.honest().chain(world.layout.adversaries.clone());
        for node in nodes {
            let place = world.place(node);
            world.places.insert(node, place);
        }
        for node in world.layout.entries.clone() {
            let entry = world.entry(node);
            world.entries.insert(node, EntryPlace { entry, running: None, runs: 0 });
        }
        world.plan_course();
        world
    }

    fn place(&self, index: u32) -> Place {
        let (population, seed) = (&self.settings.scenario.population, self.settings.seed);
        let mut random = random::stream(seed, "node", u64::from(index));
        let coordinates = self.layout.coordinators.contains(&index);
        let elective = !coordinates && random.f64() < population.elective;
        let mut services: Vec<u32> = (0..population.services).collect();
        random.shuffle(&mut services);
        services.truncate(if coordinates { 0 } else { population.services_per_worker as usize });
        let name = |service: &u32| Some((ServiceName::new(&format!("service-{service}")).ok()?, population.capacity));
        let plan = node::Plan {
            node: index,
            federation: self.federation(),
            directory: self.settings.directory.join(time::disk_of(index)),
            roles: if coordinates { Roles::Coordinator } else { Roles::Worker },
            candidacy: if elective { Candidacy::Elective } else { Candidacy::Fixed },
            services: services.iter().filter_map(name).collect(),
            limits: self.limits(),
            later_version: version::is_later(seed, index, population.newer_version),
            security: self.settings.security,
            seed: random.u64(..),
        };
        // Since when each machine is up, and how good its clock is, is its own.
        let shown = Duration::from_secs(1000) + population.clock_offset_max.0.mul_f64(random.f64());
        let ppm = i32::try_from(population.clock_drift_ppm_max).unwrap_or(i32::MAX);
        let clock = Arc::new(MachineClock::new(shown, random.i32(-ppm..=ppm)));
        Place { plan, clock, running: None, id: None, wanted: false, cloned: false }
    }

    fn federation(&self) -> FederationId {
        FederationId(random::bytes(self.settings.seed, "federation", 0))
    }

    fn limits(&self) -> Limits {
        limits::named(self.settings.scenario.population.limits)
    }

    fn entry(&self, node: u32) -> Entry {
        let key = SecretKey::from_seed(random::bytes(self.settings.seed, "entry", u64::from(node)));
        Entry { node, federation: self.federation(), limits: self.limits(), key }
    }

    fn plan_course(&mut self) {
        let joins_over = self.settings.scenario.population.joins_over.0;
        for node in self.layout.entries.clone() {
            self.schedule(Duration::ZERO, Action::StartEntry(node));
        }
        if self.settings.scenario.load.is_some() && !self.layout.entries.is_empty() {
            self.schedule(joins_over + ASKED_AFTER, Action::Ask);
        }
        for node in self.layout.coordinators.start..self.layout.workers.end {
            let first = node == self.layout.coordinators.start;
            let at = if first { Duration::ZERO } else { joins_over.mul_f64(self.random.f64()) };
            if self.layout.coordinators.contains(&node) {
                self.agreement.joined_at = self.agreement.joined_at.max(at);
            }
            self.schedule(at, Action::Start(node));
        }
        if let Some(changes) = self.settings.scenario.changes.clone() {
            for number in 1..=changes.count as u32 {
                self.schedule(joins_over + changes.from.0 + changes.every.0 * number, Action::Change);
            }
        }
        self.schedule(self.agreement.joined_at, Action::Watch);
        for index in 0..self.plan.incidents.len() {
            let Incident { at, until, .. } = self.plan.incidents[index];
            self.schedule(at.0, Action::Begin(index));
            if let Some(until) = until {
                self.schedule(until.0, Action::End(index));
            }
        }
        self.schedule(Duration::ZERO, Action::Tell);
        self.schedule(SAMPLE_INTERVAL, Action::Look);
        let end = self.settings.scenario.duration.0;
        self.schedule(end.saturating_sub(KNOWN_WITHIN), Action::Remember);
        self.schedule(end, Action::Finish);
    }

    fn schedule(&mut self, at: Duration, action: Action) {
        self.number += 1;
        self.agenda.insert((at, self.number), action);
    }

    async fn live(&mut self) -> Result<(), NodeError> {
        tokio::spawn(self.network.clone().drive());
        for (node, place) in &self.places {
            for (port, _) in (node::SERVICE_PORT..).zip(&place.plan.services) {
                tokio::spawn(service::serve(self.network.clone(), *node, port, self.evidence.clone()));
            }
        }
        while let Some(((at, _), action)) = self.agenda.pop_first() {
            time::until(hedgerow_proto::clock::Time::from_origin(at)).await;
            match action {
                Action::Start(node) => self.start(node),
                Action::StartEntry(node) => self.start_entry(node)?,
                Action::Ask => self.ask(at),
                Action::Begin(index) => {
                    self.narrate(index, true);
                    self.begin(index).await?;
                }
                Action::End(index) => {
                    self.narrate(index, false);
                    self.end(index).await?;
                }
                Action::Tell => {
                    self.tell_all();
                    self.schedule(at + TELL_INTERVAL, Action::Tell);
                }
                Action::Look => {
                    self.restart_failed().await?;
                    self.look_for_harm();
                    let sample = self.look();
                    self.series.push(sample);
                    self.schedule(at + SAMPLE_INTERVAL, Action::Look);
                }
                Action::Change => self.change(),
                Action::Watch => {
                    if let Some(next) = self.watch(at) {
                        self.schedule(next, Action::Watch);
                    }
                }
                Action::Remember => self.said = self.what_all_say(),
                Action::Finish => break,
            }
        }
        Ok(())
    }

    fn narrate(&self, index: usize, begins: bool) {
        if let Some((narrator, incident)) = self.settings.narrator.as_ref().zip(self.plan.incidents.get(index)) {
            narrator.fault(&incident.effect, begins);
        }
    }

    fn start_entry(&mut self, node: u32) -> Result<(), NodeError> {
        let Some(place) = self.entries.get_mut(&node).filter(|place| place.running.is_none()) else { return Ok(()) };
        place.runs += 1;
        let incarnation = random::number(self.settings.seed, "incarnation", u64::from(node) << 32 | place.runs);
        place.running = Some(place.entry.start(&self.network, incarnation)?);
        Ok(())
    }

    async fn kill_entry(&mut self, node: u32) {
        if let Some(running) = self.entries.get_mut(&node).and_then(|place| place.running.take()) {
            self.network.silence_links(node);
            running.kill().await;
        }
    }

    /// A client asks, and the next one will.
    fn ask(&mut self, at: Duration) {
        let Some(load) = self.settings.scenario.load.clone() else { return };
        if load.requests_per_second <= 0.0 {
            return;
        }
        let pause = random::exponential(&mut self.random, 1.0 / load.requests_per_second);
        self.schedule(at + Duration::from_secs_f64(pause), Action::Ask);
        self.asked += 1;
        let mut entries: Vec<_> = self.entries.values().map(|place| place.entry.clients()).collect();
        self.random.shuffle(&mut entries);
        let service = self.random.u32(..self.settings.scenario.population.services.max(1));
        let takes = random::exponential(&mut self.random, load.service_time.0.as_secs_f64());
        let question = Question {
            id: self.asked,
            service: format!("service-{service}"),
            once: self.random.f64() < load.once,
            takes: Duration::from_secs_f64(takes),
            patience: load.patience.0,
            entries,
        };
        // All clients are on a machine of their own, behind everybody else's.
        let (network, from) = (self.network.clone(), self.layout.len());
        tokio::spawn(clients::ask(network, from, question, self.evidence.clone()));
    }

    /// Starts a node that should run and does not.
    fn start(&mut self, node: u32) {
        let network = self.network.clone();
        let entries: Vec<Entry> = self.entries.values().map(|place| place.entry.clone()).collect();
        let Some(place) = self.places.get_mut(&node) else { return };
        place.wanted = true;
        if place.running.is_some() {
            return;
        }
        match place.plan.start(&network, place.clock.clone(), &entries) {
            Ok(running) => {
                network.note(node, &running.id().0);
                place.id = Some(running.id());
                self.seen.begins_anew(node);
                self.seen.words.listen(node, &running.membership.replica);
                place.running = Some(running);
                self.tell(node);
            }
            Err(_) => {
                let at = time::now().since_origin() + RESTART_AFTER;
                self.schedule(at, Action::Start(node));
            }
        }
    }

    /// Kills a node, if it runs.
    async fn kill(&mut self, node: u32) -> Result<(), NodeError> {
        let Some(place) = self.places.get_mut(&node) else { return Ok(()) };
        place.wanted = false;
        let Some(running) = place.running.take() else { return Ok(()) };
        running.kill(&place.plan, &self.network).await
    }

    /// Nodes that have stopped by themselves are started again after a while.
    async fn restart_failed(&mut self) -> Result<(), NodeError> {
        let now = time::now().since_origin();
        let nodes: Vec<u32> = self.places.keys().copied().collect();
        for node in nodes {
            let Some(place) = self.places.get_mut(&node) else { continue };
            let Some(running) = &mut place.running else { continue };
            let Ok(failure) = running.failed.try_recv() else { continue };
            running.process.within(|| warn!(%failure, "has stopped by itself"));
            let cloned = place.cloned;
            self.kill(node).await?;
            self.restarts += 1;
            // Of two processes with one key, the one that stops is not to come back by itself.
            if !cloned {
                self.schedule(now + RESTART_AFTER, Action::Start(node));
            }
        }
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        let (trace_hash, events) = self.network.trace();
        Outcome {
            layout: self.layout.clone(),
            plan: self.plan.clone(),
            trace_hash,
            events,
            series: self.series.clone(),
            figures: self.figures(),
            violations: self.seen.violations.iter().cloned().chain(self.wrong_at_the_end()).collect(),
            neighbours: self.neighbours(),
        }
    }
}
