//! A coordinator's desk: the agents without a key of ours for which it speaks, from their registration to their end.
//!
//! A state machine: what it is told of comes with the time and the registry, and what it returns is what the coordinator
//! has to sign and say ([`Body::Guest`]) and to answer. Heartbeats are noted here and cost the mesh nothing: a record is
//! written anew only when the status changes, or when the load has moved by much.
//!
//! ```text
//!                register, adopt                    heartbeat
//!   (not held) ──────────────────▶ healthy ◀──────────────────────▶ degraded
//!        ▲                            │     silent for 300 s, or says so  │
//!        │                            │                                   │
//!        └──── says Gone ◀────────────┴───────────────────────────────────┘
//!              unregister; silent for 600 s; another coordinator has it (`handover`)
//! ```
//!
//! **A coordinator that speaks for agents must not say Leave when it stops** ([`Desk::is_empty`]): that would be the
//! tombstone of their records too, and agents never register again by themselves. It just stops; another adopts them when
//! its lease has run out, or it holds them again after its restart ([`Desk::resume`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::{Body, GuestStatus, WorkerType};
use hedgerow_proto::registry::{GuestView, Presence, Registry};

use crate::assign::{Coverage, assign};
use crate::catalogue::{Catalogue, ServiceConfig};
use crate::error::ContractError;
use crate::guest;
use crate::request::{Heartbeat, Registration, Via};
use crate::url::{self, UrlPolicy};
use crate::worker_id::WorkerId;

mod answer;
mod handover;
mod holding;

pub use answer::{HeartbeatAnswer, RegisterAnswer, UnregisterAnswer};
pub use handover::HANDOVER_PATIENCE;
use holding::Holding;
pub use holding::{LOAD_MOVED_POINTS, LOAD_SAID_EVERY, Seen};

/// What a desk goes by.
#[derive(Debug, Clone)]
pub struct DeskConfig {
    /// The services that it assigns.
    pub catalogue: Arc<Catalogue>,
    /// Which URLs may become routes, for the answer to a registration. Each entry has the last word.
    pub url_policy: UrlPolicy,
    /// A worker that has been silent for this long is degraded (`HEARTBEAT_TIMEOUT_SECONDS`).
    pub heartbeat_timeout: Duration,
    /// A worker that has been silent for this long is gone (`WORKER_TIMEOUT_SECONDS`).
    pub worker_timeout: Duration,
}

impl Default for DeskConfig {
    /// The timers of the contract: models take 5 to 10 minutes to load.
    fn default() -> Self {
        Self {
            catalogue: Arc::new(Catalogue::default()),
            url_policy: UrlPolicy::default(),
            heartbeat_timeout: Duration::from_secs(300),
            worker_timeout: Duration::from_secs(600),
        }
    }
}

/// What to do about a worker that another coordinator holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// Say who, so that the call can be passed on to that one.
    Ask,
    /// Take it over: that one was asked and does not answer, or it has passed the call on itself.
    TakeOver,
}

/// What a registration led to.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once for a call, taken apart at once, never kept")]
pub enum Registered {
    /// This desk speaks for the worker.
    Here {
        /// To be signed and said.
        say: Body,
        /// To be answered, with 200.
        answer: RegisterAnswer,
    },
    /// Another coordinator, which is there, holds it: the call is for that one, so that there are not two records of which
    /// one is out of date. If it does not answer, register with [`Elsewhere::TakeOver`].
    HeldBy(NodeId),
}

/// What a heartbeat led to. Unless another holds the worker, the answer is [`HeartbeatAnswer`] with 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It is noted.
    Ok {
        /// To be signed and said, if there is news.
        say: Option<Body>,
    },
    /// Another coordinator, which is there, holds it: pass the heartbeat on to that one, and [`Desk::adopt`] if it does not
    /// answer. That one may know better and pass it on once more. A heartbeat that has been passed on
    /// [`HEARTBEAT_HOPS_MAX`] times is answered with ok and left alone: the worker is about to change hands, and the next
    /// heartbeat finds it. Adopting it then would only make one more who holds it.
    HeldBy(NodeId),
    /// Nobody who is there held it; now this desk does.
    Adopted {
        /// To be signed and said.
        say: Body,
    },
}

/// What an unregistration led to.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once for a call, taken apart at once, never kept")]
pub enum Unregistered {
    /// It is done.
    Done {
        /// To be signed and said: nothing if nobody who is there spoke for the worker, so that it lapses by itself.
        say: Option<Body>,
        /// To be answered, with 200.
        answer: UnregisterAnswer,
        /// Others who are there and speak for it too, since it has just changed hands: the call is for them as well. Who is
        /// not reached keeps the worker until it times out there.
        also: Vec<NodeId>,
    },
    /// Another coordinator, which is there, holds it: the call is for that one. If it does not answer, nothing was done, and
    /// the worker times out there.
    HeldBy(NodeId),
}

/// Why a desk wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A worker has been silent for so long that it is degraded.
    HeartbeatOverdue,
    /// A worker has been silent for so long that it is gone.
    WorkerTimesOut,
    /// Two coordinators speak for one worker: it is time to see whether this is the one that lets go.
    HandoverDecided,
    /// It looks for workers that nobody holds, and for others who hold its own.
    LookRound,
}

/// How often a heartbeat is passed on at most.
pub const HEARTBEAT_HOPS_MAX: u8 = 2;

/// How often a desk looks at what others say of all workers: about as often as heartbeats come.
const LOOK_ROUND_EVERY: Duration = Duration::from_secs(30);

/// The desk.
#[derive(Debug, Clone)]
pub struct Desk {
    me: NodeId,
    config: DeskConfig,
    held: BTreeMap<WorkerId, Holding>,
    look_round_at: Time,
}

impl Desk {
    /// The desk of this coordinator, with nobody at it. It first looks round after a while: a registry that has just been
    /// read from the disk does not know yet who is there.
    pub fn new(now: Time, me: NodeId, config: DeskConfig) -> Self {
        Self { me, config, held: BTreeMap::new(), look_round_at: now + LOOK_ROUND_EVERY }
    }

    /// What it goes by.
    pub fn config(&self) -> &DeskConfig {
        &self.config
    }

    /// How many workers it speaks for.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether it speaks for nobody.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The workers for which it speaks.
    pub fn held(&self) -> Vec<WorkerId> {
        self.held.keys().cloned().collect()
    }

    /// Another coordinator has said that it speaks for a worker from now on: this one is about to leave, and that covers its
    /// own record.
    pub fn handed_over(&mut self, worker_id: &WorkerId) {
        self.held.remove(worker_id);
    }

    /// What it has seen of a worker for which it speaks.
    pub fn seen(&self, worker_id: &str) -> Option<Seen> {
        self.held.get(worker_id).map(Holding::seen)
    }

    /// A worker or an edge registers. One that has no id gets one of its type and this random number: 64 bits, so that two
    /// do not meet. One that is held here is replaced, whatever it said before.
    pub fn register(
        &mut self,
        now: Time,
        registry: &Registry,
        registration: &Registration,
        elsewhere: Elsewhere,
        random: impl FnOnce() -> u64,
    ) -> Result<Registered, ContractError> {
        let kind = registration.kind();
        let worker_id = match &registration.worker_id {
            Some(worker_id) => worker_id.clone(),
            None => {
                let made: Result<WorkerId, _> = format!("{}-{:016x}", kind.as_str(), random()).parse();
                made.map_err(|error| ContractError::field("worker_id", error.to_string()))?
            }
        };
        if worker_id.native(registry).is_some() {
            return Err(ContractError::NativeNode { worker_id: worker_id.to_string() });
        }
        if !self.held.contains_key(&worker_id) {
            if elsewhere == Elsewhere::Ask
                && let Some(view) = self.held_elsewhere(registry, &worker_id)
            {
                return Ok(Registered::HeldBy(view.coordinator));
            }
            self.check_room(registry)?;
        }
        let assigned = self.assigned(registry, registration, &worker_id);
        let mut services = registration.services.clone();
        services.extend(assigned.iter().flatten().map(|service| service.name.clone()));
        services.sort_unstable();
        services.dedup();
        let details = guest::details(&worker_id, registration, services, registry.limits())?;
        let coordinators = edges_and_coordinators(registry, &self.me, &worker_id, kind);
        let routable = url::check(&registration.tunnel_url, &self.config.url_policy).map(|_| ());
        let answer = RegisterAnswer::new(&worker_id, registration, assigned, coordinators, routable);
        let say = self.hold(now, registry, worker_id, Holding::heard(now, details));
        Ok(Registered::Here { say, answer })
    }

    /// A worker or an edge shows that it is alive.
    pub fn heartbeat(&mut self, now: Time, registry: &Registry, heartbeat: &Heartbeat) -> Result<Heard, ContractError> {
        let worker_id = &heartbeat.worker_id;
        if let Some(holding) = self.held.get_mut(worker_id) {
            let news = holding.hear(now, heartbeat);
            return Ok(Heard::Ok { say: news.then(|| holding.say(now, worker_id)) });
        }
        if worker_id.native(registry).is_some() {
            // Its tunnel shows that it is alive, a thousand times quicker.
            return Ok(Heard::Ok { say: None });
        }
        match self.held_elsewhere(registry, worker_id) {
            Some(view) => Ok(Heard::HeldBy(view.coordinator)),
            None => self.adopt(now, registry, heartbeat).map(|say| Heard::Adopted { say }),
        }
    }

    /// Takes a worker over by its heartbeat, whoever holds it: with what is known of it from another coordinator. Returns
    /// what is to be signed and said.
    pub fn adopt(&mut self, now: Time, registry: &Registry, heartbeat: &Heartbeat) -> Result<Body, ContractError> {
        let worker_id = &heartbeat.worker_id;
        if let Some(holding) = self.held.get_mut(worker_id) {
            holding.hear(now, heartbeat);
            return Ok(holding.say(now, worker_id));
        }
        let claim = registry.claims_of(worker_id.as_str()).max_by_key(preferred).map(|view| view.guest.details.clone());
        let details = claim.or_else(|| guest::left_behind(registry, worker_id));
        let details = details.ok_or_else(|| ContractError::UnknownWorker { worker_id: worker_id.to_string() })?;
        self.check_room(registry)?;
        let mut holding = Holding::heard(now, details);
        holding.hear(now, heartbeat);
        Ok(self.hold(now, registry, worker_id.clone(), holding))
    }

    /// A worker says that it goes.
    pub fn unregister(&mut self, registry: &Registry, worker_id: &WorkerId) -> Result<Unregistered, ContractError> {
        if self.held.remove(worker_id).is_some() {
            let (say, answer) = (Some(guest::gone(worker_id)), UnregisterAnswer::new(worker_id));
            return Ok(Unregistered::Done { say, answer, also: self.rivals(registry, worker_id).collect() });
        }
        if worker_id.native(registry).is_some() {
            return Err(ContractError::NativeNode { worker_id: worker_id.to_string() });
        }
        if let Some(view) = self.held_elsewhere(registry, worker_id) {
            return Ok(Unregistered::HeldBy(view.coordinator));
        }
        let mut claims = registry.claims_of(worker_id.as_str());
        let own = claims.any(|view| view.coordinator == self.me);
        if !own && registry.claims_of(worker_id.as_str()).next().is_none() {
            return Err(ContractError::UnknownWorker { worker_id: worker_id.to_string() });
        }
        let say = own.then(|| guest::gone(worker_id));
        Ok(Unregistered::Done { say, answer: UnregisterAnswer::new(worker_id), also: Vec::new() })
    }

    /// When to call [`Desk::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> (Time, Wake) {
        let look_round = (self.look_round_at, Wake::LookRound);
        self.held.values().map(|holding| holding.next_wake(&self.config)).fold(look_round, Ord::min)
    }

    /// Does what is due. Returns what is to be signed and said.
    pub fn handle_timeout(&mut self, now: Time, registry: &Registry) -> Vec<Body> {
        let due = |holding: &Holding| holding.next_wake(&self.config).0 <= now;
        let due: Vec<WorkerId> = self.held.iter().filter(|(_, it)| due(it)).map(|(id, _)| id.clone()).collect();
        let mut say: Vec<Body> = due.iter().flat_map(|worker_id| self.timed_out(now, registry, worker_id)).collect();
        if self.look_round_at <= now {
            self.look_round_at = now + LOOK_ROUND_EVERY;
            say.extend(self.meet_rivals(now, registry));
            say.extend(self.adopt_orphans(now, registry));
        }
        say
    }

    fn timed_out(&mut self, now: Time, registry: &Registry, worker_id: &WorkerId) -> Option<Body> {
        let holding = self.held.get_mut(worker_id)?;
        if holding.silent_for(now) >= self.config.worker_timeout {
            self.held.remove(worker_id);
            return Some(guest::gone(worker_id));
        }
        let overdue = holding.silent_for(now) >= self.config.heartbeat_timeout;
        let news = (overdue && holding.set_status(GuestStatus::Degraded)).then(|| holding.say(now, worker_id));
        self.decide(now, registry, worker_id).or(news)
    }

    /// The machine was suspended: nobody was silent for it. To be called before anything else of that moment.
    pub fn suspended(&mut self, now: Time) {
        self.look_round_at = now + LOOK_ROUND_EVERY;
        for holding in self.held.values_mut() {
            holding.spare(now);
        }
    }

    fn check_room(&self, registry: &Registry) -> Result<(), ContractError> {
        let max = registry.limits().guests_per_sponsor_max;
        if self.held.len() < max { Ok(()) } else { Err(ContractError::Full { max }) }
    }

    /// What a worker is asked to run. Nothing for who registers as an edge by the call that has no answer for it.
    fn assigned(
        &self,
        registry: &Registry,
        registration: &Registration,
        worker_id: &WorkerId,
    ) -> Option<Vec<ServiceConfig>> {
        (registration.via == Via::Worker).then(|| {
            let coverage = Coverage::of(registry, worker_id);
            let assigned = assign(&self.config.catalogue, registration.kind(), &coverage);
            assigned.into_iter().map(ServiceConfig::from).collect()
        })
    }

    /// The word of the coordinator that holds a worker, if it is another one and may be there.
    fn held_elsewhere<'a>(&self, registry: &'a Registry, worker_id: &WorkerId) -> Option<GuestView<'a>> {
        let me = self.me;
        let others = registry.claims_of(worker_id.as_str()).filter(move |view| view.coordinator != me);
        others.filter(|view| view.presence != Presence::Absent).max_by_key(preferred)
    }

    fn hold(&mut self, now: Time, registry: &Registry, worker_id: WorkerId, mut holding: Holding) -> Body {
        holding.contest = self.contest(now, registry, &worker_id);
        let say = holding.say(now, &worker_id);
        self.held.insert(worker_id, holding);
        say
    }
}

/// Of several claims to one guest the one that [`Registry::guest`] shows.
fn preferred(view: &GuestView<'_>) -> (Presence, std::cmp::Reverse<NodeId>) {
    (view.presence, std::cmp::Reverse(view.coordinator))
}

/// The coordinators that are there, and the agents that were told that they are ones too (edges).
fn edges_and_coordinators(registry: &Registry, me: &NodeId, newcomer: &WorkerId, kind: WorkerType) -> usize {
    let there = registry.coordinators().filter(|it| it.presence == Presence::Here && it.record.writer != *me).count();
    let mut edges: Vec<&str> = registry
        .guests()
        .filter(|view| view.guest.details.worker_type == WorkerType::Edge.as_str())
        .map(|view| view.guest.worker_id.as_str())
        .chain((kind == WorkerType::Edge).then_some(newcomer.as_str()))
        .collect();
    edges.sort_unstable();
    edges.dedup();
    // This one is there, whether or not it has said so yet.
    there + 1 + edges.len()
}

#[cfg(test)]
pub(crate) mod tests;
