//! The registry as this node sees it, as JSON, in the shape in which the entries show theirs. No addresses.

use std::collections::BTreeMap;

use hedgerow_proto::record::{NodeRecord, Record, ServiceHealth};
use hedgerow_proto::registry::{Presence, Reach, Registry};
use serde::Serialize;

use crate::node::role_word;

/// `GET /mesh/registry`.
#[derive(Debug, Default, Serialize)]
pub struct RegistryView {
    /// Equal digests mean equal registries. None before the node is in a federation.
    digest: Option<String>,
    coordinators: Vec<NodeView>,
    workers: Vec<NodeView>,
    services: BTreeMap<String, ServiceView>,
}

#[derive(Debug, Serialize)]
struct NodeView {
    node_id: String,
    roles: &'static str,
    location: String,
    version: String,
    state: &'static str,
    services: Vec<OfferView>,
}

#[derive(Debug, Serialize)]
struct OfferView {
    name: String,
    capacity: u32,
    health: &'static str,
}

#[derive(Debug, Default, Serialize)]
struct ServiceView {
    offers: usize,
    routable: usize,
}

impl RegistryView {
    /// What a registry holds now.
    pub fn of(registry: &Registry) -> Self {
        let mut services: BTreeMap<String, ServiceView> = BTreeMap::new();
        for worker in registry.workers() {
            for offer in &worker.node.services {
                let service = services.entry(offer.name.to_string()).or_default();
                service.offers += 1;
                let routable = offer.health == ServiceHealth::Up && worker.reach != Reach::None;
                service.routable += usize::from(routable);
            }
        }
        let coordinators = registry
            .coordinators()
            .map(|coordinator| view(coordinator.record, coordinator.node, coordinator.presence == Presence::Here));
        let workers = registry.workers().map(|worker| view(worker.record, worker.node, worker.reach != Reach::None));
        Self {
            digest: Some(registry.digest().to_string()),
            coordinators: coordinators.collect(),
            workers: workers.collect(),
            services,
        }
    }
}

fn view(record: &Record, node: &NodeRecord, here: bool) -> NodeView {
    let offer = |offer: &hedgerow_proto::record::ServiceOffer| OfferView {
        name: offer.name.to_string(),
        capacity: offer.capacity,
        health: match offer.health {
            ServiceHealth::Up => "up",
            ServiceHealth::Down => "down",
        },
    };
    NodeView {
        node_id: record.writer.to_string(),
        roles: role_word(node.roles),
        location: node.location.clone(),
        version: node.version.clone(),
        state: if here { "up" } else { "away" },
        services: node.services.iter().map(offer).collect(),
    }
}
