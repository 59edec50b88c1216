//! What the own port reads of those who are elsewhere: made anew when something has changed, and immutable from then on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hedgerow_http::{Candidate, Loads};
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::record::{ServiceHealth, Version};
use hedgerow_proto::registry::{GuestView, Worker};
use hedgerow_tunnel::Tunnel;
use hedgerow_urls::{Way, WhyNot};

/// So many reasons are given at most: agents have one each.
const REASONS_GIVEN_MAX: usize = 4;

/// By name of service.
type Named<T> = HashMap<ServiceName, T>;

/// Who can be asked for what.
#[derive(Default)]
pub struct Routes {
    services: Named<Arc<[Candidate]>>,
    nodes: HashMap<NodeId, Arc<Named<Candidate>>>,
    agents: HashMap<String, Agent>,
    /// How many agents offer what and get no requests.
    not_routable: Named<BTreeMap<WhyNot, usize>>,
}

/// An agent without a key of ours. Its address is nobody's business here.
struct Agent {
    /// What it offers, each with the way to it.
    offers: Result<Named<Candidate>, WhyNot>,
}

/// What a worker offers by one way: the same from one snapshot to the next, since thousands are dear to make.
pub(super) struct WorkerOffers {
    version: Version,
    way: u64,
    offers: Arc<Named<Candidate>>,
}

impl WorkerOffers {
    /// As the worker's record says, this way.
    pub(super) fn new(worker: &Worker<'_>, way: &Tunnel, loads: &Loads) -> Self {
        let id = worker.record.writer;
        let up = worker.node.services.iter().filter(|offer| offer.health == ServiceHealth::Up);
        let offers = up.map(|offer| {
            let load = loads.of(id, &offer.name);
            (offer.name.clone(), Candidate::new(&offer.name, way.clone(), offer.capacity, load))
        });
        Self { version: worker.record.version, way: way.id(), offers: Arc::new(offers.collect()) }
    }

    /// Whether neither what the worker says nor the way to it has changed.
    pub(super) fn is_of(&self, worker: &Worker<'_>, way: &Tunnel) -> bool {
        self.version == worker.record.version && self.way == way.id()
    }
}

/// [`Routes`] while they are made.
#[derive(Default)]
pub(super) struct Building {
    services: Named<Vec<Candidate>>,
    routes: Routes,
}

impl Building {
    /// A worker that can be asked.
    pub(super) fn add_worker(&mut self, id: NodeId, worker: &WorkerOffers) {
        for (name, candidate) in &*worker.offers {
            self.services.entry(name.clone()).or_default().push(candidate.clone());
        }
        self.routes.nodes.insert(id, worker.offers.clone());
    }

    /// An agent, and the way to it if there is one.
    pub(super) fn add_guest(
        &mut self,
        worker_id: &str,
        view: &GuestView<'_>,
        way: Result<&Way, WhyNot>,
        loads: &Loads,
    ) {
        let services = &view.guest.details.services;
        let offers = way.map(|way| -> Named<Candidate> {
            services.iter().map(|name| (name.clone(), way.candidate(name, loads))).collect()
        });
        match &offers {
            Ok(offers) => {
                for (name, candidate) in offers {
                    self.services.entry(name.clone()).or_default().push(candidate.clone());
                }
            }
            Err(why_not) => {
                for name in services {
                    *self.routes.not_routable.entry(name.clone()).or_default().entry(*why_not).or_default() += 1;
                }
            }
        }
        self.routes.agents.insert(worker_id.to_owned(), Agent { offers });
    }

    /// What has been seen so far, for readers.
    pub(super) fn finish(self) -> Routes {
        let services = self.services.into_iter().map(|(name, candidates)| (name, candidates.into())).collect();
        Routes { services, ..self.routes }
    }
}

impl Routes {
    /// Everybody who can be asked for the service of this very name.
    pub fn of_service(&self, name: &str) -> Option<&Arc<[Candidate]>> {
        self.services.get(name)
    }

    /// One node, if it can be asked for the service.
    pub fn of_node(&self, node: &NodeId, name: &str) -> Option<&Candidate> {
        self.nodes.get(node)?.get(name)
    }

    /// One agent, if it can be asked for the service.
    pub fn of_agent(&self, worker_id: &str, name: &str) -> Option<&Candidate> {
        self.agents.get(worker_id)?.offers.as_ref().ok()?.get(name)
    }

    /// What is known of an agent that cannot be asked, for a person; none if it is not known.
    pub fn known_of_agent(&self, worker_id: &str) -> Option<String> {
        Some(match &self.agents.get(worker_id)?.offers {
            Ok(_) => "that agent does not offer the service".into(),
            Err(why_not) => format!("that agent is registered and not routable: {why_not}"),
        })
    }

    /// Why agents that offer the service cannot be asked, for a person; none if no such agent is known.
    pub fn known_of_service(&self, name: &str) -> Option<String> {
        let reasons = self.not_routable.get(name)?.iter().take(REASONS_GIVEN_MAX);
        let reasons: Vec<String> =
            reasons.map(|(why_not, count)| format!("{count} registered and not routable: {why_not}")).collect();
        Some(reasons.join(", "))
    }
}
