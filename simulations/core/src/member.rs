//! A node: a worker, a coordinator, or both, as it is elected. What it decides is decided by the product's state machines; this
//! is the shell round them, over simulated connections.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_proto::backoff::Backoff;
use hedgerow_proto::clock::Time;
use hedgerow_proto::election::{self, Election, Move};
use hedgerow_proto::frame::Census;
use hedgerow_proto::home::seeker::moves_before;
use hedgerow_proto::home::{Hints, Roster, Seeker};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::liveness::Pings;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::{Candidacy, Hardware, Home, NodeRecord, Roles, ServiceHealth, ServiceOffer};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::replica::{Core, Event, SpeakError};
use hedgerow_proto::snapshot::{self, Snapshot};
use hedgerow_proto::sync::Session;
use hedgerow_sim_model::random;
use hedgerow_sim_model::scenario::Malice;

use crate::context::{Context, Stored};
use crate::malice::Evil;
use crate::mesh::{Mesh, Tongue};
use crate::message::{Message, RequestNumber};
use crate::net::{ConnectionId, Input};
use crate::settings::{FEDERATION, Settings};
use crate::{verify, version};

mod connections;
mod homes;
mod services;

/// Requests that stand in line at one node.
const LINE_MAX: usize = 1024;
/// What an answer takes from its beginning to its end, as a part of what it took until then.
const TAIL: f64 = 0.2;

/// What a node is made of.
pub(crate) struct Nature {
    pub(crate) key: SecretKey,
    pub(crate) roles: Roles,
    pub(crate) candidacy: Candidacy,
    /// Whether others can dial it.
    pub(crate) dialable: bool,
    /// The services that it offers, by number.
    pub(crate) services: Vec<u32>,
    /// Whether it says things that this version does not know.
    pub(crate) newer_version: bool,
    /// What it does that it should not.
    pub(crate) malice: Vec<Malice>,
    /// How many others it invents a second.
    pub(crate) invents_per_second: f64,
}

/// Its tunnel to one entry.
#[derive(Debug)]
enum Tunnel {
    /// None; it is tried again then.
    Down {
        again_at: Time,
    },
    Dialling,
    Up {
        connection: ConnectionId,
        pings: Pings,
    },
}

/// A request that a service works on.
#[derive(Debug, Clone, Copy)]
struct Work {
    service: u32,
    connection: ConnectionId,
}

/// What a request is for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    service: u32,
    waits: bool,
    via: Option<NodeId>,
}

/// A request that goes on to a worker at home here.
#[derive(Debug, Clone, Copy)]
struct Relay {
    from: ConnectionId,
    to: ConnectionId,
}

/// The control connection to its home.
#[derive(Debug)]
struct AtHome {
    home: NodeId,
    connection: ConnectionId,
    pings: Pings,
}

/// Why a process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It has left.
    Left,
    /// Another process speaks with its key.
    KeyInUse,
    /// The disk is full, and it would have to write.
    DiskFull,
}

/// See the module.
pub(crate) struct Member {
    pub(crate) core: Core,
    nature: Nature,
    incarnation: u64,
    roles: Roles,
    tunnels: BTreeMap<u32, Tunnel>,
    backoffs: BTreeMap<u32, Backoff>,
    /// Synchronisations that entries have begun.
    sessions: BTreeMap<ConnectionId, (u64, Session)>,
    hints: Hints,
    seeker: Seeker,
    home: Option<Home>,
    at_home: Option<AtHome>,
    /// The home that is being dialled.
    dialling_home: Option<(u32, NodeId)>,
    pub(crate) roster: Roster<ConnectionId>,
    roster_ids: BTreeMap<ConnectionId, (u64, NodeId)>,
    next_roster_id: u64,
    pub(crate) mesh: Option<Mesh>,
    election: Election,
    jitter: f32,
    census: Option<(Time, Census)>,
    election_at: Option<Time>,
    store_at: Time,
    in_flight: BTreeMap<u32, u32>,
    /// Requests that wait for a slot, the first of them longest.
    line: VecDeque<((RequestNumber, u32), Work)>,
    work: BTreeMap<(RequestNumber, u32), Work>,
    /// Requests that are passed on to a worker at home here, and where their answers go.
    relayed: BTreeMap<(RequestNumber, u32), Relay>,
    evil: Option<Evil>,
    generation: u64,
    draining: bool,
    pub(crate) ends: Option<Ends>,
    random: fastrand::Rng,
}

impl Member {
    /// A process that begins: its epoch has been raised.
    pub(crate) fn new(ctx: &mut Context<'_>, nature: Nature, epoch: u64) -> Self {
        let (now, settings) = (ctx.now(), ctx.settings);
        let number = u64::from(ctx.me) << 32 | u64::from(ctx.run);
        let seed = |what| random::number(settings.seed, what, number);
        let incarnation = seed("incarnation");
        let me = nature.key.id();
        let voice = Voice::new(nature.key.clone(), FEDERATION, incarnation, epoch, settings.limits.clone());
        let mut registry = Registry::opened_by(FEDERATION, settings.limits.clone(), verify::open_once);
        if let Some(bytes) = ctx.disk.snapshot.as_ref().map(Stored::bytes) {
            let mut restored = Registry::opened_by(FEDERATION, settings.limits.clone(), verify::open_once);
            // A damaged one is set aside: its neighbours have everything.
            match snapshot::restore(bytes, &mut restored, now) {
                Ok(_) => registry = restored,
                Err(_) => ctx.disk.snapshot = None,
            }
        }
        let core = Core::new(now, voice, registry, ctx.clock.suspended());
        let is_evil = !nature.malice.is_empty() || nature.invents_per_second > 0.0;
        let entries = settings.layout.entries.clone();
        Self {
            core,
            incarnation,
            roles: nature.roles,
            tunnels: entries.clone().map(|entry| (entry, Tunnel::Down { again_at: now })).collect(),
            backoffs: entries.map(|entry| (entry, Backoff::new(seed("backoff") ^ u64::from(entry)))).collect(),
            sessions: BTreeMap::new(),
            hints: Hints::default(),
            seeker: Seeker::new(me, moves_before(epoch), seed("seeker")),
            home: None,
            at_home: None,
            dialling_home: None,
            roster: Roster::new(me, &settings.limits),
            roster_ids: BTreeMap::new(),
            next_roster_id: 0,
            mesh: nature.roles.coordinates().then(|| Mesh::new(now, me, seed("mesh"))),
            election: Election::default(),
            jitter: random::stream(settings.seed, "election", number).f32(),
            census: None,
            election_at: (nature.candidacy == Candidacy::Elective).then_some(now),
            store_at: now + snapshot::INTERVAL,
            in_flight: BTreeMap::new(),
            line: VecDeque::new(),
            work: BTreeMap::new(),
            relayed: BTreeMap::new(),
            evil: is_evil.then(|| {
                Evil::new(now, nature.malice.clone(), nature.invents_per_second, nature.key.clone(), seed("evil"))
            }),
            nature,
            generation: 0,
            draining: false,
            ends: None,
            random: random::stream(settings.seed, "member", number),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.core.node()
    }

    /// Whether it holds the registry.
    pub(crate) fn coordinates(&self) -> bool {
        self.roles.coordinates()
    }

    /// Whether it keeps the rules.
    pub(crate) fn is_honest(&self) -> bool {
        self.evil.is_none()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let tunnels = self.tunnels.values().map(|tunnel| match tunnel {
            Tunnel::Down { again_at, .. } => Some(*again_at),
            Tunnel::Dialling => None,
            Tunnel::Up { pings, .. } => Some(pings.poll_timeout()),
        });
        let is_worker = !self.roles.coordinates();
        let others = [
            self.core.poll_timeout().map(|(at, _)| at),
            self.seeker.poll_timeout().map(|(at, _)| at).filter(|_| is_worker),
            self.roster.poll_timeout().map(|(at, _)| at),
            self.at_home.as_ref().map(|home| home.pings.poll_timeout()),
            self.mesh.as_ref().map(Mesh::poll_timeout),
            self.evil.as_ref().map(Evil::poll_timeout),
            self.election_at,
            Some(self.store_at),
        ];
        tunnels.chain(others).flatten().min()
    }

    pub(crate) fn handle(&mut self, ctx: &mut Context<'_>, input: Input) {
        let (now, suspended) = (ctx.now(), ctx.clock.suspended());
        self.core.handle_suspended(now, suspended);
        match input {
            Input::Start => self.announce(ctx),
            Input::Connected { connection, peer, link, dialled } => {
                self.connected(ctx, connection, peer, link, dialled)
            }
            Input::DialFailed { peer, link } => self.dial_failed(ctx, peer, link),
            Input::Closed { connection } => self.closed(ctx, connection),
            Input::Message { connection, message } => self.on_message(ctx, connection, message),
            Input::Served { request, attempt, whole } => self.served(ctx, request, attempt, whole),
            Input::LineOver { request, attempt } => self.line_over(ctx, (request, attempt)),
            Input::Leave => self.leave(ctx),
            Input::Timeout | Input::Request(_) | Input::Impatient(_) => {}
        }
        self.next_in_line(ctx);
        self.look(ctx);
        self.drain_events(ctx);
    }

    /// What is due by now.
    fn look(&mut self, ctx: &mut Context<'_>) {
        let (now, suspended) = (ctx.now(), ctx.clock.suspended());
        if self.core.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.core.handle_timeout(now, suspended);
        }
        self.look_at_tunnels(ctx);
        if self.roles.coordinates() {
            let generation = self.core.registry().generation();
            if std::mem::replace(&mut self.generation, generation) != generation {
                self.roster.registry_changed(now);
            }
            self.roster.handle_timeout(now, self.core.registry());
            self.drain_roster(ctx);
        } else if !self.draining {
            self.seeker.handle_timeout(now, &self.hints);
            self.drain_seeker(ctx);
            self.look_at_home(ctx);
        }
        if let Some(mesh) = &mut self.mesh {
            mesh.handle_timeout(ctx, &mut self.core);
        }
        if let Some((evil, mesh)) = self.evil.as_mut().zip(self.mesh.as_ref()) {
            evil.handle_timeout(now, &mut self.core, &mut Tongue { ctx, mesh });
        }
        if self.election_at.is_some_and(|at| at <= now) {
            self.election_at = Some(now + election::LOOK_INTERVAL);
            self.stand(ctx);
        }
        if self.store_at <= now {
            self.store_at = now + snapshot::INTERVAL;
            if self.roles.coordinates() {
                ctx.disk.store(Snapshot::take(self.core.registry(), now));
            }
        }
    }

    /// What follows from what has been done, until nothing more does.
    fn drain_events(&mut self, ctx: &mut Context<'_>) {
        let mut said = false;
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Hurry(bytes) => {
                    said = true;
                    if let Some(mesh) = &mut self.mesh {
                        mesh.publish(ctx, &mut self.core, bytes);
                    }
                }
                Event::OwnRecord(bytes) => self.hand_on(ctx, &bytes),
                Event::RaiseEpoch { above } => match ctx.disk.raise_epoch(above) {
                    Ok(epoch) => self.core.epoch_raised(ctx.now(), epoch),
                    Err(_) => self.ends = Some(Ends::DiskFull),
                },
                Event::Failed(SpeakError::KeyInUse(_)) => self.key_in_use(),
                Event::Failed(error) => ctx.wrong("cannot-speak", error.to_string()),
                Event::GuestNews(_) => {}
            }
        }
        if said && self.is_honest() {
            let (at, node) = (ctx.net.now, self.core.node());
            ctx.book.said(at, node, self.core.registry());
        }
    }

    /// The node's own record has changed: whoever it has handed it to gets the new one.
    fn hand_on(&mut self, ctx: &mut Context<'_>, bytes: &bytes::Bytes) {
        for tunnel in self.tunnels.values() {
            if let Tunnel::Up { connection, .. } = tunnel {
                ctx.send(*connection, Message::Record(bytes.clone()));
            }
        }
        if let Some(at_home) = &self.at_home {
            ctx.send(at_home.connection, Message::Record(bytes.clone()));
        }
    }

    fn record(&self, ctx: &Context<'_>) -> NodeRecord {
        let offer = |service: &u32| {
            Some(ServiceOffer {
                name: ctx.settings.services.get(*service as usize)?.clone(),
                capacity: ctx.settings.capacity,
                health: ServiceHealth::Up,
            })
        };
        let coordinates = self.roles.coordinates();
        let address = (coordinates && self.nature.dialable).then(|| Settings::address(ctx.me));
        NodeRecord {
            roles: self.roles,
            location: String::new(),
            version: if self.nature.newer_version { version::LATER } else { "1" }.into(),
            services: self.nature.services.iter().filter_map(offer).collect(),
            multiaddrs: address.into_iter().collect(),
            home: self.home.filter(|_| !coordinates),
            candidacy: self.nature.candidacy,
            hardware: Hardware::default(),
        }
    }

    fn announce(&mut self, ctx: &mut Context<'_>) {
        let record = self.record(ctx);
        match self.core.announce(ctx.now(), record) {
            Ok(()) => {}
            Err(SpeakError::KeyInUse(_)) => self.key_in_use(),
            // What it has to say of itself is always good, and always finds room with itself.
            Err(error) => ctx.wrong("cannot-speak", error.to_string()),
        }
        // What a worker says beside its own record goes nowhere: it hands over that one only.
        if self.nature.newer_version && self.roles.coordinates() {
            // One that finds no room is not said.
            drop(self.core.say(ctx.now(), version::unknown()));
        }
    }

    /// Another process speaks with its key. Whoever says two different things in one place itself does not mind.
    fn key_in_use(&mut self) {
        if self.is_honest() {
            self.ends = Some(Ends::KeyInUse);
        }
    }

    fn leave(&mut self, ctx: &mut Context<'_>) {
        self.draining = true;
        self.ends = Some(Ends::Left);
        let Ok(leave) = self.core.leave(ctx.now()) else { return };
        for tunnel in self.tunnels.values() {
            if let Tunnel::Up { connection, .. } = tunnel {
                ctx.send(*connection, Message::Leave(leave.clone()));
            }
        }
        if let Some(at_home) = &self.at_home {
            ctx.send(at_home.connection, Message::Leave(leave));
        }
    }

    fn stand(&mut self, ctx: &mut Context<'_>) {
        let (now, me) = (ctx.now(), self.core.node());
        let decision = match self.roles.coordinates() {
            true => self.election.look_down(now, me, self.core.registry(), self.jitter),
            false => self.election.look_up(now, self.census, self.jitter),
        };
        match decision {
            Move::Stay => return,
            Move::Promote => {
                self.roles = Roles::Both;
                self.home = None;
                if let Some(at_home) = self.at_home.take() {
                    ctx.close(at_home.connection);
                }
                self.dialling_home = None;
                self.mesh = Some(Mesh::new(now, me, self.random.u64(..)));
            }
            Move::StepDown => {
                self.roles = Roles::Worker;
                self.roster.let_go();
                self.drain_roster(ctx);
                if let Some(mut mesh) = self.mesh.take() {
                    mesh.end(ctx, &mut self.core);
                }
                let moves = moves_before(self.core.epoch()).max(self.home.map_or(0, |home| home.home_seq));
                self.seeker = Seeker::new(me, moves, self.random.u64(..));
            }
        }
        self.announce(ctx);
    }

    fn own_record(&self) -> bytes::Bytes {
        let signed = self.core.registry().signed_node(&self.core.node());
        signed.map(|signed| signed.bytes().clone()).unwrap_or_default()
    }

    fn on_message(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, message: Message) {
        let now = ctx.now();
        match message {
            Message::Open { request, service, attempt, waits, via } => {
                self.open(ctx, connection, (request, attempt), Wanted { service, waits, via });
            }
            Message::Cancel { request, attempt } => self.cancelled(ctx, (request, attempt)),
            Message::Accept { request, attempt }
            | Message::Refuse { request, attempt, .. }
            | Message::Begin { request, attempt }
            | Message::Broke { request, attempt }
            | Message::End { request, attempt } => {
                // The answer of a worker at home here: it goes where it was asked for.
                let over = matches!(message, Message::Refuse { .. } | Message::Broke { .. } | Message::End { .. });
                let key = (request, attempt);
                let relay = if over { self.relayed.remove(&key) } else { self.relayed.get(&key).copied() };
                if let Some(relay) = relay {
                    ctx.send(relay.from, message);
                }
            }
            Message::Coordinators(records) => self.hear_of_coordinators(ctx, records),
            Message::Census(census) => self.census = Some((now, census)),
            Message::Sync { session, bytes } => self.answer_sync(ctx, connection, session, &bytes),
            Message::Pong(_) => self.pong(ctx, connection),
            Message::Ping(n) => ctx.send(connection, Message::Pong(n)),
            Message::Welcome => self.welcomed(connection),
            Message::Reject { newer } => {
                if let Some(newer) = newer {
                    // What it says is heard, or is not to be believed.
                    drop(self.core.insert_if(now, newer, Source::Passed(Duration::ZERO), |_, _| Ok::<(), ()>(())));
                }
            }
            Message::Join { record, .. } => self.take_in(ctx, connection, record),
            Message::Record(bytes) => {
                let Some((id, _)) = self.roster_ids.get(&connection) else { return };
                if let Ok(signed) = verify::open(bytes, &ctx.settings.limits) {
                    self.roster.said(*id, signed.clone(), signed.record());
                    self.drain_roster(ctx);
                }
            }
            Message::Leave(bytes) => {
                let Some((id, _)) = self.roster_ids.get(&connection) else { return };
                if let Ok(signed) = verify::open(bytes, &ctx.settings.limits) {
                    self.roster.left(*id, signed);
                    self.drain_roster(ctx);
                }
            }
            Message::Gossip { .. } | Message::Ask { .. } | Message::Answer { .. } => {
                if let Some(mesh) = &mut self.mesh {
                    if let (Some(evil), Message::Gossip { bytes, .. }) = (&mut self.evil, &message) {
                        evil.overhears(bytes);
                    }
                    mesh.on_message(ctx, &mut self.core, connection, message);
                }
            }
        }
    }

    fn answer_sync(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, number: u64, bytes: &[u8]) {
        if !self.roles.coordinates() {
            return;
        }
        let now = ctx.now();
        let mut session = match self.sessions.remove(&connection) {
            Some((same, session)) if same == number => session,
            _ => Session::respond(),
        };
        if self.core.receive_if(now, &mut session, bytes, |_, _| true).is_err() {
            return;
        }
        for bytes in self.core.turn(now, &mut session) {
            ctx.send(connection, Message::Sync { session: number, bytes });
        }
        if !session.is_finished() {
            self.sessions.insert(connection, (number, session));
        }
    }
}
