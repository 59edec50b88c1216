//! What dashboards ask: the workers, the coordinators, and a few numbers.

use std::collections::BTreeMap;

use hedgerow_proto::id::ServiceName;
use hedgerow_proto::record::WorkerType;
use hedgerow_proto::registry::Presence;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{LISTED_MAX, Views, Worker, WorkerStatus};

/// GET `/api/admin/workers`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdminWorkers {
    /// The workers, at most [`LISTED_MAX`] of them.
    pub workers: Vec<AdminWorker>,
    /// How many there are.
    pub total: usize,
    /// How many of them are healthy.
    pub healthy: usize,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdminWorker {
    /// Its id.
    pub worker_id: String,
    /// Its type, in its own word.
    pub worker_type: String,
    /// The tier of its type: 1 to 4.
    pub tier: u8,
    /// How it does.
    pub status: WorkerStatus,
    /// Where its services are reached: a URL under whoever answers.
    pub tunnel_url: String,
    /// Where it says it is.
    pub location: String,
    /// The services that it offers.
    pub services: Vec<ServiceName>,
    /// What it runs on.
    pub capabilities: Map<String, Value>,
    /// How busy it is, from 0 to 1.
    pub load: f64,
    /// When it came, in ms since the Unix epoch.
    pub registered_at: u64,
    /// When it showed that it is alive, in ms since the Unix epoch.
    pub last_heartbeat: u64,
}

/// One in the answer to GET `/api/admin/coordinators`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdminCoordinator {
    /// Its id.
    pub worker_id: String,
    /// Where the calls of a coordinator are answered: by whoever answers this one.
    pub tunnel_url: String,
    /// Where it says it is.
    pub location: String,
    /// When it came, in ms since the Unix epoch.
    pub registered_at: u64,
    /// When it showed that it is there, in ms since the Unix epoch.
    pub last_seen: u64,
}

/// GET `/api/admin/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdminStats {
    /// How many workers there are.
    pub total_workers: usize,
    /// How many of them are healthy.
    pub healthy_workers: usize,
    /// How many there are of each tier, `"1"` to `"4"`.
    pub by_tier: BTreeMap<String, usize>,
    /// Requests that workers have answered.
    pub total_tasks_completed: u64,
}

impl Views<'_> {
    /// GET `/api/admin/workers`.
    pub fn admin_workers(&self) -> AdminWorkers {
        let workers = self.workers();
        let (total, healthy) = (workers.len(), workers.iter().filter(|worker| worker.is_healthy()).count());
        let workers = workers.into_iter().take(LISTED_MAX).map(|worker| self.admin_worker(worker)).collect();
        AdminWorkers { workers, total, healthy }
    }

    fn admin_worker(&self, worker: Worker<'_>) -> AdminWorker {
        AdminWorker {
            tunnel_url: self.worker_url(&worker.id),
            worker_type: worker.type_word(),
            tier: worker.kind().tier(),
            status: worker.status,
            location: worker.location(),
            services: worker.services().cloned().collect(),
            capabilities: worker.capabilities(),
            load: worker.load(),
            registered_at: worker.since_ms,
            last_heartbeat: worker.seen_ms,
            worker_id: worker.id,
        }
    }

    /// GET `/api/admin/coordinators`: those that are there, and the healthy edges, which were told that they are
    /// coordinators.
    pub fn admin_coordinators(&self) -> Vec<AdminCoordinator> {
        let there = self.registry.coordinators().filter(|it| it.presence == Presence::Here);
        let coordinators = there.map(|it| AdminCoordinator {
            worker_id: it.record.writer.to_string(),
            tunnel_url: self.base_url.to_owned(),
            location: it.node.location.clone(),
            registered_at: self.unix_now_ms,
            last_seen: self.unix_now_ms,
        });
        let guests = self.guests().into_iter().map(|view| self.guest(view));
        let edges = guests.filter(|guest| guest.is_healthy() && guest.kind() == WorkerType::Edge);
        let edges = edges.map(|edge| AdminCoordinator {
            tunnel_url: self.worker_url(&edge.id),
            location: edge.location(),
            registered_at: edge.since_ms,
            last_seen: edge.seen_ms,
            worker_id: edge.id,
        });
        coordinators.chain(edges).take(LISTED_MAX).collect()
    }

    /// GET `/api/admin/stats`.
    pub fn admin_stats(&self) -> AdminStats {
        let mut by_tier: BTreeMap<String, usize> = WorkerType::ALL.map(|it| (it.tier().to_string(), 0)).into();
        let workers = self.workers();
        for worker in &workers {
            *by_tier.entry(worker.kind().tier().to_string()).or_default() += 1;
        }
        AdminStats {
            total_workers: workers.len(),
            healthy_workers: workers.iter().filter(|worker| worker.is_healthy()).count(),
            by_tier,
            total_tasks_completed: self.tasks_completed,
        }
    }
}
