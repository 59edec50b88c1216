//! What all threads share: the members with their tunnels, the registry of what they said, and the snapshot of both.
//!
//! Changes take a lock, which no request ever does: requests read the snapshot. As long as that is quickly made, it is made
//! anew with each change, so that a node is routed to before it hears that it is welcome. In a federation of thousands one task
//! does it ([`Federation::keep_current`]), for all that has changed in the meantime.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use hedgerow_http::{Directory, Loads, Offer};
use hedgerow_proto::election::Candidate;
use hedgerow_proto::frame::{Control, Join, Reject, RejectReason};
use hedgerow_proto::home::telling::{Due, Telling};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::members::{self, Arrival, Lane, MemberLimits};
use hedgerow_proto::record::{Candidacy, NodeRecord, Record, Signed};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::route::{ServicePolicy, Target};
use hedgerow_proto::sync::{Session, SyncError};
use hedgerow_tunnel::relays::Relays;
use hedgerow_tunnel::sync::SyncReplica;
use hedgerow_tunnel::{Admission, EntryIdentity, Liveness, Tunnel, TunnelEvent};
use hedgerow_urls::{self as urls, ByGuest, Guests, Wanted, Way, Ways, WhyNot};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::cidr::Cidr;
use crate::clock;
use crate::snapshot::{Aliases, Snapshot, Sources};

/// The nodes that have a tunnel here.
pub(crate) type Members = members::Members<Tunnel, Cidr>;
/// One of them.
pub(crate) type Member = members::Member<Tunnel, Cidr>;

/// The lanes that a node opens, and as many again while it changes them.
const LANES_PER_NODE_MAX: usize = 2 * hedgerow_tunnel::tuning::LANES_MAX as usize;

/// A snapshot that takes no longer is made at once, by whoever changed something: some hundred nodes.
const AT_ONCE_WITHIN: Duration = Duration::from_micros(500);

/// Beyond that, making snapshots takes at most this part of one thread: under a storm of changes each takes in more of them.
const REBUILD_SHARE: u32 = 4;

/// The members, the registry, and what requests know of both.
pub(crate) struct Federation {
    pub(crate) id: FederationId,
    pub(crate) entry: NodeId,
    pub(crate) limits: Limits,
    shards: usize,
    aliases: Aliases,
    admission: Box<dyn Admission>,
    policy: Box<dyn ServicePolicy>,
    state: Mutex<State>,
    loads: Loads,
    snapshot: ArcSwap<Snapshot>,
    changed: Notify,
    coordinator_came: Notify,
    guests_changed: Notify,
}

/// What changes.
struct State {
    /// Who has a tunnel here.
    members: Members,
    /// What everybody has said, and who of them is there.
    registry: Registry,
    /// The registry's generation of which the last snapshot was made.
    generation: u64,
    /// The ways to workers that have no tunnel here.
    relays: Relays,
    /// Which guests can be asked, and how.
    ways: Ways,
    random: fastrand::Rng,
    /// How long the last snapshot took to make.
    took: Duration,
}

/// A tunnel's place among the members, for as long as its events are listened to.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    tunnel: Tunnel,
    address: Option<IpAddr>,
}

impl Place {
    /// Whose tunnel it is.
    pub(crate) fn node(&self) -> NodeId {
        self.tunnel.node()
    }
}

impl Federation {
    /// Nobody yet. `admission` says who may join, `policy` who may answer for a bare name.
    pub(crate) fn new(
        identity: &EntryIdentity,
        limits: Limits,
        shards: usize,
        aliases: Aliases,
        admission: Box<dyn Admission>,
        policy: Box<dyn ServicePolicy>,
    ) -> Self {
        let member_limits = MemberLimits {
            nodes_max: limits.coordinators_max + limits.workers_max,
            nodes_per_source_max: limits.nodes_per_prefix_max,
            lanes_max: LANES_PER_NODE_MAX,
        };
        Self {
            id: identity.federation,
            entry: identity.key.id(),
            limits: limits.clone(),
            shards,
            aliases,
            admission,
            policy,
            state: Mutex::new(State {
                members: Members::new(member_limits),
                registry: Registry::new(identity.federation, limits),
                generation: 0,
                relays: Relays::default(),
                ways: Ways::new(),
                // The incarnation is drawn at random for each run.
                random: fastrand::Rng::with_seed(identity.incarnation),
                took: Duration::ZERO,
            }),
            loads: Loads::default(),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            changed: Notify::new(),
            coordinator_came: Notify::new(),
            guests_changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The federation as requests see it.
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Who may join from this address; none for this machine's own, which no quota by address is for.
    pub(crate) fn gate(&self, address: Option<IpAddr>) -> Gate<'_> {
        Gate { federation: self, source: address.map(Cidr::source) }
    }

    /// Takes a welcomed tunnel in, which `shard` holds. From now on requests go down it.
    pub(crate) fn join(
        &self,
        shard: usize,
        address: Option<IpAddr>,
        tunnel: Tunnel,
        signed: Signed,
        record: Record,
    ) -> Result<Place, Reject> {
        let node = tunnel.node();
        let arrival = Arrival {
            node,
            incarnation: tunnel.incarnation(),
            version: record.version,
            lane: tunnel.lane(),
            source: address.map(Cidr::source),
        };
        let Some(body) = record.node().cloned() else {
            return Err(reject(RejectReason::Record, "the node sent another kind of record than its own"));
        };
        let coordinates = body.roles.coordinates();
        let lane = Lane { id: tunnel.id(), shard, connection: tunnel.clone() };
        let now = clock::now();
        let replaced = {
            let mut state = self.state();
            let State { members, registry, .. } = &mut *state;
            members.admit(&arrival)?;
            registry
                .insert(now, signed.clone(), Source::Direct(address))
                .map_err(|refused| reject(RejectReason::Overloaded, refused))?;
            let replaced = members.join(&arrival, lane, signed, body)?;
            registry.meet(now, node);
            replaced.iter().for_each(|_| registry.part(now, node));
            self.changed(&mut state);
            replaced
        };
        for old in replaced {
            debug!(node = %node.short(), lane = old.lane(), "replaced by a newer connection");
            old.replaced_by(&tunnel);
        }
        if tunnel.lane() == 0 {
            info!(node = %node.short(), shard, rtt = ?tunnel.rtt(), via = %tunnel.transport(), "a node has joined");
            if let Some(message) = self.coordinators_message() {
                tunnel.send(message);
            }
            if coordinates {
                self.coordinator_came.notify_one();
            }
        }
        Ok(Place { tunnel, address })
    }

    /// A node is leaving: no new requests, and no calls. Whether it is a coordinator, which may have handed something over.
    pub(crate) fn stops_calling(&self, place: &Place) -> bool {
        let mut state = self.state();
        let (node, incarnation) = (place.node(), place.tunnel.incarnation());
        let coordinates =
            state.members.node(&node).is_some_and(|member| !member.leaving && member.record.roles.coordinates());
        if coordinates && state.members.leave(&node, incarnation) {
            info!(node = %node.short(), "a coordinator is leaving");
            self.changed(&mut state);
        }
        coordinates
    }

    /// Something happened on a tunnel. Breaks after the last of it.
    pub(crate) fn heard(&self, place: &Place, event: TunnelEvent) -> ControlFlow<()> {
        let tunnel = &place.tunnel;
        let (node, now) = (tunnel.node(), clock::now());
        let mut state = self.state();
        let State { members, registry, .. } = &mut *state;
        let mut insert = |signed| {
            if let Err(refused) = registry.insert(now, signed, Source::Direct(place.address)) {
                debug!(node = %node.short(), %refused, "a record was not taken");
            }
        };
        let news = match event {
            TunnelEvent::Record(signed, record) => {
                insert(signed.clone());
                let version = record.version;
                let hear = |body: &NodeRecord| {
                    members.record(&node, tunnel.incarnation(), version, signed.clone(), body.clone())
                };
                record.node().is_some_and(hear)
            }
            TunnelEvent::Leave(signed, _) => {
                if members.leave(&node, tunnel.incarnation()) {
                    info!(node = %node.short(), "a node is leaving");
                }
                // It is said on each connection; the first one's counts, before which the registry was caught up with.
                let current = tunnel.lane() == 0
                    && members.node(&node).is_some_and(|member| member.incarnation == tunnel.incarnation());
                if current {
                    insert(signed);
                }
                current
            }
            TunnelEvent::Closed(closed) => {
                let was_here = members.closed(&node, tunnel.lane(), tunnel.id());
                if was_here {
                    registry.part(now, node);
                    self.changed(&mut state);
                }
                if was_here && tunnel.lane() == 0 {
                    info!(node = %node.short(), reason = %closed, "a node's tunnel is down");
                }
                return ControlFlow::Break(());
            }
        };
        if news {
            self.changed(&mut state);
        }
        ControlFlow::Continue(())
    }

    /// After a change: what routing reads has to follow.
    fn changed(&self, state: &mut State) {
        if state.took <= AT_ONCE_WITHIN {
            self.rebuild(state);
        }
        self.changed.notify_one();
    }

    /// Makes a new snapshot whenever something has changed, and tells the coordinators of each other. Runs for ever.
    pub(crate) async fn keep_current(&self) -> Infallible {
        let mut telling = Telling::default();
        let mut tell_at = None;
        loop {
            let registry = self.state().registry.poll_timeout().map(|(at, ..)| at);
            let due = [registry, tell_at].into_iter().flatten().min().map(|at| at.since(clock::now()));
            tokio::select! {
                () = self.changed.notified() => {}
                // Conclusions that only time draws: records lapse, leases run out.
                () = sleep(due.unwrap_or_default()), if due.is_some() => {}
            }
            let took = {
                let mut state = self.state();
                self.rebuild(&mut state);
                state.took
            };
            let coordinators: Vec<NodeId> = self.snapshot().coordinators.iter().map(|view| view.id).collect();
            tell_at = match telling.look(clock::now(), &coordinators) {
                Due::No => None,
                Due::At(at) => Some(at),
                Due::Now => {
                    self.tell_coordinators();
                    None
                }
            };
            sleep(took * (REBUILD_SHARE - 1)).await;
        }
    }

    /// Under the lock, so that an older snapshot never takes the place of a newer one.
    fn rebuild(&self, state: &mut State) {
        let before = Instant::now();
        state.registry.handle_timeout(clock::now());
        let State { members, registry, relays, ways, .. } = state;
        let sources = Sources { members, registry, relays, ways };
        let snapshot = Snapshot::new(sources, &self.loads, &*self.policy, self.shards);
        self.snapshot.store(Arc::new(snapshot));
        state.took = before.elapsed();
        let generation = state.registry.generation();
        if std::mem::replace(&mut state.generation, generation) != generation {
            self.guests_changed.notify_one();
        }
    }

    fn coordinators_message(&self) -> Option<Control> {
        let snapshot = self.snapshot();
        let some = snapshot.some_coordinators(&mut self.state().random);
        let records: Vec<_> = some.into_iter().map(|view| view.signed.bytes().to_vec()).collect();
        (!records.is_empty()).then_some(Control::Coordinators(records))
    }

    fn tell_coordinators(&self) {
        let Some(message) = self.coordinators_message() else { return };
        // Workers too: each looks for a home among them.
        self.each_first_lane(|_, tunnel| tunnel.send(message.clone()));
    }

    /// A connection to each coordinator here that takes requests.
    pub(crate) fn live_coordinators(&self) -> Vec<Tunnel> {
        let state = self.state();
        let here = state.members.iter().filter(|(_, member)| member.record.roles.coordinates() && !member.leaving);
        let live = |member: &Member| {
            let mut lanes = member.lanes().map(|lane| &lane.connection);
            lanes.find(|tunnel| tunnel.liveness() == Liveness::Live).cloned()
        };
        here.filter_map(|(_, member)| live(member)).collect()
    }

    /// How many nodes have a tunnel here, and how many coordinators there are anywhere.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let snapshot = self.snapshot();
        (snapshot.up, snapshot.coordinators.len())
    }

    /// The nodes here that would be coordinators, and are none.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let state = self.state();
        let candidates = state.members.iter().filter_map(|(node, member)| {
            let stands = member.record.candidacy == Candidacy::Elective && !member.record.roles.coordinates();
            let tunnel = &member.lanes().next().filter(|_| stands && !member.leaving)?.connection;
            Some(Candidate { node: *node, up_for: tunnel.up_for(), rtt: tunnel.rtt() })
        });
        candidates.collect()
    }

    /// Says something to one node, if it is here.
    pub(crate) fn tell(&self, node: &NodeId, message: Control) {
        let tunnel = self
            .state()
            .members
            .node(node)
            .and_then(|member| member.lanes().next())
            .map(|lane| lane.connection.clone());
        if let Some(tunnel) = tunnel {
            tunnel.send(message);
        }
    }

    /// Looks at the registry, and at how busy nodes are, as far as requests reach them from here. Short work only: changes wait.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Registry, &dyn Fn(&NodeId) -> Option<f32>) -> T) -> T {
        let state = self.state();
        let State { members, registry, relays, .. } = &*state;
        let node_load = |node: &NodeId| {
            let busy: usize = match members.node(node) {
                Some(member) if member.leaving => return None,
                Some(member) => member.lanes().map(|lane| lane.connection.in_flight_count()).sum(),
                None => relays.get(node)?.in_flight_count(),
            };
            let record = registry.node(node)?.node()?;
            let slots: u32 = record.services.iter().map(|offer| offer.capacity).sum();
            Some(busy as f32 / slots.max(1) as f32)
        };
        look(registry, &node_load)
    }

    /// A coordinator that takes calls about this worker and has not been tried: whoever speaks for it first, then any.
    pub(crate) fn coordinator_for(
        &self,
        worker_id: &str,
        tried: &BTreeSet<NodeId>,
        random: &mut fastrand::Rng,
    ) -> Option<Tunnel> {
        let mut live = self.live_coordinators();
        live.retain(|tunnel| !tried.contains(&tunnel.node()));
        let holder = self.state().registry.guest(worker_id).map(|view| view.coordinator);
        let of_holder = live.iter().find(|tunnel| Some(tunnel.node()) == holder).cloned();
        of_holder.or_else(|| random.choice(live))
    }

    /// Takes in what a coordinator has handed over with an answer, before anybody hears the answer.
    pub(crate) fn learn(&self, records: Vec<Bytes>) {
        let opened = records.into_iter().filter_map(|bytes| Signed::open(bytes, self.id, &self.limits).ok());
        let opened: Vec<Signed> = opened.collect();
        if opened.is_empty() {
            return;
        }
        let mut state = self.state();
        for signed in opened {
            if let Err(refused) = state.registry.insert(clock::now(), signed, Source::Passed(Duration::ZERO)) {
                debug!(%refused, "what came with a coordinator's answer was not taken");
            }
        }
        self.changed(&mut state);
    }

    /// Ready when a coordinator has come since it was asked last.
    pub(crate) async fn coordinator_came(&self) {
        self.coordinator_came.notified().await;
    }

    /// Says to every node that this entry is about to stop.
    pub(crate) fn say_going(&self) {
        self.each_first_lane(|_, tunnel| tunnel.send(Control::Going));
    }

    fn each_first_lane(&self, act: impl Fn(&NodeRecord, &Tunnel)) {
        for (_, member) in self.state().members.iter() {
            if let Some(lane) = member.lanes().next() {
                act(&member.record, &lane.connection);
            }
        }
    }
}

impl Guests for Federation {
    fn guests(&self) -> ByGuest<Wanted> {
        urls::wanted(&self.state().registry)
    }

    async fn guests_changed(&self) {
        self.guests_changed.notified().await;
    }

    fn ways_changed(&self, changes: ByGuest<Option<Result<Way, WhyNot>>>) {
        let mut state = self.state();
        urls::note_changes(&mut state.ways, changes);
        self.changed(&mut state);
    }

    fn way_probed(&self, worker_id: &str, way: Result<Way, WhyNot>) {
        let mut state = self.state();
        if urls::note_probed(&mut state.ways, worker_id, way) {
            self.changed(&mut state);
        }
    }
}

impl SyncReplica for Federation {
    fn transmit(&self, session: &mut Session) -> Option<Vec<u8>> {
        session.poll_transmit(clock::now(), &self.state().registry)
    }

    fn receive(&self, session: &mut Session, message: &[u8]) -> Result<(), SyncError> {
        let received = session.handle(clock::now(), &mut self.state().registry, message)?;
        if received.refused > 0 {
            debug!(refused = received.refused, "records of a coordinator were refused");
        }
        if !received.news.is_empty() {
            // In its own time: a registry that is caught up with comes in many messages.
            self.changed.notify_one();
        }
        Ok(())
    }
}

fn reject(reason: RejectReason, message: impl ToString) -> Reject {
    Reject { reason, message: message.to_string(), record: None }
}

/// Who may join from one source: the operator's policy, and what the table of members has room for.
pub(crate) struct Gate<'a> {
    federation: &'a Federation,
    source: Option<Cidr>,
}

impl Admission for Gate<'_> {
    fn admit(&self, node: NodeId, join: &Join, record: &Record) -> Result<(), Reject> {
        self.federation.admission.admit(node, join, record)?;
        let arrival = Arrival {
            node,
            incarnation: join.incarnation,
            version: record.version,
            lane: join.lane,
            source: self.source,
        };
        self.federation.state().members.admit(&arrival)
    }
}

/// The federation as one thread sees it.
pub(crate) struct ShardDirectory {
    pub(crate) federation: Arc<Federation>,
    pub(crate) shard: usize,
}

impl Directory for ShardDirectory {
    fn find(&self, target: &Target<'_>) -> Option<Offer> {
        self.federation.snapshot().find(self.shard, &self.federation.aliases, target)
    }

    fn known(&self, target: &Target<'_>) -> String {
        self.federation.snapshot().known(&self.federation.aliases, target)
    }
}
