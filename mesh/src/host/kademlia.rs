//! Kademlia: where further coordinators are, and which of them may know providers of a service. Hints only.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::record::Record;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{Event, GetProvidersOk, InboundRequest, QueryId, QueryResult, RecordKey};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tracing::{debug, trace};

use super::{Host, Registry, node_id, parsed, peer_id};

/// When the neighbourhood is looked at after the first coordinator was met: one look at joining would see it alone.
const FIRST_LOOKS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];
/// Services that this node says to know providers of.
const PROVIDED_MAX: usize = 256;
/// Questions about providers at once.
const QUESTIONS_MAX: usize = 64;

/// What is asked, and what is said.
#[derive(Default)]
pub(super) struct Queries {
    providers: HashMap<QueryId, (BTreeSet<NodeId>, oneshot::Sender<Vec<NodeId>>)>,
    provided: BTreeSet<ServiceName>,
    met_first: Option<Time>,
    looks: usize,
}

impl Host {
    fn provider_key(&self, service: &ServiceName) -> RecordKey {
        // The protocol's name holds the federation already.
        RecordKey::new(&Sha256::new().chain_update(b"hedgerow-service-v1\0").chain_update(service.as_str()).finalize())
    }

    /// Tells Kademlia of the coordinators that are connected, at the addresses that they have signed, if it is time.
    pub(super) fn look_at_kademlia(&mut self) {
        let Some(Registry { replica, peering, .. }) = &self.registry else { return };
        if self.queries.looks == FIRST_LOOKS.len() || peering.coordinators().is_empty() {
            return;
        }
        let now = replica.now();
        let met_first = *self.queries.met_first.get_or_insert(now);
        let due = FIRST_LOOKS.iter().take_while(|after| met_first + **after <= now).count();
        if due <= self.queries.looks {
            return;
        }
        self.queries.looks = due;
        let connected: Vec<_> = replica.read(|registry| {
            let record = |node: &NodeId| registry.node(node).and_then(Record::node);
            let signed = |node: &NodeId| {
                record(node).filter(|node| node.roles.coordinates()).map(|node| parsed(&node.multiaddrs))
            };
            peering.coordinators().iter().filter_map(|node| Some((peer_id(*node)?, signed(node)?))).collect()
        });
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        for (peer, addresses) in connected {
            for address in addresses {
                kad.add_address(&peer, address);
            }
        }
        if let Err(error) = kad.bootstrap() {
            debug!(%error, "no look at the neighbourhood");
        }
    }

    /// Says which services this node knows providers of.
    pub(super) fn provide(&mut self, services: &[ServiceName]) {
        let wanted: BTreeSet<ServiceName> = services.iter().take(PROVIDED_MAX).cloned().collect();
        let (old, new): (Vec<_>, Vec<_>) = (
            self.queries.provided.difference(&wanted).map(|name| self.provider_key(name)).collect(),
            wanted.difference(&self.queries.provided).map(|name| self.provider_key(name)).collect(),
        );
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
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
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut().filter(|_| room) {
            let query = kad.get_providers(key);
            self.queries.providers.insert(query, (BTreeSet::new(), answer));
        }
    }

    pub(super) fn on_kademlia(&mut self, event: Event) {
        match event {
            Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                // Whoever says so must be a coordinator that is connected: the store is bounded, and not for strangers.
                let friend = node_id(&record.provider).is_some_and(|node| self.is_neighbour(&node));
                if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut().filter(|_| friend)
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
