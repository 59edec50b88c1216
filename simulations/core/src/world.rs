//! The whole: who runs, what happens to whom, and when. One thread, one heap of events, no clock and no randomness but the seed's.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use hedgerow_proto::record::{Candidacy, Roles};
use hedgerow_proto::retry::Repeat;
use hedgerow_sim_model::links::Links;
use hedgerow_sim_model::plan::{Layout, Plan};
use hedgerow_sim_model::random;
use hedgerow_sim_model::scenario::{Malice, Scenario};

use crate::book::{Asked, Book, Ended};
use crate::check::Checker;
use crate::clock::LocalClock;
use crate::context::{Context, Disk};
use crate::entry::Entry;
use crate::member::{Ends, Member, Nature};
use crate::message::RequestNumber;
use crate::narrator::Narrator;
use crate::net::{Event, Input, Net, Told, Up};
use crate::sample::Samples;
use crate::settings::Settings;
use crate::version;

mod faults;

/// A process that could not start, or has ended by a fault of its machine, is started again by whoever minds it.
const RESTARTED_AFTER: Duration = Duration::from_secs(10);
/// How often whoever watches is told how far it is: once in so many events.
const TOLD_EVERY: u64 = 4096;

/// What runs on a machine.
pub(crate) enum Process {
    Entry(Box<Entry>),
    Member(Box<Member>),
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) process: Option<Process>,
    pub(crate) disk: Disk,
    pub(crate) clock: LocalClock,
    pub(crate) run: u32,
    /// How many faults keep its process down.
    down: u32,
    /// How many faults keep it still, and since when.
    still: u32,
    still_since: Duration,
    inbox: VecDeque<Input>,
    slow: Duration,
    busy_until: Duration,
    wake_at: Option<Duration>,
    /// Since when its process has been running.
    pub(crate) up_since: Duration,
    /// Whether it began with a snapshot of its own.
    pub(crate) restored: bool,
    /// When a process was running here last.
    pub(crate) up_last: Duration,
    /// When its clock was last made to jump, or the machine slept.
    pub(crate) jumped_at: Option<Duration>,
    /// Faults that are never over hold it, so nothing is expected of it.
    pub(crate) hurt: bool,
    /// It has stopped for good: its key is in use elsewhere.
    pub(crate) stopped: bool,
}

/// What keeps no rule, and how.
#[derive(Debug, Clone, Default)]
struct Adversary {
    malice: Vec<Malice>,
    invents_per_second: f64,
    /// Whose key it has.
    clone_of: Option<u32>,
}

/// See the module.
pub(crate) struct World {
    pub(crate) net: Net,
    pub(crate) book: Book,
    pub(crate) machines: Vec<Machine>,
    pub(crate) settings: Settings,
    pub(crate) checker: Checker,
    pub(crate) samples: Samples,
    pub(crate) narrator: Narrator,
    adversaries: Vec<Adversary>,
    pub(crate) plan: Plan,
    pub(crate) faults: u32,
    clients: fastrand::Rng,
    next_request: RequestNumber,
    /// Whether clients ask at all, and from when until when.
    asks: Option<(Duration, Duration)>,
    pub(crate) ends: Duration,
    pub(crate) quiet_from: Duration,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, plan: Plan, layout: &Layout, seed: u64, narrates: Option<u32>) -> Self {
        let settings = Settings::new(scenario, layout, seed);
        let nodes = layout.len();
        let mut net = Net::new(Links::new(scenario, layout, seed), nodes);
        let population = &scenario.population;
        let machine = |node: u32| {
            let mut random = random::stream(seed, "clock", u64::from(node));
            let offset = (random.f64() * 2.0 - 1.0) * population.clock_offset_max.0.as_secs_f64();
            let drift = i64::from(population.clock_drift_ppm_max);
            Machine {
                process: None,
                disk: Disk::default(),
                clock: LocalClock::new(offset, random.i64(-drift..=drift)),
                run: 0,
                down: 0,
                still: 0,
                still_since: Duration::ZERO,
                inbox: VecDeque::new(),
                slow: Duration::ZERO,
                busy_until: Duration::ZERO,
                wake_at: None,
                up_since: Duration::ZERO,
                restored: false,
                up_last: Duration::ZERO,
                jumped_at: None,
                hurt: false,
                stopped: false,
            }
        };
        let machines = (0..nodes).map(machine).collect();
        let mut joins = random::stream(seed, "joins", 0);
        for node in 0..layout.workers.end {
            // Entries and the first coordinator are there from the beginning.
            let first = node <= layout.coordinators.start;
            let at = if first { Duration::ZERO } else { population.joins_over.0.mul_f64(joins.f64()) };
            net.schedule(at, Event::Join { node });
        }
        for (index, incident) in plan.incidents.iter().enumerate() {
            net.schedule(incident.at.0, Event::Begin(index));
            if let Some(until) = incident.until {
                net.schedule(until.0, Event::End(index));
            }
        }
        net.schedule(Duration::ZERO, Event::Sample);
        let (ends, settle) = (scenario.duration.0, scenario.settle.0);
        let asks = scenario.load.as_ref().map(|load| (population.joins_over.0, ends.saturating_sub(load.patience.0)));
        if let Some((from, _)) = asks {
            net.schedule(from, Event::Request);
        }
        Self {
            net,
            book: Book::new((0..nodes).map(|node| settings.id(node)).collect()),
            machines,
            checker: Checker::new(nodes),
            samples: Samples::default(),
            narrator: Narrator::new(narrates),
            adversaries: vec![Adversary::default(); nodes as usize],
            plan,
            faults: 0,
            clients: random::stream(seed, "clients", 0),
            next_request: 0,
            asks,
            ends,
            quiet_from: ends.saturating_sub(settle),
            settings,
        }
    }

    /// Runs to the end, or until whoever watches has seen enough.
    pub(crate) fn run(&mut self, progress: &mut dyn FnMut(Duration) -> ControlFlow<()>) {
        let mut events = 0_u64;
        while let Some(event) = self.net.next(self.ends) {
            self.happens(event);
            events += 1;
            if events.is_multiple_of(TOLD_EVERY) && progress(self.net.now).is_break() {
                return;
            }
        }
        Checker::at_the_end(self);
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Tell { node, run, input } => self.tell(Told { node, run, input }),
            Event::Do { node, run, input } => self.act(node, run, input),
            Event::Dialled { from, run, to, link } => {
                let told = self.net.dialled(from, run, to, link);
                told.into_iter().for_each(|told| self.tell(told));
            }
            Event::Arrives { connection, end, item } => {
                if let Some(told) = self.net.arrives(connection, end, item) {
                    self.tell(told);
                }
            }
            Event::Wake { node, run, at } => {
                let machine = &mut self.machines[node as usize];
                if machine.run == run && machine.wake_at == Some(at) {
                    machine.wake_at = None;
                    self.tell(Told { node, run, input: Input::Timeout });
                }
            }
            Event::Begin(index) => self.begin(index),
            Event::End(index) => self.end(index),
            Event::CutCheck => {
                let told = self.net.cut_check();
                told.into_iter().for_each(|told| self.tell(told));
            }
            Event::SilenceCheck { node, run, since } => {
                let machine = &self.machines[node as usize];
                if machine.run == run && machine.still > 0 && machine.still_since == since {
                    let told = self.net.given_up(node);
                    told.into_iter().for_each(|told| self.tell(told));
                }
            }
            Event::Restart { node } | Event::Join { node } => self.start(node),
            Event::Request => self.ask(),
            Event::Impatient(number) => self.impatient(number),
            Event::Sample => {
                Samples::take(self);
                self.net.schedule(self.net.now + Duration::from_secs(1), Event::Sample);
            }
        }
    }

    /// Something has come to a machine: it gets it now, or when it is able to.
    fn tell(&mut self, Told { node, run, input }: Told) {
        let now = self.net.now;
        let machine = &mut self.machines[node as usize];
        if machine.process.is_none() || machine.run != run {
            return;
        }
        if machine.still > 0 {
            machine.inbox.push_back(input);
            return;
        }
        let works = matches!(input, Input::Message { .. });
        if works || machine.busy_until > now {
            let costs = if works { machine.slow } else { Duration::ZERO };
            let at = machine.busy_until.max(now) + costs;
            if at > now {
                machine.busy_until = at;
                self.net.schedule(at, Event::Do { node, run, input });
                return;
            }
        }
        self.act(node, run, input);
    }

    /// A process deals with what it is told.
    fn act(&mut self, node: u32, run: u32, input: Input) {
        let machine = &mut self.machines[node as usize];
        if machine.run != run {
            return;
        }
        if machine.still > 0 {
            machine.inbox.push_back(input);
            return;
        }
        let Some(mut process) = machine.process.take() else { return };
        self.narrator.told(self.net.now, node, &input);
        let Machine { disk, clock, .. } = machine;
        let (net, book, settings) = (&mut self.net, &mut self.book, &self.settings);
        let mut ctx = Context { net, book, disk, clock, settings, me: node, run };
        let ends = match &mut process {
            Process::Entry(entry) => {
                entry.handle(&mut ctx, input);
                None
            }
            Process::Member(member) => {
                member.handle(&mut ctx, input);
                member.ends
            }
        };
        machine.process = Some(process);
        machine.up_last = self.net.now;
        match ends {
            None => {
                Checker::after(self, node);
                self.set_timer(node);
            }
            Some(ends) => self.ended(node, ends),
        }
    }

    /// A process has ended by itself.
    fn ended(&mut self, node: u32, ends: Ends) {
        self.stop(node, false);
        match ends {
            Ends::Left => {}
            Ends::KeyInUse => {
                let machine = &mut self.machines[node as usize];
                machine.stopped = true;
                let id = self.book.id(node);
                if !self.book.untrusted.contains(&id) {
                    let what = "it stopped because its key is in use elsewhere, and it is not".to_owned();
                    self.book.wrong(self.net.now, "stopped-for-nothing", Some(node), what);
                }
            }
            Ends::DiskFull => self.net.schedule(self.net.now + RESTARTED_AFTER, Event::Restart { node }),
        }
    }

    /// Asks a process when it wants to be called, and sees to it.
    fn set_timer(&mut self, node: u32) {
        let now = self.net.now;
        let machine = &mut self.machines[node as usize];
        let at = match &machine.process {
            Some(Process::Entry(entry)) => entry.poll_timeout(),
            Some(Process::Member(member)) => member.poll_timeout(),
            None => None,
        };
        let at = at.map(|at| machine.clock.when(now, at));
        if at != machine.wake_at {
            machine.wake_at = at;
            if let Some(at) = at {
                self.net.schedule(at, Event::Wake { node, run: machine.run, at });
            }
        }
    }

    /// A process starts, unless something keeps it down.
    fn start(&mut self, node: u32) {
        let now = self.net.now;
        let machine = &mut self.machines[node as usize];
        if machine.down > 0 || machine.process.is_some() || machine.stopped {
            return;
        }
        let is_entry = self.settings.layout.entries.contains(&node);
        let epoch = match is_entry {
            true => 0,
            false => match machine.disk.raise_epoch(0) {
                Ok(epoch) => epoch,
                Err(_) => return self.net.schedule(now + RESTARTED_AFTER, Event::Restart { node }),
            },
        };
        machine.run += 1;
        machine.up_since = now;
        machine.restored = machine.disk.snapshot.is_some();
        machine.wake_at = None;
        machine.busy_until = now;
        machine.inbox.clear();
        let run = machine.run;
        self.net.set_up(node, if machine.still > 0 { Up::Still(run) } else { Up::Running(run) });
        self.checker.started(node);
        let nature = self.nature(node);
        let machine = &mut self.machines[node as usize];
        let Machine { disk, clock, .. } = machine;
        let (net, book, settings) = (&mut self.net, &mut self.book, &self.settings);
        let mut ctx = Context { net, book, disk, clock, settings, me: node, run };
        let process = match is_entry {
            true => {
                let seed = random::number(settings.seed, "entry", u64::from(node) << 32 | u64::from(run));
                Process::Entry(Box::new(Entry::new(ctx.now(), settings, seed)))
            }
            false => Process::Member(Box::new(Member::new(&mut ctx, nature, epoch))),
        };
        machine.process = Some(process);
        self.act(node, run, Input::Start);
    }

    /// What a node is.
    fn nature(&self, node: u32) -> Nature {
        let (settings, layout) = (&self.settings, &self.settings.layout);
        let Adversary { malice, invents_per_second, clone_of } = self.adversaries[node as usize].clone();
        let original = clone_of.unwrap_or(node);
        let coordinates = layout.coordinators.contains(&original) || layout.adversaries.contains(&original);
        let elective = !coordinates && settings.draw("elective", original) < settings.elective;
        Nature {
            key: settings.key(original),
            roles: if coordinates { Roles::Coordinator } else { Roles::Worker },
            candidacy: if elective { Candidacy::Elective } else { Candidacy::Fixed },
            dialable: self.net.links.place(node).is_dialable(),
            services: settings.services_of(original),
            newer_version: version::is_later(settings.seed, original, settings.newer_version),
            malice,
            invents_per_second,
        }
    }

    /// A process ends, by a fault or by itself.
    fn stop(&mut self, node: u32, silent: bool) {
        let machine = &mut self.machines[node as usize];
        let Some(process) = machine.process.take() else { return };
        machine.inbox.clear();
        machine.up_last = self.net.now;
        if let Process::Entry(entry) = &process {
            let open: Vec<RequestNumber> = entry.open_requests().collect();
            open.into_iter().for_each(|number| self.book.ends(self.net.now, number, Ended::EntryGone));
        }
        self.net.gone(node, silent);
        self.net.set_up(node, Up::Down);
    }

    /// A client asks.
    fn ask(&mut self) {
        let now = self.net.now;
        let Some((_, until)) = self.asks else { return };
        let load = self.settings.load.clone();
        if load.requests_per_second <= 0.0 {
            return;
        }
        let pause = random::exponential(&mut self.clients, 1.0 / load.requests_per_second);
        let next = now + Duration::from_secs_f64(pause);
        if next <= until {
            self.net.schedule(next, Event::Request);
        }
        let up = |entry: &u32| matches!(self.net.up(*entry), Up::Running(_));
        let entries: Vec<u32> = self.settings.layout.entries.clone().filter(up).collect();
        let service = self.clients.u32(..self.settings.services.len() as u32);
        let repeat = if self.clients.f64() < load.once { Repeat::Once } else { Repeat::Idempotent };
        // Nobody is there to ask: the client's own connection fails.
        let Some(entry) = self.clients.choice(entries) else { return };
        self.next_request += 1;
        let number = self.next_request;
        let asked = Asked { at: now, entry, service, repeat, ran: Vec::new(), began: 0, end: None };
        self.book.requests.insert(number, asked);
        self.book.asked += 1;
        self.net.schedule(now + load.patience.0, Event::Impatient(number));
        let run = self.machines[entry as usize].run;
        self.tell(Told { node: entry, run, input: Input::Request(number) });
    }

    fn impatient(&mut self, number: RequestNumber) {
        let Some(asked) = self.book.requests.get(&number) else { return };
        let entry = asked.entry;
        if asked.end.is_none() {
            self.book.ends(self.net.now, number, Ended::Impatient);
            let run = self.machines[entry as usize].run;
            self.tell(Told { node: entry, run, input: Input::Impatient(number) });
        }
        Checker::request_over(self, number);
        self.book.requests.remove(&number);
    }

    /// The node of this index, if it runs and is one.
    pub(crate) fn member(&self, node: u32) -> Option<&Member> {
        match &self.machines.get(node as usize)?.process {
            Some(Process::Member(member)) => Some(member),
            _ => None,
        }
    }

    /// The entry of this index, if it runs.
    pub(crate) fn entry(&self, node: u32) -> Option<&Entry> {
        match &self.machines.get(node as usize)?.process {
            Some(Process::Entry(entry)) => Some(entry),
            _ => None,
        }
    }

    /// The coordinators that run and keep the rules.
    pub(crate) fn coordinators(&self) -> impl Iterator<Item = (u32, &Member)> {
        let nodes = 0..self.machines.len() as u32;
        nodes
            .filter_map(|node| Some((node, self.member(node)?)))
            .filter(|(_, member)| member.coordinates() && member.is_honest())
    }
}
