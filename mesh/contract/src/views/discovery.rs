//! What clients ask: is anybody there, who offers a service, which services are there.

use std::collections::BTreeMap;

use hedgerow_proto::id::ServiceName;
use hedgerow_proto::registry::Presence;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Views, Worker};
use crate::error::ContractError;

/// Workers in the answer to a discovery at most: a client tries a few, the least loaded first.
const DISCOVERED_MAX: usize = 100;

/// GET `/health`: 200 as long as the process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `healthy`.
    pub status: &'static str,
    /// How many coordinators are there.
    pub coordinators: usize,
    /// What is there, for people.
    pub message: String,
}

/// GET `/api/services/discover/{service}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Discovery {
    /// The name that was asked for.
    pub service: String,
    /// Healthy workers that offer it and that requests can reach, the least loaded first.
    pub workers: Vec<Discovered>,
    /// How many stand there.
    pub count: usize,
    /// The first of them.
    pub recommended: Discovered,
}

/// A worker that offers a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Discovered {
    /// Its id.
    pub worker_id: String,
    /// Where its service is reached: a URL under whoever answers.
    pub tunnel_url: String,
    /// What it runs on.
    pub capabilities: Map<String, Value>,
    /// How busy it is, from 0 to 1.
    pub load: f64,
    /// When it showed that it is alive, in ms since the Unix epoch.
    pub last_heartbeat: u64,
}

/// GET `/api/worker/find/{service}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Where the least loaded worker's service is reached: a URL under whoever answers.
    pub worker_url: String,
}

/// GET `/api/services/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServicesList {
    /// Every service that somebody offers, in order of name.
    pub services: Vec<ServiceCount>,
    /// How many there are.
    pub count: usize,
}

/// A service, and how many offer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceCount {
    /// Its name.
    pub name: ServiceName,
    /// How many workers offer it.
    pub workers: usize,
    /// How many of them are healthy.
    pub healthy: usize,
}

impl Views<'_> {
    /// GET `/health`.
    pub fn health(&self) -> Health {
        let coordinators = self.registry.coordinators().filter(|it| it.presence == Presence::Here).count();
        let workers = self.workers();
        let healthy = workers.iter().filter(|worker| worker.is_healthy()).count();
        let plural = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
        let message = match workers.len() {
            0 => format!("{}, and no worker is known", plural(coordinators, "coordinator")),
            all => {
                format!("{}, and {healthy} of {} healthy", plural(coordinators, "coordinator"), plural(all, "worker"))
            }
        };
        Health { status: "healthy", coordinators, message }
    }

    /// GET `/api/services/discover/{service}`: 503 where nobody can be offered.
    pub fn discover(&self, service: &ServiceName) -> Result<Discovery, ContractError> {
        let (name, workers) = self.offering(service);
        let workers: Vec<Discovered> = workers
            .into_iter()
            .take(DISCOVERED_MAX)
            .map(|worker| Discovered {
                tunnel_url: format!("{}/{name}", self.worker_url(&worker.id)),
                capabilities: worker.capabilities(),
                load: worker.load(),
                last_heartbeat: worker.seen_ms,
                worker_id: worker.id,
            })
            .collect();
        let recommended = workers.first().cloned().ok_or_else(|| nobody(service))?;
        Ok(Discovery { service: service.to_string(), count: workers.len(), workers, recommended })
    }

    /// GET `/api/worker/find/{service}`: 503 where nobody can be offered.
    pub fn find(&self, service: &ServiceName) -> Result<Found, ContractError> {
        let (name, workers) = self.offering(service);
        let worker = workers.into_iter().next().ok_or_else(|| nobody(service))?;
        Ok(Found { worker_url: format!("{}/{name}", self.worker_url(&worker.id)) })
    }

    /// GET `/api/services/list`.
    pub fn services_list(&self) -> ServicesList {
        let mut counts: BTreeMap<&ServiceName, (usize, usize)> = BTreeMap::new();
        for worker in self.workers() {
            for service in worker.services() {
                let (all, healthy) = counts.entry(service).or_default();
                *all += 1;
                *healthy += usize::from(worker.is_healthy());
            }
        }
        let services: Vec<ServiceCount> = counts
            .into_iter()
            .map(|(name, (workers, healthy))| ServiceCount { name: name.clone(), workers, healthy })
            .collect();
        ServicesList { count: services.len(), services }
    }

    /// The healthy workers that offer a service and can be reached, the least loaded first. A service of the name itself
    /// comes before the one that the name is an alias of.
    fn offering<'s>(&'s self, service: &'s ServiceName) -> (&'s ServiceName, Vec<Worker<'s>>) {
        let mut workers = self.workers();
        workers.retain(|worker| worker.is_healthy() && worker.reachable);
        let name = match workers.iter().any(|worker| worker.offers(service)) {
            true => service,
            false => self.catalogue.resolve(service),
        };
        workers.retain(|worker| worker.offers(name));
        workers.sort_by(|a, b| a.load().total_cmp(&b.load()).then_with(|| a.id.cmp(&b.id)));
        (name, workers)
    }
}

fn nobody(service: &ServiceName) -> ContractError {
    ContractError::NobodyOffers { service: service.to_string() }
}
