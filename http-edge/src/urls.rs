//! Routes to URLs: agents that have a public address of their own, such as one of a Cloudflare tunnel, are asked there.
//!
//! ```text
//! registry ─▶ guests ─▶ may this URL be one? ─▶ is there room? ─▶ route: tunnel in memory ─▶ probe, dial, copy bytes
//!                       (contract::url)        (here)            (route)                    (probe, dial, slots)
//!                             └──── no ────────────┴──── no ──────────────────────────────────┴── no ──▶ why not, for people
//! ```
//!
//! Who registers a URL is a stranger, and the entry stands where the stranger does not: what guards against being sent to
//! places that are none of the stranger's business is in [`dial`], and nothing else in this program dials.

mod dial;
mod probe;
mod route;
mod slots;
mod why_not;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_contract::url::{self, UrlPolicy, UrlTarget};
use hedgerow_proto::frame::close;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::registry::{GuestView, Registry};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::debug;

pub(crate) use dial::Dialler;
pub(crate) use route::Way;
pub(crate) use slots::SLOTS;
pub(crate) use why_not::WhyNot;

use crate::federation::Federation;
use why_not::UrlRefused;

/// Routes in all: each is probed twice a minute, and has up to [`SLOTS`] connections.
const ROUTES_MAX: usize = 1024;
/// Routes to guests of one coordinator: one that vouches for strangers in masses does not take everybody's room.
const ROUTES_PER_COORDINATOR_MAX: usize = 256;
/// Routes to one host: whoever registers somebody else's host many times does not have us knock there as often.
const ROUTES_PER_HOST_MAX: usize = 4;
/// Probes at once. With every guest as slow as it may be, each still has its turn within three minutes.
const PROBES_MAX: usize = 64;
/// How long changes are gathered before they are looked at.
const SETTLE: Duration = Duration::from_millis(20);

/// What a coordinator says of a guest, as far as its route is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) coordinator: NodeId,
    pub(crate) url: String,
}

/// By the guests' own ids.
pub(crate) type ByGuest<T> = BTreeMap<String, T>;

/// Whether each guest may be asked, and how: what the snapshot of routing is made from.
pub(crate) type Ways = ByGuest<Result<Way, WhyNot>>;

/// The guests that the registry shows, each once: if several coordinators speak for one, the one counts that
/// [`Registry::guest`] would name.
pub(crate) fn guests(registry: &Registry) -> BTreeMap<&str, GuestView<'_>> {
    let mut guests: BTreeMap<&str, GuestView<'_>> = BTreeMap::new();
    for view in registry.guests() {
        // They come in order of their coordinators' ids, and the first of the most present ones is it.
        let held = guests.entry(&view.guest.worker_id).or_insert(view);
        if view.presence > held.presence {
            *held = view;
        }
    }
    guests
}

/// Reads what a guest has registered, and says whether it may be asked there: as coordinators do, and that a certificate
/// can be for its host.
pub(crate) fn check(tunnel_url: &str, policy: &UrlPolicy) -> Result<UrlTarget, UrlRefused> {
    let url = url::check(tunnel_url, policy)?;
    dial::server_name(&url)?;
    Ok(url)
}

/// Keeps a route for each guest that may have one, for as long as the entry lives.
pub(crate) async fn keep(federation: &Arc<Federation>, dialler: &Arc<Dialler>, seed: u64) -> Infallible {
    let mut keeper = Keeper {
        federation: federation.clone(),
        dialler: dialler.clone(),
        probes: Arc::new(Semaphore::new(PROBES_MAX)),
        random: fastrand::Rng::with_seed(seed),
        known: BTreeMap::new(),
    };
    loop {
        keeper.follow(federation.guests());
        sleep(SETTLE).await;
        federation.guests_changed().await;
    }
}

struct Keeper {
    federation: Arc<Federation>,
    dialler: Arc<Dialler>,
    probes: Arc<Semaphore>,
    random: fastrand::Rng,
    known: ByGuest<Known>,
}

/// A guest that has been looked at.
struct Known {
    wanted: Wanted,
    outcome: Outcome,
}

enum Outcome {
    Refused(WhyNot),
    Open { host: String, _running: Running },
}

/// A route that runs while this lives. What goes down it ends with it.
struct Running {
    way: Way,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.way.tunnel.close(close::GOING, "the guest has no route any more");
        self.task.abort();
    }
}

impl Keeper {
    /// Closes the routes of guests that have gone or moved, and opens those of new ones.
    fn follow(&mut self, guests: ByGuest<Wanted>) {
        let mut changes: ByGuest<Option<Result<Way, WhyNot>>> = BTreeMap::new();
        let mut waiting = BTreeSet::new();
        self.known.retain(|worker_id, known| {
            // Who speaks for it may have changed: that is no reason to break what runs.
            let same = guests.get(worker_id).filter(|wanted| wanted.url == known.wanted.url);
            if let Some(wanted) = same {
                known.wanted.coordinator = wanted.coordinator;
            }
            let is_same = same.is_some();
            // Where there was no room there may be some by now.
            let waits = is_same && matches!(known.outcome, Outcome::Refused(WhyNot::NoRoom));
            if waits {
                waiting.insert(worker_id.clone());
            } else if !is_same {
                changes.insert(worker_id.clone(), None);
            }
            is_same && !waits
        });
        let mut room = Room::default();
        for known in self.known.values() {
            if let Outcome::Open { host, .. } = &known.outcome {
                room.take(known.wanted.coordinator, host);
            }
        }
        for (worker_id, wanted) in guests {
            if self.known.contains_key(&worker_id) {
                continue;
            }
            let outcome = match self.open(&worker_id, &wanted, &mut room) {
                Ok(open) => open,
                Err(why) => Outcome::Refused(why),
            };
            let why = match &outcome {
                Outcome::Refused(why) => *why,
                Outcome::Open { .. } => WhyNot::NotProbed,
            };
            if why != WhyNot::NoRoom || !waiting.contains(&worker_id) {
                changes.insert(worker_id.clone(), Some(Err(why)));
            }
            self.known.insert(worker_id, Known { wanted, outcome });
        }
        if !changes.is_empty() {
            self.federation.ways_changed(changes);
        }
    }

    fn open(&mut self, worker_id: &str, wanted: &Wanted, room: &mut Room) -> Result<Outcome, WhyNot> {
        let policy = self.dialler.policy();
        let url = check(&wanted.url, policy)?;
        // Who tries it out has many agents on one machine.
        let host = if policy.allow_private { url.authority() } else { url.host.clone() };
        if !room.has(wanted.coordinator, &host) {
            return Err(WhyNot::NoRoom);
        }
        let opened = route::open(worker_id, url, self.dialler.clone());
        let (way, route) = opened.map_err(|_| UrlRefused::Malformed)?;
        room.take(wanted.coordinator, &host);
        let say = {
            let (federation, worker_id, way) = (self.federation.clone(), worker_id.to_owned(), way.clone());
            move |outcome: Result<(), WhyNot>| {
                debug!(worker_id, ?outcome, "a guest was probed");
                federation.way_probed(&worker_id, outcome.map(|()| way.clone()));
            }
        };
        let task = tokio::spawn(route.run(self.probes.clone(), self.random.u64(..), say)).abort_handle();
        Ok(Outcome::Open { host, _running: Running { way, task } })
    }
}

/// How many routes there are already.
#[derive(Debug, Default)]
struct Room {
    all: usize,
    by_coordinator: HashMap<NodeId, usize>,
    by_host: HashMap<String, usize>,
}

impl Room {
    fn has(&self, coordinator: NodeId, host: &str) -> bool {
        let of_coordinator = self.by_coordinator.get(&coordinator).copied().unwrap_or(0);
        let of_host = self.by_host.get(host).copied().unwrap_or(0);
        self.all < ROUTES_MAX && of_coordinator < ROUTES_PER_COORDINATOR_MAX && of_host < ROUTES_PER_HOST_MAX
    }

    fn take(&mut self, coordinator: NodeId, host: &str) {
        self.all += 1;
        *self.by_coordinator.entry(coordinator).or_default() += 1;
        *self.by_host.entry(host.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::clock::Time;
    use hedgerow_proto::id::FederationId;
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::limits::Limits;
    use hedgerow_proto::record::{Body, Guest, GuestDetails, GuestStatus, Signed, Version};
    use hedgerow_proto::registry::Source;

    use super::*;

    const FEDERATION: FederationId = FederationId([1; 32]);

    fn says(registry: &mut Registry, key: &SecretKey, seq: u64, worker_id: &str) {
        let details = GuestDetails {
            worker_type: "cpu".into(),
            tunnel_url: "https://a.example".into(),
            location: String::new(),
            services: vec![],
            capabilities: String::new(),
            status: GuestStatus::Healthy,
            load_percent: 0,
        };
        let body = Body::Guest(Guest { worker_id: worker_id.into(), details });
        let signed = Signed::sign(key, FEDERATION, 1, Version { epoch: 1, seq }, &body).unwrap();
        registry.insert(Time::ORIGIN, signed, Source::Direct(None)).unwrap();
    }

    #[test]
    fn of_several_who_speak_for_a_guest_the_one_counts_that_everybody_names() {
        let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
        let mut keys = [1, 2, 3].map(|seed| SecretKey::from_seed([seed; 32]));
        keys.sort_by_key(|key| key.id());
        for key in &keys[1..] {
            says(&mut registry, key, 1, "both");
            registry.meet(Time::ORIGIN, key.id());
        }
        says(&mut registry, &keys[2], 2, "one");
        // The smallest id, and not there.
        says(&mut registry, &keys[0], 1, "both");
        let guests = guests(&registry);
        assert_eq!(guests.keys().copied().collect::<Vec<_>>(), ["both", "one"]);
        for (worker_id, coordinator) in [("both", &keys[1]), ("one", &keys[2])] {
            assert_eq!(guests[worker_id].coordinator, coordinator.id());
            assert_eq!(registry.guest(worker_id).unwrap().coordinator, coordinator.id());
        }
    }

    #[test]
    fn routes_are_bounded_by_host_by_coordinator_and_in_all() {
        let (mut room, coordinator) = (Room::default(), |n: usize| NodeId([n as u8; 32]));
        for _ in 0..ROUTES_PER_HOST_MAX {
            assert!(room.has(coordinator(1), "a"));
            room.take(coordinator(1), "a");
        }
        assert!(!room.has(coordinator(2), "a") && room.has(coordinator(1), "b"));
        for n in room.all..ROUTES_PER_COORDINATOR_MAX {
            room.take(coordinator(1), &format!("host-{n}"));
        }
        assert!(!room.has(coordinator(1), "b") && room.has(coordinator(2), "b"));
        for n in room.all..ROUTES_MAX {
            room.take(coordinator(n % 200 + 2), &format!("host-{n}"));
        }
        assert!(!room.has(coordinator(250), "b"));
    }
}
