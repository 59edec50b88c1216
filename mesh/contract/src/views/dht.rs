//! What agents ask that have a mesh of their own in mind: where to begin, and who is connected to whom.

use std::collections::BTreeSet;

use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::registry::Presence;
use serde::Serialize;

use super::{LISTED_MAX, Sort, Views, Worker, WorkerStatus};
use crate::url::{UrlPolicy, check};

/// Seeds in an answer at most: enough to find the rest from.
const SEEDS_MAX: usize = 8;
/// How long an agent may use the seeds, in seconds.
const SEEDS_TTL_S: u32 = 60;

/// GET `/api/dht/bootstrap`. No seeds is an answer too: the agent then waits for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DhtBootstrap {
    /// Coordinators that are there.
    pub seeds: Vec<Seed>,
    /// How long they may be used, in seconds.
    pub ttl: u32,
    /// How many there are.
    pub count: usize,
}

/// A coordinator to begin at. Any of them answers for all, and so does whoever answers this call: its own address is what
/// stands here, never a volunteer's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seed {
    /// The coordinator.
    pub node_id: String,
    /// The URL of whoever answers.
    pub tunnel_url: String,
    /// Its port.
    pub dht_port: u16,
    /// Where the coordinator says it is.
    pub location: String,
}

/// GET `/api/dht/topology`, and GET `/api/dht/stats`: the contract has one shape for both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Coordinators and workers, at most [`LISTED_MAX`] of each.
    pub nodes: Vec<TopologyNode>,
    /// Who is with which coordinator, among those nodes.
    pub connections: Vec<Connection>,
    /// The same in numbers, all counted.
    pub stats: TopologyStats,
}

/// A node, of either sort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopologyNode {
    /// Its id.
    pub id: String,
    /// The same.
    pub node_id: String,
    /// `coordinator`, or the type of a worker.
    pub node_type: String,
    /// How it does.
    pub status: WorkerStatus,
    /// The services that it offers.
    pub services: Vec<ServiceName>,
}

/// A worker and its coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The worker.
    pub source_id: String,
    /// The coordinator.
    pub target_id: String,
    /// `home` of a node, `guest` of an agent that has no key of ours.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// Numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopologyStats {
    /// Coordinators and workers.
    pub total_nodes: usize,
    /// Coordinators that are there.
    pub coordinators: usize,
    /// Workers, of both sorts.
    pub workers: usize,
    /// Workers that are healthy.
    pub healthy_workers: usize,
    /// Connections that are listed.
    pub connections: usize,
}

impl Views<'_> {
    /// GET `/api/dht/bootstrap`.
    pub fn dht_bootstrap(&self) -> DhtBootstrap {
        let there = self.registry.coordinators().filter(|it| it.presence == Presence::Here);
        let port = self.base_port();
        let seeds = there.take(SEEDS_MAX).map(|it| Seed {
            node_id: it.record.writer.to_string(),
            tunnel_url: self.base_url.to_owned(),
            dht_port: port,
            location: it.node.location.clone(),
        });
        let seeds: Vec<Seed> = seeds.collect();
        DhtBootstrap { count: seeds.len(), seeds, ttl: SEEDS_TTL_S }
    }

    /// GET `/api/dht/topology`.
    pub fn dht_topology(&self) -> Topology {
        let there: Vec<_> = self.registry.coordinators().filter(|it| it.presence == Presence::Here).collect();
        let workers = self.workers();
        // One that does both stands there as a coordinator, with its services.
        let both: BTreeSet<NodeId> = there.iter().map(|it| it.record.writer).collect();
        let alone = |worker: &&Worker<'_>| !worker.id.parse().is_ok_and(|id: NodeId| both.contains(&id));
        let workers_alone = workers.iter().filter(alone);
        let coordinators = there.iter().take(LISTED_MAX).map(|it| {
            let id = it.record.writer.to_string();
            let services = it.node.services.iter().map(|offer| offer.name.clone()).collect();
            let (node_id, node_type) = (id.clone(), "coordinator".to_owned());
            TopologyNode { id, node_id, node_type, status: WorkerStatus::Healthy, services }
        });
        let listed = workers_alone.clone().take(LISTED_MAX);
        let nodes = listed.clone().map(|worker| TopologyNode {
            id: worker.id.clone(),
            node_id: worker.id.clone(),
            node_type: worker.type_word(),
            status: worker.status,
            services: worker.services().cloned().collect(),
        });
        let connections: Vec<Connection> = listed
            .filter_map(|worker| {
                let (coordinator, kind) = match worker.sort {
                    Sort::Guest(view) => (view.coordinator, "guest"),
                    Sort::Node(node) => (node.home?.coordinator, "home"),
                };
                Some(Connection { source_id: worker.id.clone(), target_id: coordinator.to_string(), kind })
            })
            .collect();
        let stats = TopologyStats {
            total_nodes: there.len() + workers_alone.clone().count(),
            coordinators: there.len(),
            workers: workers.len(),
            healthy_workers: workers.iter().filter(|worker| worker.is_healthy()).count(),
            connections: connections.len(),
        };
        Topology { nodes: coordinators.chain(nodes).collect(), connections, stats }
    }

    /// GET `/api/dht/stats`.
    pub fn dht_stats(&self) -> Topology {
        self.dht_topology()
    }

    fn base_port(&self) -> u16 {
        // The base URL is the operator's own: any host is fine.
        let anything = UrlPolicy { suffixes: Vec::new(), allow_private: true };
        let default = if self.base_url.starts_with("http://") { 80 } else { 443 };
        check(self.base_url, &anything).map_or(default, |target| target.port)
    }
}
