//! Who can be asked at a coordinator's own port and is not at home there: agents at URLs of their own, workers at home at other
//! coordinators, and those coordinators' own services. For one federation.
//!
//! ```text
//! registry ─▶ workers, by way of their homes (RelayLink, over libp2p) ─┐
//!          └▶ agents, at their URLs (hedgerow_urls)                    ├─▶ Routes: an immutable snapshot, read by the own port
//! probes of agents ────────────────────────────────────────────────────┘
//! ```
//!
//! Nothing of it runs on a node without a port of its own, and nothing is routed while the node is no coordinator.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_http::Loads;
use hedgerow_mesh::host::HostHandle;
use hedgerow_mesh::host::relay::RelayLink;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::registry::{Presence, Reach, Registry, Worker};
use hedgerow_tunnel::Tunnel;
use hedgerow_tunnel::relays::Relays;
use hedgerow_urls::{ByGuest, Dialler, Guests, Wanted, Way, Ways, WhyNot};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::mesh::Mesh;

mod routes;

pub use routes::Routes;
use routes::{Building, WorkerOffers};

/// How long changes are gathered before the routes are made anew.
const SETTLE: Duration = Duration::from_millis(20);
/// Making routes takes at most this part of the node's thread, which carries its tunnels: under a storm of changes each time takes
/// in more of them.
const REBUILD_SHARE: u32 = 10;

/// What all federations of a node share of it.
pub struct Outward {
    /// Dials agents.
    pub dialler: Arc<Dialler>,
    /// How busy whoever is asked is, wherever it is.
    pub loads: Loads,
}

/// The ways out of this coordinator.
pub struct Elsewhere {
    mesh: Arc<Mesh>,
    outward: Arc<Outward>,
    state: Mutex<State>,
    routes: watch::Sender<Arc<Routes>>,
    changed: Notify,
    guests_changed: Notify,
}

#[derive(Default)]
struct State {
    /// Which agents can be asked, and how.
    ways: Ways,
    /// The ways to other coordinators.
    coordinators: BTreeMap<NodeId, Tunnel>,
    /// The ways to workers by way of those.
    relays: Relays,
    /// What all these offer.
    workers: HashMap<NodeId, WorkerOffers>,
}

impl Elsewhere {
    /// Nobody yet.
    pub fn new(mesh: Arc<Mesh>, outward: Arc<Outward>) -> Arc<Self> {
        Arc::new(Self {
            mesh,
            outward,
            state: Mutex::default(),
            routes: watch::Sender::default(),
            changed: Notify::new(),
            guests_changed: Notify::new(),
        })
    }

    /// Who can be asked, as far as is known now.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.borrow().clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the ways and the routes, for as long as it is polled.
    pub async fn keep(self: Arc<Self>, seed: u64) {
        let (agents, routes) = (hedgerow_urls::keep(&self, &self.outward.dialler, seed), self.keep_current());
        let (never, _) = tokio::join!(agents, routes);
        match never {}
    }

    /// Makes the routes anew whenever something has changed.
    async fn keep_current(&self) -> Infallible {
        let mut changes = self.mesh.replica.changes();
        let (mut roles, mut host) = (self.mesh.roles.subscribe(), self.mesh.host.subscribe());
        loop {
            changes.mark_unchanged();
            roles.mark_unchanged();
            let took = {
                let host = host.borrow_and_update().clone();
                self.rebuild(host.as_ref())
            };
            self.guests_changed.notify_one();
            sleep(SETTLE.max(took * (REBUILD_SHARE - 1))).await;
            // The senders are this node's own: none of them goes before it.
            tokio::select! {
                _ = changes.changed() => {}
                _ = roles.changed() => {}
                _ = host.changed() => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Under the lock, so that older routes never take the place of newer ones. How long it took.
    fn rebuild(&self, host: Option<&HostHandle>) -> Duration {
        let before = Instant::now();
        let mut state = self.state();
        let host = host.filter(|_| self.mesh.roles().coordinates());
        let routes = match host {
            Some(host) => self.mesh.replica.read(|registry| self.look(registry, &mut state, host)),
            None => {
                state.workers.clear();
                state.keep_only(&BTreeSet::new(), &BTreeSet::new());
                Routes::default()
            }
        };
        self.routes.send_replace(Arc::new(routes));
        before.elapsed()
    }

    /// Whom the registry shows, and the ways to those who can be asked.
    fn look(&self, registry: &Registry, state: &mut State, host: &HostHandle) -> Routes {
        let (me, loads) = (self.mesh.replica.node(), &self.outward.loads);
        let mut routes = Building::default();
        let (mut homes, mut relayed, mut workers) = (BTreeSet::new(), BTreeSet::new(), HashMap::new());
        for worker in registry.workers() {
            let id = worker.record.writer;
            let Some(home) = home_of(registry, &worker).filter(|home| *home != me) else { continue };
            let Some(via) = state.coordinator(&self.mesh, host, home) else { continue };
            homes.insert(home);
            let way = if home == id {
                via
            } else {
                relayed.insert(id);
                state.relays.way(id, &via)
            };
            let known = state.workers.remove(&id).filter(|known| known.is_of(&worker, &way));
            let known = known.unwrap_or_else(|| WorkerOffers::new(&worker, &way, loads));
            routes.add_worker(id, &known);
            workers.insert(id, known);
        }
        state.workers = workers;
        state.keep_only(&homes, &relayed);
        for (worker_id, view) in hedgerow_urls::guests(registry) {
            routes.add_guest(worker_id, &view, hedgerow_urls::way_to(&view, &state.ways), loads);
        }
        routes.finish()
    }
}

/// The coordinator that has to be asked for a worker, which may be the worker itself.
fn home_of(registry: &Registry, worker: &Worker<'_>) -> Option<NodeId> {
    let id = worker.record.writer;
    match worker.reach {
        // That it is connected to this node as a coordinator is no tunnel to its services.
        _ if worker.node.roles.coordinates() => (registry.presence(&id) == Presence::Here).then_some(id),
        Reach::ViaHome(home) => Some(home),
        // Those that are at home here the own port knows by itself.
        Reach::Tunnel | Reach::None => None,
    }
}

impl State {
    /// The way to another coordinator: the same for as long as it is needed, and the host runs.
    fn coordinator(&mut self, mesh: &Mesh, host: &HostHandle, node: NodeId) -> Option<Tunnel> {
        if let Some(tunnel) = self.coordinators.get(&node).filter(|tunnel| !tunnel.is_closed()) {
            return Some(tunnel.clone());
        }
        let link = RelayLink::new(host, &mesh.replica, node)?;
        let tunnel = Tunnel::detached(Arc::new(link), Vec::new());
        self.coordinators.insert(node, tunnel.clone());
        Some(tunnel)
    }

    /// Forgets the ways that nobody needs any more. What runs on them goes on.
    fn keep_only(&mut self, homes: &BTreeSet<NodeId>, relayed: &BTreeSet<NodeId>) {
        self.relays.keep_only(|worker| relayed.contains(worker));
        self.coordinators.retain(|node, _| homes.contains(node));
    }
}

impl Guests for Elsewhere {
    fn guests(&self) -> ByGuest<Wanted> {
        if !self.mesh.roles().coordinates() {
            return ByGuest::new();
        }
        self.mesh.replica.read(hedgerow_urls::wanted)
    }

    async fn guests_changed(&self) {
        self.guests_changed.notified().await;
    }

    fn ways_changed(&self, changes: ByGuest<Option<Result<Way, WhyNot>>>) {
        hedgerow_urls::note_changes(&mut self.state().ways, changes);
        self.changed.notify_one();
    }

    fn way_probed(&self, worker_id: &str, way: Result<Way, WhyNot>) {
        if hedgerow_urls::note_probed(&mut self.state().ways, worker_id, way) {
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::clock::Time;
    use hedgerow_proto::id::FederationId;
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::limits::Limits;
    use hedgerow_proto::record::{Attachment, AttachmentState, Body, Home, NodeRecord, Roles, Signed, Version};
    use hedgerow_proto::registry::Source;

    use super::*;

    const FEDERATION: FederationId = FederationId([1; 32]);

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed([seed; 32])
    }

    fn says(registry: &mut Registry, key: &SecretKey, seq: u64, body: &Body) {
        let signed = Signed::sign(key, FEDERATION, 1, Version { epoch: 1, seq }, body).unwrap();
        registry.insert(Time::ORIGIN, signed, Source::Direct(None)).unwrap();
    }

    fn node(roles: Roles, home: Option<&SecretKey>) -> Body {
        Body::Node(NodeRecord {
            roles,
            location: String::new(),
            version: "0.1.0".into(),
            services: vec![],
            multiaddrs: vec![],
            home: home.map(|key| Home { coordinator: key.id(), home_seq: 1 }),
            candidacy: Default::default(),
            hardware: Default::default(),
        })
    }

    fn attached(worker: &SecretKey) -> Body {
        Body::Attachment(Attachment { worker: worker.id(), home_seq: 1, state: AttachmentState::Attached })
    }

    #[test]
    fn a_worker_is_asked_for_by_way_of_its_home_and_a_coordinator_that_works_directly() {
        let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
        let [home, both, away, worker, here, homeless] = [1, 2, 3, 4, 5, 6].map(key);
        says(&mut registry, &home, 1, &node(Roles::Coordinator, None));
        says(&mut registry, &both, 1, &node(Roles::Both, None));
        says(&mut registry, &away, 1, &node(Roles::Both, None));
        // They are connected to this node, as coordinators are.
        registry.meet(Time::ORIGIN, home.id());
        registry.meet(Time::ORIGIN, both.id());
        says(&mut registry, &worker, 1, &node(Roles::Worker, Some(&home)));
        says(&mut registry, &home, 2, &attached(&worker));
        says(&mut registry, &homeless, 1, &node(Roles::Worker, None));
        says(&mut registry, &here, 1, &node(Roles::Worker, Some(&home)));
        registry.meet(Time::ORIGIN, here.id());
        let homes: BTreeMap<NodeId, Option<NodeId>> =
            registry.workers().map(|worker| (worker.record.writer, home_of(&registry, &worker))).collect();
        let expected = [
            (both.id(), Some(both.id())),
            (away.id(), None),
            (worker.id(), Some(home.id())),
            (here.id(), None),
            (homeless.id(), None),
        ];
        assert_eq!(homes, expected.into());
        // The home is gone, and with it the way.
        registry.part(Time::ORIGIN, home.id());
        let lost = registry.workers().find(|view| view.record.writer == worker.id()).unwrap();
        assert_eq!(home_of(&registry, &lost), None);
    }
}
