//! How a worker goes from one coordinator to another, so that in the end exactly one speaks for it.
//!
//! Two come to speak for one worker when its heartbeats take another way, when one of them was away for a while, or when a
//! partition heals. Neither can know whom the worker talks to now, and if both let go it would be lost, since agents never
//! register again. So the claimants are ranked by rendezvous hashing (Thaler and Ravishankar, 1998), and decide one after
//! the other:
//!
//! ```text
//!   the other's record comes in     ranked below it, and silent for 75 s: lets go at once
//!                                   else: waits, and says its own record once more, so that the other knows too
//!   + 75 s       the first          not heard of since, and another still claims the worker: lets go
//!   + 150 s      the second         the first still claims it (so it hears of it): lets go; else keeps it
//! ```
//!
//! That leaves very little: several failures at once can make two decide in the same moment. So the record by which a
//! coordinator lets go keeps what was known of the worker, and whichever coordinator hears of it next takes it up from there.
//!
//! Workers whose coordinator is no longer there are orphans: the first in the rank of those who are takes each over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::{Body, Kind};
use hedgerow_proto::registry::{GuestView, KeyHash, Presence, Registry};

use super::holding::Holding;
use super::{Desk, preferred};
use crate::guest;
use crate::worker_id::WorkerId;

/// How long a worker may be silent while two coordinators speak for it before that means that it talks to the other: two
/// heartbeats and a half, which come every 30 s.
pub const HANDOVER_PATIENCE: Duration = Duration::from_secs(75);

/// Whoever is ranked above says its record when it learns of the others, and its time begins then; so the time of those
/// below begins anew with each such record. Only for so long, since a record may also come because a load goes up and down.
const WAITS_ANEW_FOR: Duration = HANDOVER_PATIENCE.saturating_mul(4);

/// Other coordinators speak for a worker too.
#[derive(Debug, Clone)]
pub(super) struct Contest {
    /// Since when that is known.
    opened_at: Time,
    /// When to look who still does. Once that has been done, and this one keeps the worker, there is nothing left to do: the
    /// others let go in their turn.
    pub(super) decide_at: Option<Time>,
    /// Who they are: with another one it begins again, since that one's times began later.
    rivals: BTreeSet<NodeId>,
    /// When it was opened for the first time with these.
    began_at: Time,
}

impl Contest {
    pub(super) fn begin_again(&mut self, now: Time) {
        self.decide_at = self.decide_at.map(|decide_at| now + decide_at.since(self.opened_at));
        self.opened_at = now;
    }
}

impl Desk {
    /// Another coordinator's record about this worker has come in and is news, whatever it says. Returns what is to be signed
    /// and said. (A record that is missed here is noticed when [`Desk::handle_timeout`] looks round.)
    pub fn met_guest(&mut self, now: Time, registry: &Registry, coordinator: NodeId, worker_id: &str) -> Option<Body> {
        let (worker_id, holding) = self.held.get_key_value(worker_id)?;
        let worker_id = worker_id.clone();
        let rivals: BTreeSet<NodeId> = self.rivals(registry, &worker_id).collect();
        let Some(contest) = &holding.contest else {
            return if rivals.contains(&coordinator) { self.meet_rival(now, registry, worker_id) } else { None };
        };
        if !rivals.is_subset(&contest.rivals) {
            // Another one. Those who know of the others only wait for it too.
            let holding = self.held.remove(&worker_id)?;
            return Some(self.hold(now, registry, worker_id, holding));
        }
        let above = rank(&worker_id, coordinator) > rank(&worker_id, self.me);
        let again = match () {
            () if rivals.is_empty() => None,
            () if above && rivals.contains(&coordinator) && now.since(contest.began_at) < WAITS_ANEW_FOR => {
                let began_at = contest.began_at;
                self.contest(now, registry, &worker_id).map(|contest| Contest { began_at, ..contest })
            }
            // Those that have let go are forgotten: if one comes again, it is another one. Whoever was below them moves up.
            () => {
                let sooner = contest.opened_at + self.turn(registry, &worker_id);
                let decide_at = contest.decide_at.map(|decide_at| decide_at.min(sooner));
                Some(Contest { rivals, decide_at, ..contest.clone() })
            }
        };
        self.held.get_mut(&worker_id)?.contest = again;
        None
    }

    /// Others speak for a worker that is held here, and it is not known yet: either this desk lets go at once, or it says its
    /// own record once more and waits.
    fn meet_rival(&mut self, now: Time, registry: &Registry, worker_id: WorkerId) -> Option<Body> {
        let holding = self.held.get(&worker_id)?;
        let silent = holding.heard_at.is_none_or(|heard_at| now.since(heard_at) >= HANDOVER_PATIENCE);
        if silent && self.better(registry, &worker_id) > 0 {
            return self.let_go(&worker_id);
        }
        let holding = self.held.remove(&worker_id)?;
        Some(self.hold(now, registry, worker_id, holding))
    }

    /// Notices, without having been told, that others speak for workers that are held here: a coordinator that was away has
    /// come back, and has nothing new to say.
    pub(super) fn meet_rivals(&mut self, now: Time, registry: &Registry) -> Vec<Body> {
        let there =
            registry.guest_claims().filter(|view| view.presence != Presence::Absent && view.coordinator != self.me);
        let contested: BTreeSet<&str> = there.map(|view| view.guest.worker_id.as_str()).collect();
        let mut unknown = Vec::new();
        for (worker_id, holding) in &mut self.held {
            match contested.contains(worker_id.as_str()) {
                true if holding.contest.is_none() => unknown.push(worker_id.clone()),
                true => {}
                false => holding.contest = None,
            }
        }
        unknown.into_iter().filter_map(|worker_id| self.meet_rival(now, registry, worker_id)).collect()
    }

    /// Takes over the workers whose coordinator is no longer there, and which fall to this one. Returns what is to be signed
    /// and said. To be called when a coordinator's lease has run out; [`Desk::handle_timeout`] does it too, now and then.
    /// While this desk is full they wait for room, or for a heartbeat at another.
    pub fn adopt_orphans(&mut self, now: Time, registry: &Registry) -> Vec<Body> {
        let mut claims: BTreeMap<&str, GuestView<'_>> = BTreeMap::new();
        // This coordinator is there, whatever its own registry makes of it.
        let order = |view: &GuestView<'_>| (view.coordinator == self.me, preferred(view));
        for view in registry.guest_claims() {
            let best = claims.entry(view.guest.worker_id.as_str()).or_insert(view);
            if order(&view) > order(best) {
                *best = view;
            }
        }
        let orphans =
            claims.into_values().filter(|view| view.presence == Presence::Absent && view.coordinator != self.me);
        let orphans: Vec<GuestView<'_>> = orphans.collect();
        let there = registry.coordinators().filter(|it| it.presence == Presence::Here);
        let there: Vec<NodeId> = there.map(|it| it.record.writer).filter(|it| *it != self.me).collect();
        let mut say = Vec::new();
        for view in orphans {
            // A record that somebody else's program made may have an id that none of ours would take.
            let Ok(worker_id) = view.guest.worker_id.parse::<WorkerId>() else { continue };
            let mine = rank(&worker_id, self.me);
            let first = there.iter().all(|other| rank(&worker_id, *other) < mine);
            if first && !self.held.contains_key(&worker_id) && self.check_room(registry).is_ok() {
                let holding = Holding::taken(now, view.guest.details.clone());
                say.push(self.hold(now, registry, worker_id, holding));
            }
        }
        say
    }

    /// Holds again what this coordinator itself said before it was restarted: to be called once, when its registry has been
    /// read from the disk. Nothing needs to be said again. Returns how many there are.
    pub fn resume(&mut self, now: Time, registry: &Registry) -> usize {
        let before = self.held.len();
        for guest in registry.guests_of(&self.me) {
            let Ok(worker_id) = guest.worker_id.parse::<WorkerId>() else { continue };
            if worker_id.native(registry).is_none() {
                self.held.entry(worker_id).or_insert_with(|| Holding::taken(now, guest.details.clone()));
            }
        }
        self.held.len() - before
    }

    /// Whether it is time to let go, and if so, what to say.
    pub(super) fn decide(&mut self, now: Time, registry: &Registry, worker_id: &WorkerId) -> Option<Body> {
        let holding = self.held.get(worker_id)?;
        let contest = holding.contest.as_ref().filter(|contest| contest.decide_at.is_some_and(|at| at <= now))?;
        let heard_since = holding.heard_at.is_some_and(|heard_at| heard_at > contest.opened_at);
        // Whoever is ranked above has decided by now, and stays only if it hears of the worker.
        let loses = self.better(registry, worker_id) > 0;
        if loses || (!heard_since && self.rivals(registry, worker_id).next().is_some()) {
            return self.let_go(worker_id);
        }
        let rivals: BTreeSet<NodeId> = self.rivals(registry, worker_id).collect();
        let holding = self.held.get_mut(worker_id)?;
        let settled = holding.contest.take().filter(|_| !rivals.is_empty());
        holding.contest = settled.map(|contest| Contest { decide_at: None, rivals, ..contest });
        None
    }

    /// Lets another have it. In case nobody has it after all, what is known of it stays in the tombstone.
    fn let_go(&mut self, worker_id: &WorkerId) -> Option<Body> {
        let holding = self.held.remove(worker_id)?;
        Some(guest::handed_over(worker_id, holding.details))
    }

    /// The contest that begins now, if others speak for a worker too.
    pub(super) fn contest(&self, now: Time, registry: &Registry, worker_id: &WorkerId) -> Option<Contest> {
        let rivals: BTreeSet<NodeId> = self.rivals(registry, worker_id).collect();
        let decide_at = Some(now + self.turn(registry, worker_id));
        (!rivals.is_empty()).then_some(Contest { opened_at: now, decide_at, rivals, began_at: now })
    }

    /// The other coordinators that speak for a worker, and may be there.
    pub(super) fn rivals<'a>(
        &self,
        registry: &'a Registry,
        worker_id: &WorkerId,
    ) -> impl Iterator<Item = NodeId> + use<'a> {
        let me = self.me;
        let claims = registry.claims_of(worker_id.as_str());
        claims
            .filter(move |view| view.coordinator != me && view.presence != Presence::Absent)
            .map(|view| view.coordinator)
    }

    /// How many of them are ranked above this one.
    fn better(&self, registry: &Registry, worker_id: &WorkerId) -> usize {
        let mine = rank(worker_id, self.me);
        self.rivals(registry, worker_id).filter(|rival| rank(worker_id, *rival) > mine).count()
    }

    /// How long after it has learned of the others this one decides.
    fn turn(&self, registry: &Registry, worker_id: &WorkerId) -> Duration {
        let place = u32::try_from(self.better(registry, worker_id)).unwrap_or(u32::MAX);
        HANDOVER_PATIENCE.saturating_mul(place.saturating_add(1))
    }
}

/// The place of a coordinator among those who may speak for a worker: the highest is the first. It is the hash of the key
/// that its record about the worker has, which all compute alike, and which spreads the workers evenly.
pub(super) fn rank(worker_id: &WorkerId, coordinator: NodeId) -> KeyHash {
    KeyHash::of(&coordinator, Kind::GUEST, worker_id.as_str().as_bytes())
}
