//! Who can be asked by way of the node's own port: its own services; at a coordinator also the workers that are at home there, and
//! whoever is elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_contract::Catalogue;
use hedgerow_http::{Candidate, Directory, Offer};
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::record::{ServiceHealth, ServiceOffer};
use hedgerow_proto::route::Target;
use hedgerow_tunnel::Tunnel;

use crate::elsewhere::Outward;
use crate::node::Node;

/// All of them, as the forwarding sees them.
pub(super) struct Reachable {
    node: Arc<Node>,
    outward: Arc<Outward>,
    /// This node's own services.
    own: Vec<(ServiceName, Candidate)>,
    me: NodeId,
}

/// Whom a target means.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Anybody,
    Node(NodeId),
    /// By an id that is no node's.
    Agent(&'a str),
}

impl<'a> Wanted<'a> {
    fn by(target: &Target<'a>) -> Self {
        match *target {
            Target::Service { .. } => Self::Anybody,
            Target::Node { node, .. } => Self::Node(node),
            Target::Worker { worker, .. } => worker.parse().map_or(Self::Agent(worker), Self::Node),
        }
    }

    fn is(self, node: NodeId) -> bool {
        match self {
            Self::Anybody => true,
            Self::Node(wanted) => wanted == node,
            Self::Agent(_) => false,
        }
    }
}

impl Reachable {
    /// Whoever this node reaches; itself over this tunnel.
    pub(super) fn new(node: &Arc<Node>, tunnel: &Tunnel, outward: Arc<Outward>) -> Self {
        let own = node.services.iter().map(|service| {
            let name = service.spec.name.clone();
            let load = outward.loads.of(tunnel.node(), &name);
            let candidate = Candidate::new(&name, tunnel.clone(), service.spec.capacity, load);
            (name, candidate)
        });
        Self { own: own.collect(), outward, node: node.clone(), me: tunnel.node() }
    }

    /// The node whose port it is.
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Who can be asked for the service of this very name: this node, and at a coordinator whoever else there is.
    fn offer(&self, name: &str, wanted: Wanted<'_>) -> Option<Offer> {
        let service = ServiceName::new(name).ok()?;
        let own = self.own.iter().find(|(offered, _)| *offered == service);
        let own = own.filter(|_| wanted.is(self.me) && self.is_up(name)).map(|(_, candidate)| candidate.clone());
        let mut candidates: Vec<Candidate> = own.into_iter().collect();
        candidates.extend(self.held(&service, wanted));
        for elsewhere in self.node.elsewhere() {
            let routes = elsewhere.routes();
            let others: &[Candidate] = match wanted {
                Wanted::Anybody => match routes.of_service(name) {
                    // As they stand there: they may be thousands.
                    Some(others) if candidates.is_empty() => {
                        return Some(Offer { service, candidates: others.clone() });
                    }
                    others => others.map(|others| &**others).unwrap_or_default(),
                },
                Wanted::Node(node) => routes.of_node(&node, name).map(std::slice::from_ref).unwrap_or_default(),
                Wanted::Agent(worker) => routes.of_agent(worker, name).map(std::slice::from_ref).unwrap_or_default(),
            };
            // One that has just come home here may still stand there.
            let here = candidates.len();
            let is_here = |other: &&Candidate| candidates[..here].iter().any(|one| one.node() == other.node());
            let others: Vec<Candidate> = others.iter().filter(|other| !is_here(other)).cloned().collect();
            candidates.extend(others);
        }
        (!candidates.is_empty()).then(|| Offer { service, candidates: candidates.into() })
    }

    /// The workers that are at home here and offer the service.
    fn held(&self, name: &ServiceName, wanted: Wanted<'_>) -> Vec<Candidate> {
        let meshes = self.node.meshes();
        let held = meshes.iter().filter(|mesh| mesh.roles().coordinates()).flat_map(|mesh| {
            let tunnels = mesh.workers.all().into_iter();
            let tunnels = tunnels.filter(|tunnel| wanted.is(tunnel.node()));
            tunnels.filter_map(move |tunnel| {
                let offers = |offer: &&ServiceOffer| offer.name == *name && offer.health == ServiceHealth::Up;
                let capacity = mesh.replica.read(|registry| {
                    let node = registry.node(&tunnel.node())?.node()?;
                    Some(node.services.iter().find(offers)?.capacity)
                })?;
                let load = self.outward.loads.of(tunnel.node(), name);
                Some(Candidate::new(name, tunnel.clone(), capacity, load))
            })
        });
        held.collect()
    }

    fn is_up(&self, name: &str) -> bool {
        let mut services = self.node.services.iter();
        services.any(|service| service.spec.name.as_str() == name && service.health().state == ServiceHealth::Up)
    }

    /// What is known of those who are elsewhere and cannot be asked.
    fn known_elsewhere(&self, name: &str, wanted: Wanted<'_>) -> Option<String> {
        let mut all = self.node.elsewhere().into_iter().map(|elsewhere| elsewhere.routes());
        match wanted {
            Wanted::Anybody => all.find_map(|routes| routes.known_of_service(name)),
            Wanted::Agent(worker) => all.find_map(|routes| routes.known_of_agent(worker)),
            Wanted::Node(_) => None,
        }
    }
}

impl Directory for Reachable {
    fn find(&self, target: &Target<'_>) -> Option<Offer> {
        let (name, wanted) = (target.service(), Wanted::by(target));
        // As at an entry: an alias holds wherever a service is named, and a service of the name itself comes first.
        self.offer(name, wanted).or_else(|| self.offer(aliases().get(name)?.as_str(), wanted))
    }

    fn known(&self, target: &Target<'_>) -> String {
        let (name, wanted) = (target.service(), Wanted::by(target));
        let names = || [Some(name), aliases().get(name).map(ServiceName::as_str)].into_iter().flatten();
        let is_own = |name: &str| self.own.iter().any(|(offered, _)| offered.as_str() == name);
        if wanted.is(self.me) && names().any(is_own) {
            return "this node offers it, and it is down at the moment".into();
        }
        if let Some(known) = names().find_map(|name| self.known_elsewhere(name, wanted)) {
            return known;
        }
        match (self.node.contract().is_some(), wanted) {
            (true, Wanted::Anybody) => "no worker that this coordinator reaches offers it".into(),
            (true, _) => "this coordinator reaches nobody of that id who offers it".into(),
            (false, _) => "this port serves this node's own services alone, and it offers none of that name".into(),
        }
    }
}

/// Other names of services, for this port: those that every federation begins with. An entry's own are its operator's.
fn aliases() -> &'static BTreeMap<ServiceName, ServiceName> {
    Catalogue::built_in().aliases()
}
