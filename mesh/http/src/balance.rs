//! Who offers what, and how busy each is: the seam to the caller's registry, and the live figures that the balancing
//! reads.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hedgerow_proto::attempts::Candidates;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::route::{Contender, Field, PeakEwma, Standing, Target};
use hedgerow_tunnel::{Liveness, Tunnel};
use http::HeaderValue;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::now;

/// Who offers what, as this process knows it. Called for every request on its thread: it should read an immutable
/// snapshot and wait for nothing.
pub trait Directory {
    /// The nodes that may answer for the target and have a tunnel, or `None`. Aliases of services are resolved here,
    /// and so is the operator's policy on bare names. Offers whose own probe fails are left out.
    fn find(&self, target: &Target<'_>) -> Option<Offer>;

    /// What is known about a target that nobody can answer for now, for a person who asked for it: "known to 2 nodes,
    /// both draining", or "no node has offered it; offered now: llm, ocr". No addresses.
    fn known(&self, target: &Target<'_>) -> String;
}

/// A service and the nodes that can be asked for it.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its name, as the nodes know it.
    pub service: ServiceName,
    /// Each node once, with the tunnel that this thread prefers.
    pub candidates: Arc<[Candidate]>,
}

/// A node that offers the service.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub(crate) node: NodeId,
    pub(crate) tunnel: Tunnel,
    pub(crate) capacity: u32,
    pub(crate) load: Arc<Load>,
    pub(crate) served_by: HeaderValue,
    /// The service's own authority, where the node has told it.
    pub(crate) host: Option<HeaderValue>,
    /// What stands in front of every path there; none for most.
    pub(crate) base: Option<Arc<str>>,
}

impl Candidate {
    /// The node at the other end of `tunnel`, which takes `capacity` requests for `service` at once, and whose load is
    /// counted in `load` (from [`Loads::of`], so that it lives on when the snapshot is made anew).
    pub fn new(service: &ServiceName, tunnel: Tunnel, capacity: u32, load: Arc<Load>) -> Self {
        let node = tunnel.node();
        let served_by = HeaderValue::try_from(node.to_string()).expect("hexadecimal digits");
        let host = tunnel.authority(service.as_str()).and_then(|authority| HeaderValue::from_str(authority).ok());
        Self { node, tunnel, capacity, load, served_by, host, base: None }
    }

    /// The same, called by another name than its node's id in `x-hedgerow-served-by`: who has no key has none.
    pub fn named(self, name: HeaderValue) -> Self {
        Self { served_by: name, ..self }
    }

    /// The same, at this authority, and with `base` in front of every path that is asked for there: `/…` without a slash at
    /// its end, or nothing.
    pub fn at(self, authority: HeaderValue, base: &str) -> Self {
        Self { host: Some(authority), base: (!base.is_empty()).then(|| base.into()), ..self }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What `x-hedgerow-served-by` says of its answers.
    pub fn name(&self) -> &HeaderValue {
        &self.served_by
    }

    /// How it is reached.
    pub fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// How the balancing sees it at `now` ([`crate::now`]): what `/mesh/why` shows.
    pub fn contender(&self, now: Duration) -> Contender {
        Contender {
            standing: match self.tunnel.liveness() {
                Liveness::Live => Standing::Live,
                Liveness::Suspect => Standing::Suspect,
                Liveness::Draining | Liveness::Closed => Standing::Out,
            },
            in_flight: self.load.in_flight(),
            capacity: self.capacity,
            cost_us: self.load.cost_us(now),
        }
    }
}

/// How busy one node is with one service: shared by all threads.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    /// A [`PeakEwma`]. Two threads that update it at once may lose one sample, which is no matter.
    cost: AtomicU64,
    /// Told when a slot has been given back: somebody who waits for the service may have it.
    room: Arc<Notify>,
}

impl Load {
    fn new(room: Arc<Notify>) -> Self {
        Self { in_flight: AtomicU32::new(0), cost: AtomicU64::new(PeakEwma::new(now()).to_bits()), room }
    }

    /// Ready when there may be room at a node that offers the service, for the one who has waited longest, on whatever
    /// thread. It is a hint: who comes at that moment may be quicker.
    pub(crate) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Requests that this process has with it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// What an answer costs at `now`, in microseconds.
    pub fn cost_us(&self, now: Duration) -> f32 {
        PeakEwma::from_bits(self.cost.load(Relaxed)).cost_us(now)
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut PeakEwma)) {
        let mut cost = PeakEwma::from_bits(self.cost.load(Relaxed));
        change(&mut cost);
        self.cost.store(cost.to_bits(), Relaxed);
    }
}

/// One request that counts as in flight while this lives.
pub(crate) struct Busy {
    load: Arc<Load>,
    leaves_room: bool,
}

impl Busy {
    pub(crate) fn with(load: &Arc<Load>) -> Self {
        load.in_flight.fetch_add(1, Relaxed);
        Self { load: load.clone(), leaves_room: true }
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    /// It has been refused, so it leaves no room. Requests that wait for a full node would otherwise call each other up
    /// without a pause: each refusal the next question.
    pub(crate) fn refused(&mut self) {
        self.leaves_room = false;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
        if self.leaves_room {
            self.load.room.notify_one();
        }
    }
}

/// The loads of all nodes and services: asked when a snapshot is made, not for requests.
#[derive(Debug, Default)]
pub struct Loads {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    loads: HashMap<(NodeId, ServiceName), Weak<Load>>,
    rooms: HashMap<ServiceName, Weak<Notify>>,
}

impl Loads {
    /// The load of this node and service: the same for as long as anybody holds it. Those of one service belong together:
    /// who waits for it is told when any of its nodes has room.
    pub fn of(&self, node: NodeId, service: &ServiceName) -> Arc<Load> {
        let Known { loads, rooms } = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        the_one(loads, (node, service.clone()), || Load::new(the_one(rooms, service.clone(), Notify::new)))
    }
}

/// What is known under the key for as long as anybody holds it, else a new one.
fn the_one<K: Eq + Hash, T>(known: &mut HashMap<K, Weak<T>>, key: K, new: impl FnOnce() -> T) -> Arc<T> {
    if known.len() == known.capacity() {
        // Before it grows: what nobody holds any more makes room.
        known.retain(|_, held| held.strong_count() > 0);
    }
    let slot = known.entry(key).or_default();
    slot.upgrade().unwrap_or_else(|| {
        let new = Arc::new(new());
        *slot = Arc::downgrade(&new);
        new
    })
}

/// The candidates of one request, as they are at one moment.
pub(crate) struct Standings<'a> {
    pub(crate) candidates: &'a [Candidate],
    pub(crate) now: Duration,
}

impl Field for Standings<'_> {
    fn len(&self) -> usize {
        self.candidates.len()
    }

    fn contender(&self, index: usize) -> Contender {
        self.candidates[index].contender(self.now)
    }
}

impl Candidates for Standings<'_> {
    fn node(&self, index: usize) -> NodeId {
        self.candidates[index].node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_outlives_the_snapshot_that_asked_for_it_first() {
        let loads = Loads::default();
        let (node, service) = (NodeId([1; 32]), ServiceName::new("web").expect("a name"));
        let load = loads.of(node, &service);
        let busy = Busy::with(&load);
        assert_eq!(loads.of(node, &service).in_flight(), 1);
        assert_eq!(loads.of(NodeId([2; 32]), &service).in_flight(), 0);
        drop(busy);
        assert_eq!(load.in_flight(), 0);
    }
}
