//! What all threads share: the members with their tunnels, and the snapshot that is made of them.
//!
//! Changes take a lock, which no request ever does: requests read the snapshot. It is made anew by one task
//! ([`Federation::keep_current`]), as often as something has changed and no oftener than is worth it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use hedgerow_http::{Directory, Loads, Offer};
use hedgerow_proto::frame::{Control, Join, Reject, close};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{NodeRecord, Record, Signed};
use hedgerow_proto::route::{ServicePolicy, Target};
use hedgerow_tunnel::{Admission, Tunnel, TunnelEvent};
use tokio::sync::Notify;
use tracing::{debug, info};

use crate::cidr::Cidr;
use crate::members::{Arrival, Lane, MemberLimits, Members};
use crate::snapshot::{Aliases, Snapshot};

/// Coordinators of which others are told at once: enough to find the rest from, and well below a control message.
pub(crate) const COORDINATORS_TOLD_MAX: usize = 8;

/// The lanes that a node opens, and as many again while it changes them.
const LANES_PER_NODE_MAX: usize = 2 * hedgerow_tunnel::tuning::LANES_MAX as usize;

/// Making snapshots takes at most this part of one thread: under a storm of changes each takes in more of them.
const REBUILD_SHARE: u32 = 4;

/// The members, and what routing knows of them.
pub(crate) struct Federation {
    pub(crate) id: FederationId,
    pub(crate) entry: NodeId,
    shards: usize,
    aliases: Aliases,
    admission: Box<dyn Admission>,
    policy: Box<dyn ServicePolicy>,
    members: Mutex<Members<Tunnel>>,
    loads: Loads,
    snapshot: ArcSwap<Snapshot>,
    changed: Notify,
    random: Mutex<fastrand::Rng>,
}

/// A tunnel's place among the members, for as long as its events are listened to.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    tunnel: Tunnel,
}

impl Federation {
    /// Nobody yet. `admission` says who may join, `policy` who may answer for a bare name.
    pub(crate) fn new(
        id: FederationId,
        entry: NodeId,
        shards: usize,
        aliases: Aliases,
        admission: Box<dyn Admission>,
        policy: Box<dyn ServicePolicy>,
        seed: u64,
    ) -> Self {
        let limits = &Limits::PRODUCTION;
        let limits = MemberLimits {
            nodes_max: limits.coordinators_max + limits.workers_max,
            nodes_per_source_max: limits.nodes_per_prefix_max,
            lanes_max: LANES_PER_NODE_MAX,
        };
        Self {
            id,
            entry,
            shards,
            aliases,
            admission,
            policy,
            members: Mutex::new(Members::new(limits)),
            loads: Loads::default(),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            changed: Notify::new(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    fn members(&self) -> MutexGuard<'_, Members<Tunnel>> {
        // Every change of the table is whole before anything in it can panic.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The federation as requests see it.
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Who may join from this address.
    pub(crate) fn gate(&self, source: Option<Cidr>) -> Gate<'_> {
        Gate { federation: self, source }
    }

    /// Takes a welcomed tunnel in, which `shard` holds. From now on requests go down it.
    pub(crate) fn join(
        &self,
        shard: usize,
        source: Option<Cidr>,
        tunnel: Tunnel,
        signed: Signed,
        record: Record,
    ) -> Result<Place, Reject> {
        let arrival = Arrival {
            node: tunnel.node(),
            incarnation: tunnel.incarnation(),
            version: record.version,
            lane: tunnel.lane(),
            source,
        };
        let Some(node) = record.node().cloned() else {
            return Err(Reject {
                reason: hedgerow_proto::frame::RejectReason::Record,
                message: "the node sent another kind of record than its own".into(),
            });
        };
        let lane = Lane { id: tunnel.id(), shard, connection: tunnel.clone() };
        let replaced = self.members().join(&arrival, lane, signed, node)?;
        for old in replaced {
            debug!(node = %old.node().short(), lane = old.lane(), "replaced by a newer connection");
            old.close(close::REPLACED, "a newer connection of this node takes the place of this one");
        }
        if tunnel.lane() == 0 {
            info!(node = %tunnel.node().short(), shard, rtt = ?tunnel.rtt(), "a node has joined");
            self.tell(&tunnel);
        }
        self.changed.notify_one();
        Ok(Place { tunnel })
    }

    /// Something happened on a tunnel. Returns whether it was the last of it.
    pub(crate) fn heard(&self, place: &Place, event: TunnelEvent) -> std::ops::ControlFlow<()> {
        let tunnel = &place.tunnel;
        let node = tunnel.node();
        let news = match event {
            TunnelEvent::Record(signed, record) => {
                let version = record.version;
                let body = record.node().cloned();
                let hear = |body: NodeRecord| self.members().record(&node, tunnel.incarnation(), version, signed, body);
                body.is_some_and(hear)
            }
            TunnelEvent::Leave(..) => {
                info!(node = %node.short(), "a node is leaving");
                self.members().leave(&node, tunnel.incarnation())
            }
            TunnelEvent::Closed(closed) => {
                let was_here = self.members().closed(&node, tunnel.lane(), tunnel.id());
                if was_here && tunnel.lane() == 0 {
                    info!(node = %node.short(), reason = %closed, "a node's tunnel is down");
                }
                if was_here {
                    self.changed.notify_one();
                }
                return std::ops::ControlFlow::Break(());
            }
        };
        if news {
            self.changed.notify_one();
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Makes a new snapshot whenever something has changed, and tells the coordinators of each other. Runs for ever.
    pub(crate) async fn keep_current(&self) -> Infallible {
        let mut told: Vec<NodeId> = Vec::new();
        loop {
            self.changed.notified().await;
            let before = tokio::time::Instant::now();
            let coordinators = self.rebuild();
            if coordinators != told {
                told = coordinators;
                self.tell_coordinators();
            }
            tokio::time::sleep(before.elapsed() * (REBUILD_SHARE - 1)).await;
        }
    }

    fn rebuild(&self) -> Vec<NodeId> {
        let members = self.members();
        let snapshot = Snapshot::new(&members, &self.loads, &*self.policy, &self.aliases, self.shards);
        drop(members);
        let coordinates = |view: &&crate::snapshot::NodeView| view.record.roles.coordinates() && !view.leaving;
        let coordinators = snapshot.nodes.iter().filter(coordinates).map(|view| view.id).collect();
        self.snapshot.store(Arc::new(snapshot));
        coordinators
    }

    /// The signed records of some coordinators, a different few each time.
    pub(crate) fn coordinators(&self) -> Vec<(NodeId, Signed, NodeRecord)> {
        let members = self.members();
        let coordinators = members.iter().filter(|(_, member)| member.record.roles.coordinates() && !member.leaving);
        let mut some: Vec<_> = coordinators.collect();
        self.random.lock().unwrap_or_else(PoisonError::into_inner).shuffle(&mut some);
        some.truncate(COORDINATORS_TOLD_MAX);
        some.into_iter().map(|(id, member)| (*id, member.signed.clone(), member.record.clone())).collect()
    }

    fn coordinators_message(&self) -> Option<Control> {
        let records: Vec<_> = self.coordinators().into_iter().map(|(_, signed, _)| signed.bytes().to_vec()).collect();
        (!records.is_empty()).then_some(Control::Coordinators(records))
    }

    fn tell(&self, tunnel: &Tunnel) {
        if let Some(message) = self.coordinators_message() {
            tunnel.send(message);
        }
    }

    fn tell_coordinators(&self) {
        let Some(message) = self.coordinators_message() else { return };
        self.each_first_lane(|record, tunnel| {
            if record.roles.coordinates() {
                tunnel.send(message.clone());
            }
        });
    }

    /// Says to every node that this entry is about to stop.
    pub(crate) fn say_going(&self) {
        self.each_first_lane(|_, tunnel| tunnel.send(Control::Going));
    }

    fn each_first_lane(&self, act: impl Fn(&NodeRecord, &Tunnel)) {
        for (_, member) in self.members().iter() {
            if let Some(lane) = member.lanes().next() {
                act(&member.record, &lane.connection);
            }
        }
    }
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
        self.federation.members().admit(&arrival)
    }
}

/// The federation as one thread sees it.
pub(crate) struct ShardDirectory {
    pub(crate) federation: Arc<Federation>,
    pub(crate) shard: usize,
}

impl Directory for ShardDirectory {
    fn find(&self, target: &Target<'_>) -> Option<Offer> {
        self.federation.snapshot().find(self.shard, target)
    }

    fn known(&self, target: &Target<'_>) -> String {
        self.federation.snapshot().known(&self.federation.aliases, target)
    }
}
