//! An entry: it keeps who has a tunnel here and what everybody said, and takes each request to a node, by the product's own rules
//! of balancing and retrying.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::attempts::{AttemptLimits, Course, Waiting};
use hedgerow_proto::clock::Time;
use hedgerow_proto::election::{self, CENSUS_INTERVAL, CENSUS_SILENT_FOR};
use hedgerow_proto::home::telling::{Due, Telling};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::{Candidacy, NodeRecord, Signed, Version};
use hedgerow_proto::registry::{Presence, Registry, Source};
use hedgerow_proto::retry::{Failure, RetryBudget};
use hedgerow_proto::route::{Contender, Field, PeakEwma, Standing};
use hedgerow_proto::sync::Session;

use crate::book::Ended;
use crate::context::Context;
use crate::message::{Message, RequestNumber};
use crate::net::{ConnectionId, Input};
use crate::settings::{FEDERATION, Settings};
use crate::verify;

mod jobs;

/// How often it synchronises, within a quarter, and with how many.
const SYNC_ROUND: Duration = Duration::from_secs(1);
const SYNC_PEERS_MAX: usize = 3;
/// Of how many coordinators a node is told.
const COORDINATORS_TOLD_MAX: usize = 8;
/// How often it looks at tunnels on which requests run, and after how much silence it suspects one.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(250);
const SUSPECT_AFTER: Duration = Duration::from_millis(750);
/// Times and bounds of a request.
const LIMITS: &AttemptLimits = &AttemptLimits::PRODUCTION;

/// A node that has a tunnel here.
#[derive(Debug)]
struct Here {
    connection: ConnectionId,
    incarnation: u64,
    version: Version,
    signed: Signed,
    record: NodeRecord,
    leaving: bool,
    since: Time,
    heard: Time,
    /// Since when an answer is owed: to a request, or to a question whether it is there.
    asked: Option<Time>,
    suspect: bool,
    in_flight: u32,
    rtt: Duration,
}

/// The load of one node's service, as far as it comes from here.
#[derive(Debug, Clone, Copy)]
struct Load {
    cost: PeakEwma,
    in_flight: u32,
}

/// One attempt that is under way.
#[derive(Debug, Clone)]
struct Running {
    way: Way,
    since: Time,
    accepted: bool,
    waiting: Waiting<'static>,
    /// When the timer rings.
    rings_at: Time,
}

/// One request.
#[derive(Debug)]
struct Job {
    service: u32,
    course: Course<'static>,
    /// Counts the attempts, so that what comes late from an earlier one is known as such.
    number: u32,
    running: Option<Running>,
    /// Until when it waits for room.
    waits_until: Option<Time>,
    /// Whether the client has seen an answer begin.
    passed_on: bool,
}

/// See the module.
pub(crate) struct Entry {
    pub(crate) registry: Registry,
    here: BTreeMap<NodeId, Here>,
    by_connection: BTreeMap<ConnectionId, NodeId>,
    sessions: BTreeMap<ConnectionId, (u64, Session)>,
    loads: BTreeMap<(NodeId, u32), Load>,
    jobs: BTreeMap<RequestNumber, Job>,
    budget: RetryBudget,
    random: fastrand::Rng,
    sync_at: Time,
    census_at: Time,
    watch_at: Option<Time>,
    telling: Telling,
    tell_at: Option<Time>,
    generation: u64,
}

/// The way to a node that may take a request.
#[derive(Debug, Clone, Copy)]
struct Way {
    node: NodeId,
    connection: ConnectionId,
    via: Option<NodeId>,
    capacity: u32,
}

struct Candidates<'a> {
    ways: &'a [Way],
    entry: &'a Entry,
    service: u32,
    now: Time,
}

impl Field for Candidates<'_> {
    fn len(&self) -> usize {
        self.ways.len()
    }

    fn contender(&self, index: usize) -> Contender {
        let way = &self.ways[index];
        let load = self.entry.loads.get(&(way.node, self.service));
        let here = self.entry.by_connection.get(&way.connection).and_then(|node| self.entry.here.get(node));
        let unknown = PeakEwma::UNKNOWN.as_micros() as f32;
        Contender {
            standing: match here {
                Some(here) if here.suspect => Standing::Suspect,
                Some(_) => Standing::Live,
                None => Standing::Out,
            },
            in_flight: load.map_or(0, |load| load.in_flight),
            capacity: way.capacity,
            cost_us: load.map_or(unknown, |load| load.cost.cost_us(self.now.since_origin())),
        }
    }
}

impl hedgerow_proto::attempts::Candidates for Candidates<'_> {
    fn node(&self, index: usize) -> NodeId {
        self.ways[index].node
    }
}

impl Entry {
    pub(crate) fn new(now: Time, settings: &Settings, seed: u64) -> Self {
        Self {
            registry: Registry::verified_by(FEDERATION, settings.limits.clone(), verify::verifies),
            here: BTreeMap::new(),
            by_connection: BTreeMap::new(),
            sessions: BTreeMap::new(),
            loads: BTreeMap::new(),
            jobs: BTreeMap::new(),
            budget: RetryBudget::new(now.since_origin()),
            random: fastrand::Rng::with_seed(seed),
            sync_at: now,
            census_at: now + CENSUS_SILENT_FOR,
            watch_at: None,
            telling: Telling::default(),
            tell_at: None,
            generation: 0,
        }
    }

    /// How many workers requests can reach from here.
    pub(crate) fn routable(&self) -> usize {
        self.registry.workers().filter(|worker| self.way_to(&worker.record.writer).is_some()).count()
    }

    /// Whether requests can reach this one.
    pub(crate) fn reaches(&self, node: &NodeId) -> bool {
        self.way_to(node).is_some()
    }

    /// The requests that are under way: lost when this process is.
    pub(crate) fn open_requests(&self) -> impl Iterator<Item = RequestNumber> {
        self.jobs.keys().copied()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let retries = self
            .jobs
            .values()
            .flat_map(|job| [job.waits_until, job.running.as_ref().map(|running| running.rings_at)])
            .flatten();
        let registry = self.registry.poll_timeout().map(|(at, ..)| at);
        [Some(self.sync_at), Some(self.census_at), self.watch_at, self.tell_at, registry]
            .into_iter()
            .flatten()
            .chain(retries)
            .min()
    }

    pub(crate) fn handle(&mut self, ctx: &mut Context<'_>, input: Input) {
        let now = ctx.now();
        self.registry.handle_timeout(now);
        match input {
            Input::Message { connection, message } => self.on_message(ctx, connection, message),
            Input::Closed { connection } => self.on_closed(ctx, connection),
            Input::Timeout => {}
            Input::Request(number) => self.on_request(ctx, number),
            Input::Impatient(number) => self.cancel(ctx, number),
            Input::Start
            | Input::Connected { .. }
            | Input::DialFailed { .. }
            | Input::Served { .. }
            | Input::LineOver { .. }
            | Input::Leave => {}
        }
        self.look(ctx);
    }

    /// What is due by now.
    fn look(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        if self.sync_at <= now {
            self.sync_at = now + SYNC_ROUND.mul_f32(0.75 + 0.5 * self.random.f32());
            self.synchronise(ctx);
        }
        if self.census_at <= now {
            self.census_at = now + CENSUS_INTERVAL;
            self.tell_census(ctx);
        }
        if self.watch_at.is_some_and(|at| at <= now) {
            self.watch(ctx);
        }
        self.look_at_jobs(ctx);
        let changed = std::mem::replace(&mut self.generation, self.registry.generation()) != self.generation;
        if changed || self.tell_at.is_some_and(|at| at <= now) {
            self.tell_coordinators(ctx);
        }
    }

    fn on_message(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, message: Message) {
        let now = ctx.now();
        let from = self.by_connection.get(&connection).copied();
        if let Some(here) = from.and_then(|node| self.here.get_mut(&node)) {
            here.heard = now;
            here.asked = None;
            here.suspect = false;
        }
        match (message, from) {
            (Message::Join { incarnation, record }, None) => self.join(ctx, connection, incarnation, record),
            (Message::Record(bytes), Some(node)) => {
                let Ok((signed, record)) = verify::open(bytes, &ctx.settings.limits) else { return };
                // Whoever is over a limit is routed to all the same, by its tunnel.
                drop(self.registry.insert(now, signed.clone(), Source::Direct(None)));
                if let (Some(here), Some(body)) = (self.here.get_mut(&node), record.node())
                    && record.writer == node
                    && here.version < record.version
                {
                    (here.version, here.signed, here.record) = (record.version, signed, body.clone());
                }
            }
            (Message::Leave(bytes), Some(node)) => {
                if let Some(here) = self.here.get_mut(&node) {
                    here.leaving = true;
                }
                if let Ok((signed, _)) = verify::open(bytes, &ctx.settings.limits) {
                    drop(self.registry.insert(now, signed, Source::Direct(None)));
                }
            }
            (Message::Ping(n), Some(_)) => ctx.send(connection, Message::Pong(n)),
            (Message::Sync { session, bytes }, Some(_)) => self.hear_sync(ctx, connection, session, &bytes),
            (Message::Accept { request, attempt }, Some(_)) => {
                if let Some(running) = self.running(request, attempt) {
                    running.accepted = true;
                }
            }
            (Message::Refuse { request, attempt, refusal }, Some(_)) if self.running(request, attempt).is_some() => {
                self.failed(ctx, request, Failure::Refused(refusal));
            }
            (Message::Broke { request, attempt }, Some(_)) if self.running(request, attempt).is_some() => {
                self.failed(ctx, request, Failure::Broken);
            }
            (Message::Begin { request, attempt }, Some(_)) => {
                if let Some(job) =
                    self.jobs.get_mut(&request).filter(|job| job.number == attempt && job.running.is_some())
                {
                    job.passed_on = true;
                    ctx.book.begins(ctx.net.now, request);
                }
            }
            (Message::End { request, attempt }, Some(_)) => {
                if let Some(since) = self.running(request, attempt).map(|running| running.since) {
                    self.release(now, request, Ok(now.since(since)));
                    self.jobs.remove(&request);
                    ctx.book.ends(ctx.net.now, request, Ended::Answered);
                }
            }
            _ => {}
        }
    }

    fn running(&mut self, request: RequestNumber, attempt: u32) -> Option<&mut Running> {
        self.jobs.get_mut(&request).filter(|job| job.number == attempt)?.running.as_mut()
    }

    fn join(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, incarnation: u64, bytes: Bytes) {
        let now = ctx.now();
        let opened = verify::open(bytes, &ctx.settings.limits);
        let Some((signed, record, body)) =
            opened.ok().and_then(|(signed, record)| record.node().cloned().map(|body| (signed, record, body)))
        else {
            return ctx.close(connection);
        };
        let node = record.writer;
        if let Some(here) = self.here.get(&node)
            && here.incarnation != incarnation
            && record.version <= here.version
        {
            ctx.send(connection, Message::Reject { newer: Some(here.signed.bytes().clone()) });
            return ctx.close(connection);
        }
        if self.registry.insert(now, signed.clone(), Source::Direct(None)).is_err() {
            ctx.send(connection, Message::Reject { newer: None });
            return ctx.close(connection);
        }
        let old = self.here.get(&node).map(|here| here.connection);
        if let Some(old) = old {
            self.gone(ctx, old);
            ctx.close(old);
        }
        self.registry.meet(now, node);
        self.by_connection.insert(connection, node);
        let coordinates = body.roles.coordinates();
        let version = record.version;
        let rtt = ctx.net.links.latency(ctx.me, ctx.book.index.get(&node).copied().unwrap_or(ctx.me)) * 2;
        self.here.insert(
            node,
            Here {
                connection,
                incarnation,
                version,
                signed,
                record: body,
                leaving: false,
                since: now,
                heard: now,
                asked: None,
                suspect: false,
                in_flight: 0,
                rtt,
            },
        );
        ctx.send(connection, Message::Welcome);
        let some = self.some_coordinators();
        if !some.is_empty() {
            ctx.send(connection, Message::Coordinators(some));
        }
        if coordinates {
            self.sync_at = now;
        }
    }

    fn on_closed(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        self.gone(ctx, connection);
    }

    /// A tunnel is gone: what ran over it has broken.
    fn gone(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        let Some(node) = self.by_connection.remove(&connection) else { return };
        self.here.remove(&node);
        self.sessions.remove(&connection);
        self.registry.part(ctx.now(), node);
        let broken: Vec<RequestNumber> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.running.as_ref().is_some_and(|running| running.way.connection == connection))
            .map(|(number, _)| *number)
            .collect();
        for number in broken {
            self.failed(ctx, number, Failure::Broken);
        }
    }

    fn some_coordinators(&mut self) -> Vec<Vec<u8>> {
        let here = self.registry.coordinators().filter(|view| view.presence == Presence::Here);
        let mut some: Vec<Vec<u8>> = here.map(|view| view.signed.bytes().to_vec()).collect();
        self.random.shuffle(&mut some);
        some.truncate(COORDINATORS_TOLD_MAX);
        some
    }

    /// Everybody hears of it when the coordinators are others than before.
    fn tell_coordinators(&mut self, ctx: &mut Context<'_>) {
        let here = self.registry.coordinators().filter(|view| view.presence == Presence::Here);
        let coordinators: Vec<NodeId> = here.map(|view| view.record.writer).collect();
        self.tell_at = match self.telling.look(ctx.now(), &coordinators) {
            Due::No => None,
            Due::At(at) => Some(at),
            Due::Now => {
                self.tell_everybody(ctx);
                None
            }
        };
    }

    fn tell_everybody(&mut self, ctx: &mut Context<'_>) {
        let some = self.some_coordinators();
        if some.is_empty() {
            return;
        }
        for here in self.here.values() {
            ctx.send(here.connection, Message::Coordinators(some.clone()));
        }
    }

    fn tell_census(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        let coordinators = self.registry.coordinators().filter(|view| view.presence == Presence::Here).count();
        let stands = |here: &Here| {
            here.record.candidacy == Candidacy::Elective && !here.record.roles.coordinates() && !here.leaving
        };
        let candidates = self.here.iter().filter(|(_, here)| stands(here)).map(|(node, here)| election::Candidate {
            node: *node,
            up_for: now.since(here.since),
            rtt: here.rtt,
        });
        for (node, census) in election::census(self.here.len(), coordinators, candidates.collect()) {
            if let Some(here) = self.here.get(&node) {
                ctx.send(here.connection, Message::Census(census));
            }
        }
    }

    fn synchronise(&mut self, ctx: &mut Context<'_>) {
        let live = self.here.values().filter(|here| here.record.roles.coordinates() && !here.leaving && !here.suspect);
        let mut peers: Vec<ConnectionId> =
            live.map(|here| here.connection).filter(|connection| !self.sessions.contains_key(connection)).collect();
        self.random.shuffle(&mut peers);
        peers.truncate(SYNC_PEERS_MAX);
        for connection in peers {
            self.sessions.insert(connection, (self.random.u64(..), Session::initiate()));
            self.say_sync(ctx, connection);
        }
    }

    fn hear_sync(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, number: u64, bytes: &[u8]) {
        let now = ctx.now();
        let Some((current, session)) = self.sessions.get_mut(&connection) else { return };
        if *current != number || session.handle(now, &mut self.registry, bytes).is_err() {
            self.sessions.remove(&connection);
            return;
        }
        self.say_sync(ctx, connection);
    }

    fn say_sync(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        let now = ctx.now();
        let Some((number, session)) = self.sessions.get_mut(&connection) else { return };
        while let Some(bytes) = session.poll_transmit(now, &self.registry) {
            ctx.send(connection, Message::Sync { session: *number, bytes });
        }
        if session.is_finished() {
            self.sessions.remove(&connection);
        }
    }
}
