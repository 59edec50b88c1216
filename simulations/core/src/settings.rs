//! What is the same for everybody in a run.

use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_sim_model::plan::Layout;
use hedgerow_sim_model::random;
use hedgerow_sim_model::scenario::{Load, Scenario};

use crate::limits;

/// The federation of every run.
pub(crate) const FEDERATION: FederationId = FederationId([0x5e; 32]);

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) layout: Layout,
    pub(crate) limits: Limits,
    pub(crate) services: Vec<ServiceName>,
    pub(crate) services_per_worker: u32,
    pub(crate) capacity: u32,
    pub(crate) elective: f64,
    pub(crate) newer_version: f64,
    pub(crate) load: Load,
}

impl Settings {
    pub(crate) fn new(scenario: &Scenario, layout: &Layout, seed: u64) -> Self {
        let population = &scenario.population;
        let names = (0..population.services).filter_map(|n| format!("service-{n}").parse().ok());
        Self {
            seed,
            layout: layout.clone(),
            limits: limits::named(population.limits),
            services: names.collect(),
            services_per_worker: population.services_per_worker,
            capacity: population.capacity,
            elective: population.elective,
            newer_version: population.newer_version,
            load: scenario.load.clone().unwrap_or_default(),
        }
    }

    /// The key of a node.
    pub(crate) fn key(&self, node: u32) -> SecretKey {
        SecretKey::from_seed(random::bytes(self.seed, "key", u64::from(node)))
    }

    /// Where a node can be dialled, in the words of its record.
    pub(crate) fn address(node: u32) -> String {
        format!("/memory/{}", node + 1)
    }

    /// And back.
    pub(crate) fn node_at(address: &str) -> Option<u32> {
        address.strip_prefix("/memory/")?.parse::<u32>().ok()?.checked_sub(1)
    }

    /// The services that a node offers: a stretch of all of them, which begins somewhere.
    pub(crate) fn services_of(&self, node: u32) -> Vec<u32> {
        let is_worker = self.layout.workers.contains(&node) || self.layout.crowd.contains(&node);
        if !is_worker {
            return Vec::new();
        }
        let all = self.services.len() as u32;
        let begins = random::stream(self.seed, "services", u64::from(node)).u32(..all.max(1));
        let mut services: Vec<u32> = (0..self.services_per_worker).map(|n| (begins + n) % all.max(1)).collect();
        services.sort_unstable_by(|one, other| self.services[*one as usize].cmp(&self.services[*other as usize]));
        services
    }

    /// A draw that is a node's own, between 0 and 1.
    pub(crate) fn draw(&self, what: &str, node: u32) -> f64 {
        random::stream(self.seed, what, u64::from(node)).f64()
    }

    /// The id of a node's own key. Which key it proves to have, the book knows: it may be another's.
    pub(crate) fn id(&self, node: u32) -> NodeId {
        self.key(node).id()
    }
}
