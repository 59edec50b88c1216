//! Who of the guests has a route: one for each that may, while there is room, for as long as it stays where it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_contract::url::{self, NotRoutable, UrlPolicy, UrlTarget};
use hedgerow_proto::frame::close;
use hedgerow_proto::id::NodeId;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::debug;

use crate::dial::{self, Dialler};
use crate::route::{self, Way};
use crate::why_not::WhyNot;
use crate::{ByGuest, Wanted};

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

/// Reads what a guest has registered, and says whether it may be asked there: as coordinators do, and that a certificate
/// can be for its host.
pub fn check(tunnel_url: &str, policy: &UrlPolicy) -> Result<UrlTarget, NotRoutable> {
    let url = url::check(tunnel_url, policy)?;
    dial::server_name(&url)?;
    Ok(url)
}

/// Whoever keeps the registry: tells of the guests, and hears which of them can be asked.
pub trait Guests: Send + Sync + 'static {
    /// The guests that are to have a route if they may, as they are now.
    fn guests(&self) -> ByGuest<Wanted>;

    /// Ready when they may have changed since it was asked last.
    fn guests_changed(&self) -> impl Future<Output = ()> + Send;

    /// These can be asked, or cannot; where nothing is said they have gone.
    fn ways_changed(&self, changes: ByGuest<Option<Result<Way, WhyNot>>>);

    /// Whether a guest can be asked, as its probe has just found. It may have gone meanwhile.
    fn way_probed(&self, worker_id: &str, way: Result<Way, WhyNot>);
}

/// Keeps a route for each guest that may have one, for as long as it is polled. Dropping it closes them all.
pub async fn keep<G: Guests>(registry: &Arc<G>, dialler: &Arc<Dialler>, seed: u64) -> Infallible {
    let mut keeper = Keeper {
        registry: registry.clone(),
        dialler: dialler.clone(),
        probes: Arc::new(Semaphore::new(PROBES_MAX)),
        random: fastrand::Rng::with_seed(seed),
        known: BTreeMap::new(),
    };
    loop {
        keeper.follow(registry.guests());
        sleep(SETTLE).await;
        registry.guests_changed().await;
    }
}

struct Keeper<G> {
    registry: Arc<G>,
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

impl<G: Guests> Keeper<G> {
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
            self.registry.ways_changed(changes);
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
        let (way, route) = opened.map_err(|_| NotRoutable::Form("its host cannot stand in a header"))?;
        room.take(wanted.coordinator, &host);
        let say = {
            let (registry, worker_id, way) = (self.registry.clone(), worker_id.to_owned(), way.clone());
            move |outcome: Result<(), WhyNot>| {
                debug!(worker_id, ?outcome, "a guest was probed");
                registry.way_probed(&worker_id, outcome.map(|()| way.clone()));
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
    use super::*;

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
