//! What routing reads: who offers what, made anew when something has changed, and immutable from then on.
//!
//! Each thread has lists of its own, since it prefers the connections that it holds itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hedgerow_http::{Candidate, Loads, Offer};
use hedgerow_proto::home::roster::COORDINATORS_TOLD_MAX;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::members::Lane;
use hedgerow_proto::offers::{self, NodeState, Way as NodeWay};
use hedgerow_proto::record::{NodeRecord, ServiceHealth, Signed};
use hedgerow_proto::registry::{Digest, GuestView, Presence, Registry};
use hedgerow_proto::route::{ServicePolicy, Target};
use hedgerow_tunnel::relays::Relays;
use hedgerow_tunnel::{Transport, Tunnel};
use hedgerow_urls::{self as urls, ByGuest, Ways, WhyNot};

use crate::federation::{Member, Members};

/// The federation as it was at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// The digest of the registry.
    pub(crate) digest: Option<Digest>,
    /// Every node that the registry shows, in order of id.
    pub(crate) nodes: Vec<NodeView>,
    /// Every agent without a key of ours that the registry shows.
    pub(crate) guests: ByGuest<GuestEntry>,
    /// The coordinators that are there, in order of id.
    pub(crate) coordinators: Vec<CoordinatorView>,
    /// How many nodes have a tunnel here, the leaving ones left out.
    pub(crate) up: usize,
    /// How many of those hold the registry.
    pub(crate) coordinators_up: usize,
    /// How many of those offer services.
    pub(crate) workers_up: usize,
    /// Connections of tunnels, all nodes together.
    pub(crate) lanes: BTreeMap<Transport, usize>,
    /// `/mesh/registry`, written once it is asked for.
    pub(crate) registry_page: OnceLock<Bytes>,
    services: BTreeMap<ServiceName, Standing>,
    shards: Vec<Routes>,
}

/// What a snapshot is made from.
pub(crate) struct Sources<'a> {
    /// Who has a tunnel here.
    pub(crate) members: &'a Members,
    /// What everybody has said.
    pub(crate) registry: &'a Registry,
    /// The ways to workers that have no tunnel here; those that are needed are kept.
    pub(crate) relays: &'a mut Relays,
    /// The ways to guests.
    pub(crate) ways: &'a Ways,
}

/// A node.
#[derive(Debug)]
pub(crate) struct NodeView {
    pub(crate) id: NodeId,
    pub(crate) record: NodeRecord,
    pub(crate) state: NodeState,
}

/// An agent without a key of ours. Its address is nobody's business here.
#[derive(Debug)]
pub(crate) struct GuestEntry {
    pub(crate) services: Vec<ServiceName>,
    /// Whether it gets requests.
    pub(crate) routable: Result<(), WhyNot>,
}

/// A coordinator, in its own words.
#[derive(Debug)]
pub(crate) struct CoordinatorView {
    pub(crate) id: NodeId,
    pub(crate) signed: Signed,
    pub(crate) multiaddrs: Vec<String>,
}

/// How many offer a service, and how many of those cannot be asked.
#[derive(Debug, Default)]
struct Standing {
    offers: usize,
    down: usize,
    leaving: usize,
    away: usize,
    not_allowed: usize,
    /// Guests that get no requests.
    not_routable: BTreeMap<WhyNot, usize>,
}

/// So many reasons are given at most: guests have one each.
const REASONS_GIVEN_MAX: usize = 4;

/// The candidates as one thread sees them.
#[derive(Debug, Default)]
struct Routes {
    services: Named<Arc<[Candidate]>>,
    nodes: HashMap<NodeId, Named<Arc<[Candidate]>>>,
    guests: HashMap<String, Named<Arc<[Candidate]>>>,
}

/// The same, while it is made.
#[derive(Default)]
struct Building {
    services: Named<Vec<Candidate>>,
    nodes: HashMap<NodeId, Named<Arc<[Candidate]>>>,
    guests: HashMap<String, Named<Arc<[Candidate]>>>,
}

impl Building {
    fn finish(self) -> Routes {
        let named = self.services.into_iter().map(|(name, candidates)| (name, candidates.into()));
        Routes { services: named.collect(), nodes: self.nodes, guests: self.guests }
    }
}

/// By name of service.
type Named<T> = HashMap<ServiceName, T>;

/// Other names of services.
pub(crate) type Aliases = BTreeMap<ServiceName, ServiceName>;

impl Snapshot {
    /// Of everything as it is now, for this many threads.
    pub(crate) fn new(
        Sources { members, registry, relays, ways }: Sources<'_>,
        loads: &Loads,
        policy: &dyn ServicePolicy,
        shards: usize,
    ) -> Self {
        let mut snapshot = Self { digest: Some(registry.digest()), ..Self::default() };
        snapshot.coordinators = registry
            .coordinators()
            .filter(|coordinator| coordinator.presence == Presence::Here)
            .map(|coordinator| CoordinatorView {
                id: coordinator.record.writer,
                signed: coordinator.signed.clone(),
                multiaddrs: coordinator.node.multiaddrs.clone(),
            })
            .collect();
        for lane in members.iter().flat_map(|(_, member)| member.lanes()) {
            *snapshot.lanes.entry(lane.connection.transport()).or_default() += 1;
        }
        let mut routes: Vec<Building> = (0..shards).map(|_| Building::default()).collect();
        let mut relayed = BTreeSet::new();
        for seen in offers::nodes(members, registry) {
            let id = seen.id;
            snapshot.see(id, seen.record, seen.state);
            let relay = match seen.way {
                Some(NodeWay::ViaCoordinator { tunnel, .. }) => {
                    relayed.insert(id);
                    Some(relays.way(id, tunnel))
                }
                _ => None,
            };
            for offer in seen.offers() {
                let may_answer = policy.may_answer(&id, &offer.name);
                if let Some(standing) = snapshot.services.get_mut(&offer.name) {
                    standing.not_allowed += usize::from(!may_answer);
                }
                let load = loads.of(id, &offer.name);
                let down = |tunnel: &Tunnel| Candidate::new(&offer.name, tunnel.clone(), offer.capacity, load.clone());
                let relayed = relay.as_ref().map(down);
                for (shard, routes) in routes.iter_mut().enumerate() {
                    let candidate = match seen.way {
                        Some(NodeWay::Tunnel(member)) => preferred(member, shard).map(|lane| down(&lane.connection)),
                        _ => relayed.clone(),
                    };
                    let Some(candidate) = candidate else { continue };
                    routes.nodes.entry(id).or_default().insert(offer.name.clone(), [candidate.clone()].into());
                    if may_answer {
                        routes.services.entry(offer.name.clone()).or_default().push(candidate);
                    }
                }
            }
        }
        relays.keep_only(|worker| relayed.contains(worker));
        for (worker_id, view) in urls::guests(registry) {
            let way = urls::way_to(&view, ways);
            snapshot.see_guest(worker_id, &view, way.as_ref().err().copied());
            let Ok(way) = way else { continue };
            for name in &view.guest.details.services {
                // It has no key that a policy could name: who speaks for it answers for it.
                let may_answer = policy.may_answer(&view.coordinator, name);
                if let Some(standing) = snapshot.services.get_mut(name) {
                    standing.not_allowed += usize::from(!may_answer);
                }
                let candidate = way.candidate(name, loads);
                for routes in &mut routes {
                    let of_guest = routes.guests.entry(worker_id.to_owned()).or_default();
                    of_guest.insert(name.clone(), [candidate.clone()].into());
                    if may_answer {
                        routes.services.entry(name.clone()).or_default().push(candidate.clone());
                    }
                }
            }
        }
        snapshot.nodes.sort_unstable_by_key(|view| view.id);
        snapshot.shards = routes.into_iter().map(Building::finish).collect();
        snapshot
    }

    fn see(&mut self, id: NodeId, record: &NodeRecord, state: NodeState) {
        for offer in &record.services {
            let standing = self.services.entry(offer.name.clone()).or_default();
            standing.offers += 1;
            let down = offer.health == ServiceHealth::Down;
            match state {
                NodeState::Away => standing.away += 1,
                NodeState::Leaving => standing.leaving += 1,
                NodeState::Up | NodeState::AtHome => standing.down += usize::from(down),
            }
        }
        if state == NodeState::Up {
            self.up += 1;
            self.coordinators_up += usize::from(record.roles.coordinates());
            self.workers_up += usize::from(record.roles.works());
        }
        self.nodes.push(NodeView { id, record: record.clone(), state });
    }

    fn see_guest(&mut self, worker_id: &str, view: &GuestView<'_>, why_not: Option<WhyNot>) {
        let services = view.guest.details.services.clone();
        for name in &services {
            let standing = self.services.entry(name.clone()).or_default();
            standing.offers += 1;
            if let Some(why_not) = why_not {
                *standing.not_routable.entry(why_not).or_default() += 1;
            }
        }
        let routable = why_not.map_or(Ok(()), Err);
        self.guests.insert(worker_id.to_owned(), GuestEntry { services, routable });
    }

    /// A few coordinators, others each time.
    pub(crate) fn some_coordinators(&self, random: &mut fastrand::Rng) -> Vec<&CoordinatorView> {
        let mut some: Vec<_> = self.coordinators.iter().collect();
        random.shuffle(&mut some);
        some.truncate(COORDINATORS_TOLD_MAX);
        some
    }

    /// Who can be asked, as this thread sees it. An alias holds wherever a service is named, and leads to the name that the
    /// nodes know. A service of the name itself comes first: anybody's for a bare name, the node's own for one node.
    pub(crate) fn find(&self, shard: usize, aliases: &Aliases, target: &Target<'_>) -> Option<Offer> {
        let routes = self.shards.get(shard)?;
        let name = target.service();
        let offered = match target {
            Target::Service { .. } => &routes.services,
            Target::Node { node, .. } => routes.nodes.get(node)?,
            // A node of ours registers under its id, and nobody else's name hides it.
            Target::Worker { worker, .. } => {
                let native = worker.parse().ok().and_then(|id: NodeId| routes.nodes.get(&id));
                native.or_else(|| routes.guests.get(*worker))?
            }
        };
        let found = offered.get_key_value(name).or_else(|| offered.get_key_value(aliases.get(name)?));
        found.map(|(service, candidates)| Offer { service: service.clone(), candidates: candidates.clone() })
    }

    /// The services that are known, each with how many nodes offer it and how many of those can be asked here.
    pub(crate) fn services(&self) -> impl Iterator<Item = (&ServiceName, usize, usize)> {
        self.services.iter().map(|(name, standing)| {
            let Standing { offers, down, leaving, away, not_routable, .. } = standing;
            let not_routable: usize = not_routable.values().sum();
            (name, *offers, offers - down - leaving - away - not_routable)
        })
    }

    /// What is known about a target that nobody can answer for.
    pub(crate) fn known(&self, aliases: &Aliases, target: &Target<'_>) -> String {
        let node = match target {
            Target::Service { service } => return self.known_service(aliases, service),
            Target::Node { node, .. } => Some(*node),
            Target::Worker { worker, .. } => worker.parse().ok(),
        };
        match node.and_then(|node| self.nodes.iter().find(|view| view.id == node)) {
            Some(view) if view.state == NodeState::Leaving => "that node is leaving".into(),
            Some(view) if view.state == NodeState::Away => "that node has no tunnel to this entry now".into(),
            Some(view) => {
                let offered = || view.record.services.iter().map(|offer| &offer.name);
                let (name, alias) = meant(aliases, target.service(), |name| offered().any(|it| it.as_str() == name));
                if offered().any(|it| it.as_str() == name) {
                    format!("{alias}that node says that the service is down")
                } else {
                    format!("{alias}that node offers {}", list(offered()))
                }
            }
            None => match target {
                Target::Worker { worker, service } => self.known_guest(aliases, worker, service),
                _ => "no node of that id is known here".into(),
            },
        }
    }

    fn known_guest(&self, aliases: &Aliases, worker: &str, service: &str) -> String {
        match self.guests.get(worker) {
            None => "nobody of that id is known here".into(),
            Some(GuestEntry { routable: Err(why_not), .. }) => {
                format!("that agent is registered and not routable: {why_not}")
            }
            Some(guest) => {
                let offers = |name: &str| guest.services.iter().any(|it| it.as_str() == name);
                let (name, alias) = meant(aliases, service, offers);
                if offers(name) {
                    format!("{alias}that agent has just come back")
                } else {
                    format!("{alias}that agent offers {}", list(guest.services.iter()))
                }
            }
        }
    }

    fn known_service(&self, aliases: &Aliases, service: &str) -> String {
        let (name, alias) = meant(aliases, service, |name| self.services.contains_key(name));
        let Some(standing) = self.services.get(name) else {
            let offered = match self.services.len() {
                0 if self.nodes.is_empty() => "no node has a tunnel to this entry".into(),
                0 => "no node offers anything".into(),
                _ => format!("no node has named it; offered here: {}", list(self.services.keys())),
            };
            return alias + &offered;
        };
        let mut reasons = Vec::new();
        for (count, reason) in [
            (standing.down, "where it is down"),
            (standing.leaving, "leaving"),
            (standing.away, "without a tunnel to this entry"),
            (standing.not_allowed, "not allowed to answer for the bare name"),
        ] {
            if count > 0 {
                reasons.push(format!("{count} {reason}"));
            }
        }
        for (why_not, count) in standing.not_routable.iter().take(REASONS_GIVEN_MAX) {
            reasons.push(format!("{count} registered and not routable: {why_not}"));
        }
        format!("{alias}known to {} here: {}", nodes(standing.offers), reasons.join(", "))
    }
}

/// The connection that a thread uses for a node: its own, else one of the others, the same one each time.
fn preferred(member: &Member, shard: usize) -> Option<&Lane<Tunnel>> {
    let own = member.lanes().find(|lane| lane.shard == shard);
    own.or_else(|| member.lanes().nth(shard % member.lanes().len().max(1)))
}

/// The service that a name means where some are offered, and the words for a person that it is another one.
fn meant<'a>(aliases: &'a Aliases, service: &'a str, offered: impl Fn(&str) -> bool) -> (&'a str, String) {
    match aliases.get(service) {
        Some(name) if !offered(service) => (name.as_str(), format!("{service} stands for {name}; ")),
        _ => (service, String::new()),
    }
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
