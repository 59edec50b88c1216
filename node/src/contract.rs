//! The existing agents' contract at a coordinator: the [`Desk`], the registry, and the neighbours to whom a call is passed on.
//!
//! A call that changes something is answered only when others know of it too: whoever is asked next may be another
//! coordinator, and this one may be dead by then. And nobody is told that a worker is unknown before the neighbours have been
//! asked: what they know may not have arrived here yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::HeaderValue;
use bytes::Bytes;
use hedgerow_contract::desk::{Elsewhere, HEARTBEAT_HOPS_MAX, Heard, HeartbeatAnswer, Registered, Unregistered};
use hedgerow_contract::request::{Heartbeat, Registration};
use hedgerow_contract::{Call, ContractError, Desk, DeskConfig, Views, WorkerId, url};
use hedgerow_mesh::host::{CallAnswered, IncomingCall};
use hedgerow_mesh::replica::{GuestNews, SUSPEND_MIN};
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::peer::{Call as PeerCall, PeerRequest, PeerResponse};
use hedgerow_proto::record::Body;
use hedgerow_proto::registry::{Presence, Reach, Registry, Source};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, info, warn};

use crate::mesh::Mesh;
use crate::services::LocalServices;

mod http;

pub use http::serve_stream;

/// How many neighbours are to hold a registration before it is answered …
const REPLICAS_WANTED: usize = 2;
/// … and how long that may take. A coordinator that is alone answers at once.
const REPLICATE_WITHIN: Duration = Duration::from_millis(500);
/// How long neighbours may take to say what they know of a worker.
const FIND_WITHIN: Duration = Duration::from_secs(1);
/// How long the coordinator that holds a worker may take with a call that is passed on to it, its own replication included. With
/// the second in which an entry notices a silent coordinator all of it stays well below the 5 s that agents wait.
const PASS_ON_WITHIN: Duration = Duration::from_millis(1250);
/// How long a synchronisation may take that is made because a service was asked for which nobody here offers.
const ASK_AROUND_WITHIN: Duration = Duration::from_secs(1);
/// How long changes are gathered before the desk looks who is there.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How long other coordinators may take to take agents over from one that leaves.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(5);
/// Records about one agent that are taken with a neighbour's answer.
const RECORDS_MAX: usize = 4;
/// Calls of neighbours that are answered at once.
const CALLS_AT_ONCE: usize = 64;

/// An answer, as HTTP has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// JSON.
    pub body: Bytes,
    /// What this coordinator has said of the worker: for an entry, which then knows at once.
    pub records: Vec<Bytes>,
}

/// What a call came with.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The URL under which this coordinator is reached, without a slash at its end.
    pub base_url: String,
    /// The body.
    pub body: Bytes,
    /// How often it has been passed on.
    pub hops: u8,
    /// Whether the worker is to be taken over.
    pub take_over: bool,
}

/// The contract, answered by one coordinator.
pub struct Contract {
    mesh: Arc<Mesh>,
    services: Arc<LocalServices>,
    desk: Mutex<Desk>,
    random: Mutex<fastrand::Rng>,
}

impl Contract {
    /// With nobody at its desk.
    pub fn new(mesh: Arc<Mesh>, services: Arc<LocalServices>, config: DeskConfig, seed: u64) -> Arc<Self> {
        let desk = Desk::new(mesh.replica.now(), mesh.replica.node(), config);
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Arc::new(Self { mesh, services, desk: Mutex::new(desk), random })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Each call leaves it whole.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the desk makes of something, with the registry before it.
    fn at_desk<T>(&self, act: impl FnOnce(&mut Desk, hedgerow_proto::clock::Time, &Registry) -> T) -> T {
        let mut desk = self.desk();
        let now = self.mesh.replica.now();
        self.mesh.replica.read(|registry| act(&mut desk, now, registry))
    }

    /// Answers a call.
    pub async fn answer(&self, call: &Call, asked: &Asked) -> Result<Answer, ContractError> {
        match call {
            Call::Register => self.register(call, Registration::parse(&asked.body)?, asked).await,
            Call::EdgeRegister => self.register(call, Registration::parse_edge(&asked.body)?, asked).await,
            Call::Heartbeat | Call::EdgeHeartbeat => self.heartbeat(call, Heartbeat::parse(&asked.body)?, asked).await,
            Call::Unregister(worker_id) => self.unregister(call, worker_id, asked).await,
            Call::Discover(service) | Call::Find(service) => {
                if self.nobody_offers(service) {
                    self.ask_around(service).await;
                }
                self.read(call, &asked.base_url)
            }
            _ => self.read(call, &asked.base_url),
        }
    }

    async fn register(&self, call: &Call, registration: Registration, asked: &Asked) -> Result<Answer, ContractError> {
        if let Some(worker_id) = &registration.worker_id {
            self.learn_of(worker_id).await;
        }
        let mut elsewhere = if asked.hops == 0 && !asked.take_over { Elsewhere::Ask } else { Elsewhere::TakeOver };
        loop {
            let random = || self.random().u64(..);
            let registered =
                self.at_desk(|desk, now, registry| desk.register(now, registry, &registration, elsewhere, random))?;
            match registered {
                Registered::Here { say, answer } => {
                    info!(worker = answer.worker_id, kind = answer.worker_type, "an agent has registered");
                    let records = self.say_to_all(&answer.worker_id, say).await;
                    return Ok(Answer { status: 200, body: json(&answer), records });
                }
                Registered::HeldBy(holder) => match self.pass_on(holder, call, asked).await {
                    Some(answer) => return Ok(answer),
                    None => elsewhere = Elsewhere::TakeOver,
                },
            }
        }
    }

    async fn heartbeat(&self, call: &Call, heartbeat: Heartbeat, asked: &Asked) -> Result<Answer, ContractError> {
        let worker_id = &heartbeat.worker_id;
        self.learn_of(worker_id).await;
        let ok = |records| Answer { status: 200, body: json(&HeartbeatAnswer::OK), records };
        let say = if asked.take_over {
            Some(self.at_desk(|desk, now, registry| desk.adopt(now, registry, &heartbeat))?)
        } else {
            match self.at_desk(|desk, now, registry| desk.heartbeat(now, registry, &heartbeat))? {
                Heard::Ok { say } => say,
                Heard::Adopted { say } => {
                    info!(worker = %worker_id, "an agent is taken over: the coordinator that held it is not there");
                    Some(say)
                }
                Heard::HeldBy(_) if asked.hops >= HEARTBEAT_HOPS_MAX => None,
                Heard::HeldBy(holder) => match self.pass_on(holder, call, asked).await {
                    Some(answer) if answer.status == 200 => return Ok(answer),
                    _ => {
                        info!(worker = %worker_id, "an agent is taken over: the coordinator that holds it does not answer");
                        Some(self.at_desk(|desk, now, registry| desk.adopt(now, registry, &heartbeat))?)
                    }
                },
            }
        };
        Ok(ok(match say {
            Some(say) => self.say_to_all(worker_id.as_str(), say).await,
            None => Vec::new(),
        }))
    }

    async fn unregister(&self, call: &Call, worker_id: &WorkerId, asked: &Asked) -> Result<Answer, ContractError> {
        self.learn_of(worker_id).await;
        loop {
            match self.at_desk(|desk, _, registry| desk.unregister(registry, worker_id))? {
                Unregistered::Done { say, answer, also } => {
                    info!(worker = %worker_id, "an agent has unregistered");
                    let mut records = match say {
                        Some(say) => self.say_to_all(worker_id.as_str(), say).await,
                        None => Vec::new(),
                    };
                    // They ask nobody in their turn: of several holders each knows the others.
                    let last = Asked { hops: HEARTBEAT_HOPS_MAX - 1, ..asked.clone() };
                    let others = also.into_iter().filter(|_| asked.hops < HEARTBEAT_HOPS_MAX);
                    let others = others.map(|other| self.pass_on(other, call, &last));
                    let answers = futures_util::future::join_all(others).await;
                    records.extend(answers.into_iter().flatten().flat_map(|answer| answer.records));
                    records.truncate(RECORDS_MAX);
                    return Ok(Answer { status: 200, body: json(&answer), records });
                }
                Unregistered::HeldBy(holder) => {
                    if asked.hops < HEARTBEAT_HOPS_MAX
                        && let Some(answer) = self.pass_on(holder, call, asked).await
                    {
                        return Ok(answer);
                    }
                    // Whoever held it does not answer: this one takes it over, to let it go.
                    let last = Heartbeat {
                        worker_id: worker_id.clone(),
                        status: hedgerow_proto::record::GuestStatus::Healthy,
                        load_percent: None,
                    };
                    self.at_desk(|desk, now, registry| desk.adopt(now, registry, &last))?;
                }
            }
        }
    }

    /// If nobody that is known here has said anything of a worker, the neighbours may know.
    async fn learn_of(&self, worker_id: &WorkerId) {
        let known = self.mesh.replica.read(|registry| {
            worker_id.native(registry).is_some() || registry.claims_of(worker_id.as_str()).next().is_some()
        });
        let host = self.mesh.host.borrow().clone();
        let Some(host) = host.filter(|_| !known) else { return };
        for (age_ms, record) in host.find_guest(worker_id.as_str(), FIND_WITHIN).await {
            let source = Source::Passed(Duration::from_millis(age_ms));
            if let Err(refused) = self.mesh.replica.insert(record.into(), source) {
                debug!(%refused, "what a neighbour knows of a worker is not taken");
            }
        }
    }

    /// Passes a call on to the coordinator that holds the worker. `None`: it does not answer.
    async fn pass_on(&self, holder: NodeId, call: &Call, asked: &Asked) -> Option<Answer> {
        let host = self.mesh.host.borrow().clone()?;
        let (method, path) = call.line();
        let call = PeerCall {
            method: method.to_owned(),
            path,
            body: asked.body.to_vec(),
            hops: asked.hops.saturating_add(1),
            take_over: false,
        };
        let answered = timeout(PASS_ON_WITHIN, host.ask(holder, PeerRequest::Call(call))).await;
        match answered {
            Ok(Ok(PeerResponse::Called { status, body, records })) => {
                let records: Vec<Bytes> = records.into_iter().take(RECORDS_MAX).map(Bytes::from).collect();
                for record in &records {
                    if let Err(refused) = self.mesh.replica.insert(record.clone(), Source::Passed(Duration::ZERO)) {
                        debug!(%refused, "what came with a neighbour's answer is not taken");
                    }
                }
                Some(Answer { status, body: body.into(), records })
            }
            other => {
                debug!(holder = %holder.short(), ?other, "a call that was passed on has no answer");
                None
            }
        }
    }

    /// Says something of a worker, and sees to it that others hold it. Returns the records about that worker.
    async fn say_to_all(&self, worker_id: &str, body: Body) -> Vec<Bytes> {
        self.say(body);
        let me = self.mesh.replica.node();
        let records: Vec<Bytes> = self.mesh.replica.guest_record_of(&me, worker_id).into_iter().collect();
        let host = self.mesh.host.borrow().clone();
        if let Some(host) = host.filter(|_| !records.is_empty()) {
            let neighbours = host.status().borrow().coordinators.len();
            let wanted = REPLICAS_WANTED.min(neighbours);
            let holders = host.replicate(records.clone(), wanted, REPLICATE_WITHIN).await;
            debug!(worker = worker_id, holders, "other coordinators hold it too");
        }
        records
    }

    fn say(&self, body: Body) {
        if let Err(error) = self.mesh.replica.say(body) {
            warn!(%error, "what is to be said of an agent cannot be said");
        }
    }

    fn nobody_offers(&self, service: &ServiceName) -> bool {
        self.views("", |views| views.discover(service).is_err())
    }

    /// Nobody here is known to offer the service: Kademlia may know who knows better.
    async fn ask_around(&self, service: &ServiceName) {
        let host = self.mesh.host.borrow().clone();
        let Some(host) = host else { return };
        let name = self.desk().config().catalogue.resolve(service).clone();
        let mut asked = host.providers(name, ASK_AROUND_WITHIN).await;
        // And a neighbour, in case that what it knows has just not arrived.
        asked.extend(host.status().borrow().coordinators.first());
        let synchronised = asked.iter().take(REPLICAS_WANTED).map(|node| host.synchronise(*node, ASK_AROUND_WITHIN));
        futures_util::future::join_all(synchronised).await;
    }

    fn views<T>(&self, base_url: &str, look: impl FnOnce(&Views<'_>) -> T) -> T {
        let desk = self.desk();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = self.mesh.replica.now();
        self.mesh.replica.read(|registry| {
            let node_load = |node: &NodeId| self.load_of(registry, node);
            let policy = &desk.config().url_policy;
            let guest_reachable =
                |guest: &hedgerow_proto::record::Guest| url::check(&guest.details.tunnel_url, policy).is_ok();
            look(&Views {
                registry,
                desk: Some(&desk),
                catalogue: &desk.config().catalogue,
                base_url,
                now,
                unix_now_ms: u64::try_from(unix_now.as_millis()).unwrap_or(u64::MAX),
                node_load: &node_load,
                guest_reachable: &guest_reachable,
                tasks_completed: self.services.iter().map(|service| service.counts().taken).sum(),
            })
        })
    }

    /// How busy a node is, as far as its requests come by here; none if it cannot be reached.
    fn load_of(&self, registry: &Registry, node: &NodeId) -> Option<f32> {
        if *node == self.mesh.replica.node() {
            let (busy, slots) = self
                .services
                .iter()
                .fold((0, 0), |(busy, slots), service| (busy + service.in_use(), slots + service.spec.capacity));
            return Some(busy as f32 / slots.max(1) as f32);
        }
        let slots: u32 = registry.node(node)?.node()?.services.iter().map(|offer| offer.capacity).sum();
        let busy = self.mesh.workers.tunnel(node).map_or(0, |tunnel| tunnel.in_flight_count());
        (registry.reach(node) != Reach::None).then(|| busy as f32 / slots.max(1) as f32)
    }

    fn read(&self, call: &Call, base_url: &str) -> Result<Answer, ContractError> {
        let body = self.views(base_url, |views| views.answer(call))?.unwrap_or_default().into();
        Ok(Answer { status: 200, body, records: Vec::new() })
    }

    /// Does what is due at the desk, and looks after agents whose coordinator has gone, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let resumed = self.at_desk(Desk::resume);
        if resumed > 0 {
            info!(agents = resumed, "this coordinator speaks for agents from before it was restarted");
        }
        let (mut changes, mut news) = (self.mesh.replica.changes(), self.mesh.replica.guest_news());
        let (mut there, mut suspended) = (Vec::new(), self.mesh.replica.suspended());
        loop {
            let (due, _) = self.desk().poll_timeout();
            let pause = due.since(self.mesh.replica.now());
            tokio::select! {
                // While it is a worker nothing is looked after, so what is due stays due: waiting for it would be no waiting.
                () = sleep(pause), if self.mesh.roles().coordinates() => {}
                // Its record says so when it is one no longer, or one again.
                _ = changes.changed() => sleep(LOOK_AFTER).await,
                met = news.recv() => {
                    // What was missed is noticed when the desk looks round.
                    if let Ok(GuestNews { coordinator, worker_id }) = met {
                        let say =
                            self.at_desk(|desk, now, registry| desk.met_guest(now, registry, coordinator, &worker_id));
                        say.into_iter().for_each(|body| self.say(body));
                    }
                    continue;
                }
            }
            changes.mark_unchanged();
            let asleep = self.mesh.replica.suspended();
            if asleep.saturating_sub(suspended) >= SUSPEND_MIN {
                self.at_desk(|desk, now, _| desk.suspended(now));
            }
            suspended = asleep;
            if !self.mesh.roles().coordinates() {
                continue;
            }
            let say = self.at_desk(|desk, now, registry| {
                let mut say = desk.handle_timeout(now, registry);
                let here: Vec<NodeId> = coordinators_here(registry);
                if here != there {
                    say.extend(desk.adopt_orphans(now, registry));
                    there = here;
                }
                say
            });
            for body in say {
                self.say(body);
            }
        }
    }

    /// Answers the calls that neighbours pass on.
    pub async fn answer_neighbours(self: Arc<Self>, mut calls: mpsc::Receiver<IncomingCall>) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                call = calls.recv(), if running.len() < CALLS_AT_ONCE => match call {
                    Some(call) => {
                        let this = self.clone();
                        running.spawn(async move { this.answer_neighbour(call).await }.in_current_span());
                    }
                    None => return,
                },
                Some(_) = running.join_next() => {}
            }
        }
    }

    async fn answer_neighbour(&self, IncomingCall { from, call, answer }: IncomingCall) {
        let PeerCall { method, path, body, hops, take_over } = call;
        let asked = Asked { base_url: String::new(), body: body.into(), hops, take_over };
        let outcome = match hedgerow_contract::endpoint(&method, &path) {
            Some(Ok(call)) if call.writes() => self.answer(&call, &asked).await,
            Some(Err(error)) => Err(error),
            // Dropping the sender is the refusal.
            _ => return debug!(from = %from.short(), path, "a neighbour passes on what is not for neighbours"),
        };
        let answered = match outcome {
            Ok(Answer { status, body, records }) => CallAnswered {
                status,
                body: body.to_vec(),
                records: records.into_iter().map(|record| record.to_vec()).collect(),
            },
            Err(error) => {
                let id = HeaderValue::from(self.random().u64(..));
                let body = http::refused(&error, &id).into_body().to_vec();
                CallAnswered { status: error.status(), body, records: Vec::new() }
            }
        };
        // The neighbour may not wait any more.
        let _ = answer.send(answered);
    }

    /// For how many agents it speaks.
    pub fn agents(&self) -> usize {
        self.desk().len()
    }

    /// Hands the agents over to other coordinators: this node is about to leave.
    pub async fn hand_over(&self) {
        let (host, held) = (self.mesh.host.borrow().clone(), self.desk().held());
        let neighbours: Vec<NodeId> =
            host.iter().flat_map(|host| host.status().borrow().coordinators.clone()).collect();
        let (Some(host), false) = (host, neighbours.is_empty()) else { return };
        let handing = async {
            for (worker_id, to) in held.iter().zip(neighbours.iter().cycle()) {
                let body = serde_json::json!({ "worker_id": worker_id.as_str() }).to_string().into_bytes();
                let (method, path) = Call::Heartbeat.line();
                let call = PeerCall { method: method.to_owned(), path, body, hops: 1, take_over: true };
                if let Ok(PeerResponse::Called { status: 200, .. }) = host.ask(*to, PeerRequest::Call(call)).await {
                    self.desk().handed_over(worker_id);
                }
            }
        };
        // Those that are not handed over are found by others when this node's lease has run out.
        let _ = timeout(HAND_OVER_WITHIN, handing).await;
    }
}

fn coordinators_here(registry: &Registry) -> Vec<NodeId> {
    let here = registry.coordinators().filter(|view| view.presence == Presence::Here);
    here.map(|view| view.record.writer).collect()
}

fn json(value: &impl Serialize) -> Bytes {
    // Our own types of numbers, texts and lists: there is nothing to fail.
    serde_json::to_vec(value).expect("plain data always serialises").into()
}

#[cfg(test)]
mod tests;
