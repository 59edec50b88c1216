//! Kademlia: which coordinators may know providers of a service. Hints only. Who there is, the registry knows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::registry;
use libp2p::Swarm;
use libp2p::kad::store::{MemoryStore, RecordStore};
use libp2p::kad::{self, Event, GetProvidersOk, InboundRequest, QueryId, QueryResult, RecordKey};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tracing::{debug, trace};

use super::behaviour::Behaviour;
use super::frugal::Frugal;
use super::{Host, Registry, node_id, parsed, peer_id};

/// How often Kademlia's tables are compared with the registry. Not at once: who has just met the first coordinator does not know
/// yet whom there is.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Services that this node says to know providers of.
const PROVIDED_MAX: usize = 256;
/// Questions about providers at once.
const QUESTIONS_MAX: usize = 64;

/// What is asked, and what is said.
#[derive(Default)]
pub(super) struct Queries {
    providers: HashMap<QueryId, (BTreeSet<NodeId>, oneshot::Sender<Vec<NodeId>>)>,
    provided: BTreeSet<ServiceName>,
    /// Whom Kademlia has been told of, and where they can be dialled.
    told: BTreeMap<NodeId, Vec<String>>,
    /// The generation of the registry's nodes that it has been told.
    seen: Option<u64>,
    look_at: Option<Time>,
}

impl Host {
    fn provider_key(&self, service: &ServiceName) -> RecordKey {
        // The protocol's name holds the federation already.
        RecordKey::new(&Sha256::new().chain_update(b"hedgerow-service-v1\0").chain_update(service.as_str()).finalize())
    }

    /// Tells Kademlia of the coordinators in the registry that can be dialled, if it is time and they have changed. It never has to
    /// look for them: its own way, walks over the network, would open a connection to nearly everybody.
    pub(super) fn look_at_kademlia(&mut self) {
        let Some(Registry { replica, .. }) = &self.registry else { return };
        let Queries { told, seen, look_at, .. } = &mut self.queries;
        let now = replica.now();
        if *look_at.get_or_insert(now + LOOK_INTERVAL) > now {
            return;
        }
        *look_at = Some(now + LOOK_INTERVAL);
        let news = replica.read(|registry| {
            let generation = registry.nodes_generation();
            (seen.replace(generation) != Some(generation)).then(|| difference(registry, told))
        });
        let Some(kad) = tables(&mut self.swarm) else { return };
        for (node, addresses) in news.into_iter().flatten() {
            let Some(peer) = peer_id(node) else { continue };
            // What it has moved away from must not stay.
            kad.remove_peer(&peer);
            for address in parsed(&addresses) {
                kad.add_address(&peer, address);
            }
            match addresses.is_empty() {
                true => told.remove(&node),
                false => told.insert(node, addresses),
            };
        }
    }

    /// Says which services this node knows providers of.
    pub(super) fn provide(&mut self, services: &[ServiceName]) {
        let wanted: BTreeSet<ServiceName> = services.iter().take(PROVIDED_MAX).cloned().collect();
        let (old, new): (Vec<_>, Vec<_>) = (
            self.queries.provided.difference(&wanted).map(|name| self.provider_key(name)).collect(),
            wanted.difference(&self.queries.provided).map(|name| self.provider_key(name)).collect(),
        );
        let Some(kad) = tables(&mut self.swarm) else { return };
        for key in old {
            kad.stop_providing(&key);
        }
        for key in new {
            if let Err(error) = kad.start_providing(key) {
                debug!(%error, "a service is not announced by Kademlia");
            }
        }
        self.queries.provided = wanted;
    }

    /// Asks who provides a service.
    pub(super) fn find_providers(&mut self, service: &ServiceName, answer: oneshot::Sender<Vec<NodeId>>) {
        self.queries.providers.retain(|_, (_, answer)| !answer.is_closed());
        let key = self.provider_key(service);
        let room = self.queries.providers.len() < QUESTIONS_MAX;
        if let Some(kad) = tables(&mut self.swarm).filter(|_| room) {
            let query = kad.get_providers(key);
            self.queries.providers.insert(query, (BTreeSet::new(), answer));
        }
    }

    pub(super) fn on_kademlia(&mut self, event: Event) {
        match event {
            Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                // Whoever says so must be a coordinator that is connected: the store is bounded, and not for strangers.
                let friend = node_id(&record.provider).is_some_and(|node| self.is_neighbour(&node));
                if let Some(kad) = tables(&mut self.swarm).filter(|_| friend)
                    && let Err(error) = kad.store_mut().add_provider(record)
                {
                    debug!(%error, "a provider is not remembered");
                }
            }
            Event::OutboundQueryProgressed { id, result: QueryResult::GetProviders(result), step, .. } => {
                if let Ok(GetProvidersOk::FoundProviders { providers, .. }) = result
                    && let Some((found, _)) = self.queries.providers.get_mut(&id)
                {
                    found.extend(providers.iter().filter_map(node_id));
                }
                if step.last
                    && let Some((found, answer)) = self.queries.providers.remove(&id)
                {
                    // Whoever asked may have gone.
                    let _ = answer.send(found.into_iter().filter(|node| peer_id(*node).is_some()).collect());
                }
            }
            other => trace!(event = ?other, "kademlia"),
        }
    }
}

/// Kademlia, where this node has a part in it.
fn tables(swarm: &mut Swarm<Behaviour>) -> Option<&mut kad::Behaviour<MemoryStore>> {
    swarm.behaviour_mut().kad.as_mut().map(|Frugal(kad)| kad)
}

/// Who can be dialled elsewhere than `told`, and where: nowhere, if it is gone.
fn difference(registry: &registry::Registry, told: &BTreeMap<NodeId, Vec<String>>) -> Vec<(NodeId, Vec<String>)> {
    let dialable: BTreeMap<NodeId, &[String]> =
        registry.coordinator_nodes().map(|(id, node)| (id, node.multiaddrs.as_slice())).collect();
    let gone = told.keys().filter(|node| !dialable.contains_key(node)).map(|node| (*node, Vec::new()));
    let moved =
        dialable.iter().filter(|(node, addresses)| told.get(node).map_or(&[][..], Vec::as_slice) != **addresses);
    gone.chain(moved.map(|(node, addresses)| (*node, addresses.to_vec()))).collect()
}
