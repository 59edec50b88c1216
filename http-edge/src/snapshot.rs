//! What routing reads: who offers what, made anew when something has changed, and immutable from then on.
//!
//! Each thread has lists of its own, since it prefers the connections that it holds itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hedgerow_http::{Candidate, Loads, Offer};
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::record::{NodeRecord, ServiceHealth};
use hedgerow_proto::route::{ServicePolicy, Target};
use hedgerow_tunnel::Tunnel;

use crate::members::{Lane, Member, Members};

/// The federation as it was at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Every node with a tunnel here, in order of id.
    pub(crate) nodes: Vec<NodeView>,
    /// How many of them hold the registry.
    pub(crate) coordinators: usize,
    /// How many of them offer services.
    pub(crate) workers: usize,
    /// Tunnels' connections, all nodes together.
    pub(crate) lanes: usize,
    services: BTreeMap<ServiceName, Standing>,
    shards: Vec<Routes>,
}

/// A node with a tunnel here.
#[derive(Debug)]
pub(crate) struct NodeView {
    pub(crate) id: NodeId,
    pub(crate) record: NodeRecord,
    pub(crate) leaving: bool,
}

/// How many offer a service, and how many of those cannot be asked.
#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    offers: usize,
    down: usize,
    leaving: usize,
    not_allowed: usize,
}

/// The candidates as one thread sees them.
#[derive(Debug, Default)]
struct Routes {
    services: Named<Arc<[Candidate]>>,
    nodes: HashMap<NodeId, Named<Arc<[Candidate]>>>,
}

/// By name of service.
type Named<T> = HashMap<ServiceName, T>;

/// Other names of services.
pub(crate) type Aliases = BTreeMap<ServiceName, ServiceName>;

impl Snapshot {
    /// Of the members as they are now, for this many threads.
    pub(crate) fn new(
        members: &Members<Tunnel>,
        loads: &Loads,
        policy: &dyn ServicePolicy,
        aliases: &Aliases,
        shards: usize,
    ) -> Self {
        let mut all: Vec<(&NodeId, &Member<Tunnel>)> = members.iter().collect();
        all.sort_unstable_by_key(|(id, _)| **id);
        let mut snapshot = Self::default();
        let mut by_service: Vec<Named<Vec<Candidate>>> = vec![HashMap::new(); shards];
        let mut by_node: Vec<HashMap<NodeId, Named<Arc<[Candidate]>>>> = vec![HashMap::new(); shards];
        for (id, member) in all {
            snapshot.see(*id, member);
            for offer in &member.record.services {
                let standing = snapshot.services.entry(offer.name.clone()).or_default();
                standing.offers += 1;
                if member.leaving {
                    standing.leaving += 1;
                    continue;
                }
                if offer.health == ServiceHealth::Down {
                    standing.down += 1;
                    continue;
                }
                let may_answer = policy.may_answer(id, &offer.name);
                standing.not_allowed += usize::from(!may_answer);
                let load = loads.of(*id, &offer.name);
                for shard in 0..shards {
                    let Some(lane) = preferred(member, shard) else { continue };
                    let candidate = Candidate::new(&offer.name, lane.connection.clone(), offer.capacity, load.clone());
                    let alone = [candidate.clone()].into();
                    by_node[shard].entry(*id).or_default().insert(offer.name.clone(), alone);
                    if may_answer {
                        by_service[shard].entry(offer.name.clone()).or_default().push(candidate);
                    }
                }
            }
        }
        for (services, nodes) in by_service.into_iter().zip(by_node) {
            let mut services: Named<Arc<[Candidate]>> =
                services.into_iter().map(|(name, candidates)| (name, candidates.into())).collect();
            for (alias, name) in aliases {
                // A service of the name itself comes first.
                if let Some(candidates) = services.get(name).filter(|_| !services.contains_key(alias)).cloned() {
                    services.insert(alias.clone(), candidates);
                }
            }
            snapshot.shards.push(Routes { services, nodes });
        }
        snapshot
    }

    fn see(&mut self, id: NodeId, member: &Member<Tunnel>) {
        self.coordinators += usize::from(member.record.roles.coordinates() && !member.leaving);
        self.workers += usize::from(member.record.roles.works() && !member.leaving);
        self.lanes += member.lanes().len();
        self.nodes.push(NodeView { id, record: member.record.clone(), leaving: member.leaving });
    }

    /// Who can be asked, as this thread sees it.
    pub(crate) fn find(&self, shard: usize, target: &Target<'_>) -> Option<Offer> {
        let routes = self.shards.get(shard)?;
        let name = target.service();
        let found = match target {
            Target::Service { .. } => routes.services.get_key_value(name),
            Target::Node { node, .. } => routes.nodes.get(node)?.get_key_value(name),
            // A node of ours registers under its id.
            Target::Worker { worker, .. } => routes.nodes.get(&worker.parse().ok()?)?.get_key_value(name),
        };
        found.map(|(service, candidates)| Offer { service: service.clone(), candidates: candidates.clone() })
    }

    /// Whether no node has a tunnel here.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The services that somebody offers, with how many nodes do.
    pub(crate) fn services(&self) -> impl Iterator<Item = (&ServiceName, usize, usize)> {
        self.services
            .iter()
            .map(|(name, standing)| (name, standing.offers, standing.offers - standing.down - standing.leaving))
    }

    /// What is known about a target that nobody can answer for.
    pub(crate) fn known(&self, aliases: &Aliases, target: &Target<'_>) -> String {
        let node = match target {
            Target::Service { service } => return self.known_service(aliases, service),
            Target::Node { node, .. } => Some(*node),
            Target::Worker { worker, .. } => worker.parse().ok(),
        };
        match node.and_then(|node| self.nodes.iter().find(|view| view.id == node)) {
            Some(view) if view.leaving => "that node is leaving".into(),
            Some(view) => {
                let offered = view.record.services.iter();
                match offered.clone().find(|offer| offer.name.as_str() == target.service()) {
                    Some(_) => "that node says that the service is down".into(),
                    None => format!("that node offers {}", list(offered.map(|offer| &offer.name))),
                }
            }
            None => "no node of that id has a tunnel to this entry".into(),
        }
    }

    fn known_service(&self, aliases: &Aliases, service: &str) -> String {
        let name = if self.services.contains_key(service) { service } else { resolve(aliases, service) };
        let alias = if name == service { String::new() } else { format!("{service} stands for {name}; ") };
        let Some(standing) = self.services.get(name) else {
            let offered = match self.services.len() {
                0 if self.nodes.is_empty() => "no node has a tunnel to this entry yet".into(),
                0 => "no node offers anything".into(),
                _ => format!("no node has named it; offered here: {}", list(self.services.keys())),
            };
            return alias + &offered;
        };
        let mut reasons = Vec::new();
        for (count, reason) in [
            (standing.down, "where it is down"),
            (standing.leaving, "leaving"),
            (standing.not_allowed, "not allowed to answer for the bare name"),
        ] {
            if count > 0 {
                reasons.push(format!("{count} {reason}"));
            }
        }
        format!("{alias}known to {} here: {}", nodes(standing.offers), reasons.join(", "))
    }
}

/// The connection that a thread uses for a node: its own, else one of the others, the same one each time.
fn preferred(member: &Member<Tunnel>, shard: usize) -> Option<&Lane<Tunnel>> {
    let own = member.lanes().find(|lane| lane.shard == shard);
    own.or_else(|| member.lanes().nth(shard % member.lanes().len().max(1)))
}

fn resolve<'a>(aliases: &'a Aliases, service: &'a str) -> &'a str {
    aliases.get(service).map_or(service, ServiceName::as_str)
}

fn nodes(count: usize) -> String {
    if count == 1 { "1 node".into() } else { format!("{count} nodes") }
}

/// Names for a person: not all of a thousand.
fn list<'a>(names: impl ExactSizeIterator<Item = &'a ServiceName>) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let mut text = names.take(SHOWN).map(ServiceName::as_str).collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        text = "nothing".into();
    }
    if more > 0 { format!("{text} and {more} more") } else { text }
}
