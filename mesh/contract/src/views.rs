//! What the contract's reading calls are answered with: pure functions of the registry and of what its owner knows beside
//! it. Every answer is for anybody: no address, host name, multiaddr or tunnel URL of a volunteer is in it, and where the
//! contract has a URL it is one under whoever answers.
//!
//! Native nodes and guests stand side by side. **Healthy** is a node that can be reached from here, and a guest whose
//! coordinator is there and says that it is healthy. Only those of them that requests can reach are offered to clients.
//!
//! Times are milliseconds since the Unix epoch. Only the coordinator that holds a guest knows when it heard of it
//! ([`Desk::seen`]); elsewhere, and for nodes, times are approximations: the moment of the answer for whoever is known to be
//! alive, and the last sign of life for others. Nobody keeps when a node came, so its `registered_at` is that too.

use std::collections::BTreeMap;

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::record::{Guest, GuestStatus, Kind, NodeRecord, RecordKey, ServiceHealth, WorkerType};
use hedgerow_proto::registry::{GuestView, Presence, Registry};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::assign::type_of;
use crate::catalogue::Catalogue;
use crate::desk::Desk;
use crate::endpoint::Call;
use crate::error::ContractError;

mod admin;
mod capabilities;
mod dht;
mod discovery;

pub use admin::{AdminCoordinator, AdminStats, AdminWorker, AdminWorkers};
pub use dht::{Connection, DhtBootstrap, Seed, Topology, TopologyNode, TopologyStats};
pub use discovery::{Discovered, Discovery, Found, Health, ServiceCount, ServicesList};

/// Workers, or nodes, in one answer at most: a page for people. Totals count all of them.
pub const LISTED_MAX: usize = 1000;

/// What the answers are made of. Each method is a call of the contract.
#[derive(Clone, Copy)]
pub struct Views<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// The desk, where a coordinator answers.
    pub desk: Option<&'a Desk>,
    /// Other names of services.
    pub catalogue: &'a Catalogue,
    /// The URL under which whoever answers is reached, such as `https://example.org`: without a slash at its end.
    pub base_url: &'a str,
    /// Now.
    pub now: Time,
    /// The same in milliseconds since the Unix epoch.
    pub unix_now_ms: u64,
    /// How busy a node is, from 0 to 1, if requests can reach it from here.
    pub node_load: &'a dyn Fn(&NodeId) -> Option<f32>,
    /// Whether requests can reach a guest from here: its URL is one that the policy allows, and answers.
    pub guest_reachable: &'a dyn Fn(&Guest) -> bool,
    /// Requests that workers have answered, as far as is counted here.
    pub tasks_completed: u64,
}

impl Views<'_> {
    /// The answer to a call that only reads, as JSON; nothing for one that [`Call::writes`].
    pub fn answer(&self, call: &Call) -> Result<Option<Vec<u8>>, ContractError> {
        Ok(Some(match call {
            Call::Health => json(&self.health()),
            Call::DhtBootstrap => json(&self.dht_bootstrap()),
            Call::Discover(service) => json(&self.discover(service)?),
            Call::Find(service) => json(&self.find(service)?),
            Call::ServicesList => json(&self.services_list()),
            Call::AdminWorkers => json(&self.admin_workers()),
            Call::AdminCoordinators => json(&self.admin_coordinators()),
            Call::AdminStats => json(&self.admin_stats()),
            Call::DhtTopology => json(&self.dht_topology()),
            Call::DhtStats => json(&self.dht_stats()),
            Call::Register | Call::Heartbeat | Call::Unregister(_) | Call::EdgeRegister | Call::EdgeHeartbeat => {
                return Ok(None);
            }
        }))
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Our own types of numbers, texts and lists: there is nothing to fail.
    serde_json::to_vec(value).expect("plain data always serialises")
}

/// How a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerStatus {
    /// It does well.
    Healthy,
    /// A guest that says otherwise, or whose heartbeats are overdue.
    Degraded,
    /// A node that cannot be reached from here now, or a guest whose coordinator is away. It may come back.
    Away,
}

/// A worker of either sort.
struct Worker<'a> {
    id: String,
    sort: Sort<'a>,
    status: WorkerStatus,
    /// Whether requests get to it from here.
    reachable: bool,
    load: f32,
    since_ms: u64,
    seen_ms: u64,
}

enum Sort<'a> {
    Node(&'a NodeRecord),
    Guest(GuestView<'a>),
}

impl<'a> Worker<'a> {
    fn is_healthy(&self) -> bool {
        self.status == WorkerStatus::Healthy
    }

    /// What its type counts as.
    fn kind(&self) -> WorkerType {
        match self.sort {
            Sort::Node(node) => node.hardware.worker_type,
            Sort::Guest(view) => type_of(&view.guest.details.worker_type),
        }
    }

    /// Its type, in the word that it uses.
    fn type_word(&self) -> String {
        match self.sort {
            Sort::Node(node) => node.hardware.worker_type.as_str().to_owned(),
            Sort::Guest(view) => view.guest.details.worker_type.clone(),
        }
    }

    fn location(&self) -> String {
        match self.sort {
            Sort::Node(node) => node.location.clone(),
            Sort::Guest(view) => view.guest.details.location.clone(),
        }
    }

    /// The services that it offers, those of a node whose probe fails left out.
    fn services(&self) -> Box<dyn Iterator<Item = &'a ServiceName> + 'a> {
        match self.sort {
            Sort::Node(node) => {
                let up = node.services.iter().filter(|offer| offer.health == ServiceHealth::Up);
                Box::new(up.map(|offer| &offer.name))
            }
            Sort::Guest(view) => Box::new(view.guest.details.services.iter()),
        }
    }

    fn offers(&self, service: &ServiceName) -> bool {
        self.services().any(|name| name == service)
    }

    fn capabilities(&self) -> Map<String, Value> {
        match self.sort {
            Sort::Node(node) => capabilities::of_hardware(&node.hardware),
            Sort::Guest(view) => capabilities::of_guest(&view.guest.details.capabilities),
        }
    }

    /// From 0 to 1, to a thousandth.
    fn load(&self) -> f64 {
        let load = if self.load.is_finite() { f64::from(self.load.clamp(0.0, 1.0)) } else { 1.0 };
        (load * 1000.0).round() / 1000.0
    }
}

impl<'a> Views<'a> {
    /// All workers that have not lapsed: nodes, then guests, each in order of id.
    fn workers(&self) -> Vec<Worker<'a>> {
        let nodes = self.registry.workers().map(|worker| self.node(worker.record.writer, worker.node));
        nodes.chain(self.guests().into_iter().map(|view| self.guest(view))).collect()
    }

    fn node(&self, id: NodeId, node: &'a NodeRecord) -> Worker<'a> {
        let load = (self.node_load)(&id);
        let seen_ms = match load {
            Some(_) => self.unix_now_ms,
            None => self.last_sign_ms(RecordKey { writer: id, kind: Kind::NODE, subject: Bytes::new() }),
        };
        Worker {
            id: id.to_string(),
            sort: Sort::Node(node),
            status: if load.is_some() { WorkerStatus::Healthy } else { WorkerStatus::Away },
            reachable: load.is_some(),
            load: load.unwrap_or(0.0),
            since_ms: seen_ms,
            seen_ms,
        }
    }

    fn guest(&self, view: GuestView<'a>) -> Worker<'a> {
        let guest = view.guest;
        let seen = self.desk.and_then(|desk| desk.seen(&guest.worker_id));
        let status = match (view.presence, guest.details.status) {
            (Presence::Here, GuestStatus::Healthy) => WorkerStatus::Healthy,
            (Presence::Here, _) => WorkerStatus::Degraded,
            _ => WorkerStatus::Away,
        };
        let last_sign = || {
            let subject = Bytes::copy_from_slice(guest.worker_id.as_bytes());
            self.last_sign_ms(RecordKey { writer: view.coordinator, kind: Kind::GUEST, subject })
        };
        let (since_ms, seen_ms) = match seen {
            Some(seen) => (self.unix_ms(seen.since), self.unix_ms(seen.heard_at)),
            None => {
                let last_sign = last_sign();
                (last_sign, last_sign)
            }
        };
        let percent = seen.map_or(guest.details.load_percent, |seen| seen.load_percent);
        Worker {
            id: guest.worker_id.clone(),
            sort: Sort::Guest(view),
            status,
            reachable: (self.guest_reachable)(guest),
            load: f32::from(percent) / 100.0,
            since_ms,
            seen_ms,
        }
    }

    /// Every guest once, as [`Registry::guest`] shows it; those whose coordinator is away with them.
    fn guests(&self) -> Vec<GuestView<'a>> {
        let mut guests: BTreeMap<&str, GuestView<'a>> = BTreeMap::new();
        let order = |view: &GuestView<'_>| (view.presence, std::cmp::Reverse(view.coordinator));
        for view in self.registry.guest_claims() {
            let shown = guests.entry(view.guest.worker_id.as_str()).or_insert(view);
            if order(&view) > order(shown) {
                *shown = view;
            }
        }
        guests.into_values().collect()
    }

    /// Under this URL a worker's services are reached.
    fn worker_url(&self, worker_id: &str) -> String {
        format!("{}/worker/{worker_id}", self.base_url)
    }

    fn last_sign_ms(&self, key: RecordKey) -> u64 {
        let age = self.registry.age(self.now, &key).unwrap_or_default();
        self.unix_now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    fn unix_ms(&self, moment: Time) -> u64 {
        let ago = u64::try_from(self.now.since(moment).as_millis()).unwrap_or(u64::MAX);
        self.unix_now_ms.saturating_sub(ago)
    }
}

#[cfg(test)]
mod tests;
