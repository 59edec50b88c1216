//! An entry: it keeps who has a tunnel here and what everybody said, and takes each request to a node, by the product's own rules
//! of balancing and retrying.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::attempts::{AttemptLimits, Course, Waiting};
use hedgerow_proto::clock::Time;
use hedgerow_proto::election::{self, CENSUS_INTERVAL, CENSUS_SILENT_FOR};
use hedgerow_proto::home::roster::COORDINATORS_TOLD_MAX;
use hedgerow_proto::home::telling::{Due, Telling};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::liveness::{PING_INTERVAL, Watchdog, suspect_idle_after};
use hedgerow_proto::members::{self, Arrival, Lane, MemberLimits};
use hedgerow_proto::offers;
use hedgerow_proto::record::Candidacy;
use hedgerow_proto::registry::{Presence, Registry, Source};
use hedgerow_proto::retry::{Failure, RetryBudget};
use hedgerow_proto::route::{Contender, Field, PeakEwma, Standing};
use hedgerow_proto::sync::{ENTRY_INTERVAL, ENTRY_PEERS_MAX, Session};

use crate::book::Ended;
use crate::context::Context;
use crate::message::{Message, RequestNumber};
use crate::net::{ConnectionId, Input};
use crate::settings::{FEDERATION, Settings};
use crate::verify;

mod jobs;
mod ways;

use ways::{Way, Ways};

/// Times and bounds of a request.
const LIMITS: &AttemptLimits = &AttemptLimits::PRODUCTION;

/// The nodes that have a tunnel here. Each has one connection, and no quota is by source.
type Members = members::Members<ConnectionId, u32>;

/// The bounds of that table: nobody's are reached here.
const MEMBER_LIMITS: MemberLimits =
    MemberLimits { nodes_max: usize::MAX, nodes_per_source_max: usize::MAX, lanes_max: 1 };

/// One tunnel.
#[derive(Debug)]
struct Tunnel {
    node: NodeId,
    incarnation: u64,
    /// A number of its own in this process.
    id: u64,
    since: Time,
    heard: Time,
    /// Counts what has come.
    received: u64,
    dog: Watchdog,
    /// It was silent though asked, and has not been heard since.
    silent: bool,
    in_flight: u32,
    rtt: Duration,
}

impl Tunnel {
    fn is_suspect(&self, now: Time) -> bool {
        self.silent || now.since(self.heard) > suspect_idle_after(PING_INTERVAL)
    }
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
    members: Members,
    ways: Ways,
    tunnels: BTreeMap<ConnectionId, Tunnel>,
    next_tunnel: u64,
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
        let tunnel = self.entry.tunnels.get(&way.connection);
        let unknown = PeakEwma::UNKNOWN.as_micros() as f32;
        Contender {
            standing: match tunnel {
                Some(tunnel) if tunnel.is_suspect(self.now) => Standing::Suspect,
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
            registry: Registry::opened_by(FEDERATION, settings.limits.clone(), verify::open_once),
            members: Members::new(MEMBER_LIMITS),
            ways: Ways::default(),
            tunnels: BTreeMap::new(),
            next_tunnel: 0,
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

    /// The workers that requests can reach from here.
    pub(crate) fn reached(&self) -> impl Iterator<Item = NodeId> {
        let nodes = offers::nodes(&self.members, &self.registry);
        nodes.filter(|seen| seen.way.is_some() && seen.record.roles.works()).map(|seen| seen.id)
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
            self.sync_at = now + ENTRY_INTERVAL.mul_f32(0.75 + 0.5 * self.random.f32());
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
        let changed = std::mem::replace(&mut self.generation, self.registry.nodes_generation()) != self.generation;
        if changed || self.tell_at.is_some_and(|at| at <= now) {
            self.tell_coordinators(ctx);
        }
    }

    fn on_message(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, message: Message) {
        let now = ctx.now();
        let from = self.tunnels.get_mut(&connection).map(|tunnel| {
            (tunnel.heard, tunnel.silent) = (now, false);
            tunnel.received += 1;
            (tunnel.node, tunnel.incarnation)
        });
        match (message, from) {
            (Message::Join { incarnation, record }, None) => self.join(ctx, connection, incarnation, record),
            (Message::Record(bytes), Some((node, incarnation))) => {
                let Ok(signed) = verify::open(bytes, &ctx.settings.limits) else { return };
                // Whoever is over a limit is routed to all the same, by its tunnel.
                drop(self.registry.insert(now, signed.clone(), Source::Direct(None)));
                if let Some(body) = signed.record().node().filter(|_| signed.writer() == node).cloned() {
                    self.members.record(&node, incarnation, signed.version(), signed, body);
                    self.ways.members_changed();
                }
            }
            (Message::Leave(bytes), Some((node, incarnation))) => {
                self.members.leave(&node, incarnation);
                self.ways.members_changed();
                if let Ok(signed) = verify::open(bytes, &ctx.settings.limits) {
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
        let opened = opened.ok().and_then(|signed| Some((signed.record().node()?.clone(), signed)));
        let Some((body, signed)) = opened else { return ctx.close(connection) };
        let node = signed.writer();
        let arrival = Arrival { node, incarnation, version: signed.version(), lane: 0, source: None };
        if let Err(reject) = self.members.admit(&arrival) {
            ctx.send(connection, Message::Reject { newer: reject.record.map(Bytes::from) });
            return ctx.close(connection);
        }
        if self.registry.insert(now, signed.clone(), Source::Direct(None)).is_err() {
            ctx.send(connection, Message::Reject { newer: None });
            return ctx.close(connection);
        }
        self.next_tunnel += 1;
        let (id, coordinates) = (self.next_tunnel, body.roles.coordinates());
        let lane = Lane { id, shard: 0, connection };
        let Ok(replaced) = self.members.join(&arrival, lane, signed, body) else { return ctx.close(connection) };
        self.ways.members_changed();
        let rtt = ctx.net.links.latency(ctx.me, ctx.book.index.get(&node).copied().unwrap_or(ctx.me)) * 2;
        let tunnel = Tunnel {
            node,
            incarnation,
            id,
            since: now,
            heard: now,
            received: 0,
            dog: Watchdog::default(),
            silent: false,
            in_flight: 0,
            rtt,
        };
        self.tunnels.insert(connection, tunnel);
        self.registry.meet(now, node);
        for old in replaced {
            self.gone(ctx, old);
            ctx.close(old);
        }
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
        let Some(tunnel) = self.tunnels.remove(&connection) else { return };
        self.members.closed(&tunnel.node, 0, tunnel.id);
        self.ways.members_changed();
        self.sessions.remove(&connection);
        self.registry.part(ctx.now(), tunnel.node);
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
        for connection in self.tunnels.keys() {
            ctx.send(*connection, Message::Coordinators(some.clone()));
        }
    }

    fn tell_census(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        let coordinators = self.registry.coordinators().filter(|view| view.presence == Presence::Here).count();
        let candidates = self.members.iter().filter_map(|(node, member)| {
            let record = &member.record;
            let stands = record.candidacy == Candidacy::Elective && !record.roles.coordinates() && !member.leaving;
            let tunnel = self.tunnels.get(&connection_of(member).filter(|_| stands)?)?;
            Some(election::Candidate { node: *node, up_for: now.since(tunnel.since), rtt: tunnel.rtt })
        });
        for (node, census) in election::census(self.tunnels.len(), coordinators, candidates.collect()) {
            if let Some(connection) = self.members.node(&node).and_then(connection_of) {
                ctx.send(connection, Message::Census(census));
            }
        }
    }

    fn synchronise(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        let here = self.members.iter().filter(|(_, member)| member.record.roles.coordinates() && !member.leaving);
        let live = |connection: &ConnectionId| {
            let tunnel = self.tunnels.get(connection);
            tunnel.is_some_and(|tunnel| !tunnel.is_suspect(now)) && !self.sessions.contains_key(connection)
        };
        let mut peers: Vec<ConnectionId> = here.filter_map(|(_, member)| connection_of(member)).filter(live).collect();
        self.random.shuffle(&mut peers);
        peers.truncate(ENTRY_PEERS_MAX);
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

/// The connection of a node's tunnel.
fn connection_of(member: &members::Member<ConnectionId, u32>) -> Option<ConnectionId> {
    member.lanes().next().map(|lane| lane.connection)
}
