//! Which services a worker is asked to run.
//!
//! Eligible are the services of the worker's type (for a gpu worker those for cpu too), ordered by how many healthy workers
//! offer each and then by priority, with the worker's own earlier record left out of the count. A gpu worker takes every
//! service that nobody offers, else the first. Others take one, two or three: one when the other healthy workers of their
//! tier outnumber the eligible services, two when they reach half of them, three when they do not.

use std::collections::BTreeMap;

use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::record::{GuestStatus, ServiceHealth, WorkerType};
use hedgerow_proto::registry::{Presence, Reach, Registry};

use crate::catalogue::{Catalogue, Service};
use crate::worker_id::WorkerId;

/// How many healthy workers offer what, one of them left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    services: BTreeMap<ServiceName, usize>,
    types: BTreeMap<WorkerType, usize>,
}

impl Coverage {
    /// Counts a healthy worker.
    pub fn add<'a>(&mut self, worker_type: WorkerType, services: impl IntoIterator<Item = &'a ServiceName>) {
        *self.types.entry(worker_type).or_default() += 1;
        for service in services {
            *self.services.entry(service.clone()).or_default() += 1;
        }
    }

    /// The healthy workers that a replica of the registry knows, but for the one of this id: nodes to which there is a way,
    /// and guests whose coordinator is there and says that they are healthy.
    pub fn of(registry: &Registry, except: &WorkerId) -> Self {
        let mut coverage = Self::default();
        let own_node: Option<NodeId> = except.as_str().parse().ok();
        for worker in registry.workers() {
            if worker.reach != Reach::None && own_node != Some(worker.record.writer) {
                let up = worker.node.services.iter().filter(|offer| offer.health == ServiceHealth::Up);
                coverage.add(worker.node.hardware.worker_type, up.map(|offer| &offer.name));
            }
        }
        // One that moves from one coordinator to another may be named by both for a moment.
        let mut guests = BTreeMap::new();
        for view in registry.guests() {
            let details = &view.guest.details;
            if view.presence == Presence::Here && details.status == GuestStatus::Healthy {
                guests.insert(view.guest.worker_id.as_str(), details);
            }
        }
        guests.remove(except.as_str());
        for details in guests.into_values() {
            coverage.add(type_of(&details.worker_type), &details.services);
        }
        coverage
    }

    /// How many offer a service.
    pub fn service(&self, name: &ServiceName) -> usize {
        self.services.get(name).copied().unwrap_or(0)
    }

    /// How many are of a type.
    pub fn workers(&self, worker_type: WorkerType) -> usize {
        self.types.get(&worker_type).copied().unwrap_or(0)
    }
}

/// What an agent's own word for its type counts as: one that is none of ours is for anything that a processor does.
pub fn type_of(word: &str) -> WorkerType {
    word.parse().unwrap_or(WorkerType::Cpu)
}

/// The services for a worker of this type, the most wanted first. Empty only if the catalogue has none for it.
pub fn assign<'c>(catalogue: &'c Catalogue, worker_type: WorkerType, coverage: &Coverage) -> Vec<&'c Service> {
    let mut eligible: Vec<&Service> = catalogue.eligible(worker_type).collect();
    // A stable sort: what is equal stays in the order of the catalogue.
    eligible.sort_by_key(|service| (coverage.service(&service.name), service.priority));
    let uncovered = eligible.iter().filter(|service| coverage.service(&service.name) == 0).count();
    let others = coverage.workers(worker_type);
    let wanted = match worker_type {
        WorkerType::Gpu => uncovered.max(1),
        _ if others > eligible.len() => 1,
        _ if others * 2 >= eligible.len() => 2,
        _ => 3,
    };
    eligible.truncate(wanted);
    eligible
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(services: &[&Service]) -> Vec<String> {
        services.iter().map(|service| service.name.to_string()).collect()
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    /// What workers that come one after the other are asked to run.
    fn arrivals(types: &[WorkerType]) -> Vec<String> {
        let mut coverage = Coverage::default();
        let step = |worker_type: &WorkerType| {
            let assigned = assign(Catalogue::built_in(), *worker_type, &coverage);
            coverage.add(*worker_type, assigned.iter().map(|service| &service.name));
            names(&assigned).join(" ")
        };
        types.iter().map(step).collect()
    }

    #[test]
    fn the_first_gpu_worker_takes_all_that_nobody_offers_and_the_next_one_the_most_urgent() {
        use WorkerType::{Cpu, Gpu};
        assert_eq!(
            arrivals(&[Gpu, Gpu, Gpu]),
            [
                "llm-inference vision-ocr rag-embeddings ner-extraction document-processing notes-coa",
                "llm-inference",
                "vision-ocr"
            ]
        );
        assert_eq!(
            arrivals(&[Cpu, Gpu]),
            ["ner-extraction document-processing notes-coa", "llm-inference vision-ocr rag-embeddings"]
        );
    }

    #[test]
    fn cpu_workers_take_three_then_two_then_one() {
        // Three services: nobody yet; one is fewer than half; two and three reach it; four outnumber them.
        assert_eq!(
            arrivals(&[WorkerType::Cpu; 5]),
            [
                "ner-extraction document-processing notes-coa",
                "ner-extraction document-processing notes-coa",
                "ner-extraction document-processing",
                "notes-coa ner-extraction",
                "document-processing"
            ]
        );
    }

    #[test]
    fn storage_workers_take_what_is_covered_least() {
        assert_eq!(
            arrivals(&[WorkerType::Storage; 4]),
            ["chromadb redis postgres", "minio neo4j chromadb", "redis postgres minio", "neo4j chromadb"]
        );
    }

    #[test]
    fn edges_count_only_edges() {
        let mut coverage = Coverage::default();
        for _ in 0..9 {
            coverage.add(WorkerType::Cpu, []);
        }
        let assigned = assign(Catalogue::built_in(), WorkerType::Edge, &coverage);
        assert_eq!(names(&assigned), ["coordinator", "edge-proxy", "load-balancer"]);
    }

    #[test]
    fn a_catalogue_without_services_for_a_type_assigns_none() {
        assert!(assign(&Catalogue::parse("").unwrap(), WorkerType::Gpu, &Coverage::default()).is_empty());
    }

    fn any_coverage() -> impl Strategy<Value = Coverage> {
        let all = Catalogue::built_in().services();
        let services = proptest::collection::vec(0..all.len(), 0..6);
        let worker = (proptest::sample::select(&WorkerType::ALL[..]), services);
        proptest::collection::vec(worker, 0..12).prop_map(|workers| {
            let mut coverage = Coverage::default();
            for (worker_type, mut services) in workers {
                services.sort_unstable();
                services.dedup();
                coverage.add(worker_type, services.into_iter().map(|at| &all[at].name));
            }
            coverage
        })
    }

    proptest! {
        #[test]
        fn every_type_gets_something_that_it_is_eligible_for_each_once_and_always_the_same(coverage in any_coverage()) {
            let catalogue = Catalogue::built_in();
            for worker_type in WorkerType::ALL {
                let assigned = assign(catalogue, worker_type, &coverage);
                prop_assert!(!assigned.is_empty());
                prop_assert_eq!(&assigned, &assign(catalogue, worker_type, &coverage.clone()));
                for service in &assigned {
                    prop_assert!(catalogue.eligible(worker_type).any(|eligible| eligible == *service));
                    prop_assert_eq!(assigned.iter().filter(|other| other.name == service.name).count(), 1);
                }
                // Nothing that was left out is wanted more than what was taken.
                let key = |service: &Service| (coverage.service(&service.name), service.priority);
                let last = assigned.iter().map(|service| key(service)).max();
                for service in catalogue.eligible(worker_type).filter(|service| !assigned.contains(service)) {
                    prop_assert!(Some(key(service)) >= last);
                }
            }
        }

        #[test]
        fn a_gpu_worker_takes_all_uncovered_or_exactly_one(coverage in any_coverage()) {
            let catalogue = Catalogue::built_in();
            let assigned = assign(catalogue, WorkerType::Gpu, &coverage);
            let uncovered = catalogue.eligible(WorkerType::Gpu).filter(|s| coverage.service(&s.name) == 0).count();
            prop_assert_eq!(assigned.len(), uncovered.max(1));
        }

        #[test]
        fn more_workers_of_a_tier_never_mean_more_services_for_the_next(coverage in any_coverage(), more in 0..9_usize) {
            for worker_type in [WorkerType::Cpu, WorkerType::Storage, WorkerType::Edge] {
                let mut larger = coverage.clone();
                (0..more).for_each(|_| larger.add(worker_type, []));
                let count = |coverage| assign(Catalogue::built_in(), worker_type, coverage).len();
                prop_assert!(count(&larger) <= count(&coverage));
                prop_assert!((1..=3).contains(&count(&coverage)));
            }
        }
    }

    #[test]
    fn a_type_that_is_none_of_ours_counts_as_cpu() {
        assert_eq!((type_of("GPU"), type_of("tpu")), (WorkerType::Gpu, WorkerType::Cpu));
        assert_eq!(Coverage::default().service(&name("x")), 0);
    }
}
