//! What the entry tells about the federation, as JSON. What anybody may see holds no address, host name or multiaddr of a
//! volunteer, with one exception: coordinators publish where they can be dialled in their own signed records, and
//! [`bootstrap`] hands those to new nodes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hedgerow_http::Offer;
use hedgerow_proto::id::ServiceName;
use hedgerow_proto::offers::NodeState;
use hedgerow_proto::record::{NodeRecord, Roles, ServiceHealth, ServiceOffer};
use hedgerow_proto::route::Standing;
use hedgerow_tunnel::Transport;
use serde::Serialize;

use crate::federation::Federation;
use crate::snapshot::{NodeView, Snapshot};
use crate::values::HostPort;

/// How long a new node may use an answer of [`bootstrap`], in seconds.
const BOOTSTRAP_TTL_S: u32 = 60;

/// `GET /health`.
#[derive(Debug, Serialize)]
pub(crate) struct Health {
    status: &'static str,
    coordinators: usize,
    message: String,
}

/// The process serves: whoever asks gets 200, and the message says what it has.
pub(crate) fn health(snapshot: &Snapshot) -> Health {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let services = snapshot.services().filter(|(_, _, up)| *up > 0).count();
    let message = match snapshot.up {
        0 => "no node has a tunnel to this entry".into(),
        nodes => format!("{} with {}", count(nodes, "node"), count(services, "service")),
    };
    Health { status: "healthy", coordinators: snapshot.coordinators.len(), message }
}

/// `GET /mesh/bootstrap`.
#[derive(Debug, Serialize)]
pub(crate) struct Bootstrap {
    federation: String,
    entry: Entry,
    ttl: u32,
    coordinators: Vec<Coordinator>,
}

#[derive(Debug, Serialize)]
struct Entry {
    id: String,
    tunnel: Vec<TunnelAddress>,
}

/// Where tunnels come in.
#[derive(Debug, Serialize)]
pub(crate) struct TunnelAddress {
    transport: &'static str,
    /// None: the address at which the entry was reached just now.
    host: Option<String>,
    port: u16,
}

impl TunnelAddress {
    /// At this port of the address at which the entry was reached, unless its operator says otherwise.
    pub(crate) fn at(transport: Transport, public: Option<&HostPort>, port: u16) -> Self {
        let host = public.map(|public| public.host.clone());
        Self { transport: transport.as_str(), host, port: public.map_or(port, |public| public.port) }
    }
}

#[derive(Debug, Serialize)]
struct Coordinator {
    node_id: String,
    record: String,
    multiaddrs: Vec<String>,
}

/// All that a new node needs: who the entry is, where tunnels come in, and a few coordinators in their own signed words.
pub(crate) fn bootstrap(
    federation: &Federation,
    tunnels: impl IntoIterator<Item = TunnelAddress>,
    random: &mut fastrand::Rng,
) -> Bootstrap {
    let snapshot = federation.snapshot();
    let coordinators = snapshot.some_coordinators(random).into_iter().map(|coordinator| Coordinator {
        node_id: coordinator.id.to_string(),
        record: STANDARD.encode(coordinator.signed.bytes()),
        multiaddrs: coordinator.multiaddrs.clone(),
    });
    Bootstrap {
        federation: federation.id.to_string(),
        entry: Entry { id: federation.entry.to_string(), tunnel: tunnels.into_iter().collect() },
        ttl: BOOTSTRAP_TTL_S,
        coordinators: coordinators.collect(),
    }
}

/// `GET /mesh/registry`.
#[derive(Debug, Serialize)]
pub(crate) struct RegistryView {
    /// None before the first node has come.
    digest: Option<String>,
    coordinators: Vec<Node>,
    workers: Vec<Node>,
    services: BTreeMap<ServiceName, ServiceView>,
}

#[derive(Debug, Serialize)]
struct Node {
    node_id: String,
    roles: &'static str,
    location: String,
    version: String,
    state: &'static str,
    services: Vec<OfferView>,
}

#[derive(Debug, Serialize)]
struct OfferView {
    name: ServiceName,
    capacity: u32,
    health: &'static str,
}

#[derive(Debug, Serialize)]
struct ServiceView {
    offers: usize,
    routable: usize,
}

/// The registry as this entry sees it.
pub(crate) fn registry(snapshot: &Snapshot) -> RegistryView {
    let with = |wanted: fn(Roles) -> bool| {
        snapshot.nodes.iter().filter(|view| wanted(view.record.roles)).map(node).collect::<Vec<_>>()
    };
    RegistryView {
        digest: snapshot.digest.map(|digest| digest.to_string()),
        coordinators: with(Roles::coordinates),
        workers: with(Roles::works),
        services: snapshot
            .services()
            .map(|(name, offers, routable)| (name.clone(), ServiceView { offers, routable }))
            .collect(),
    }
}

fn node(view: &NodeView) -> Node {
    let NodeRecord { roles, location, version, services, .. } = &view.record;
    Node {
        node_id: view.id.to_string(),
        roles: match roles {
            Roles::Worker => "worker",
            Roles::Coordinator => "coordinator",
            Roles::Both => "both",
        },
        location: location.clone(),
        version: version.clone(),
        state: match view.state {
            NodeState::Up | NodeState::AtHome => "up",
            NodeState::Leaving => "leaving",
            NodeState::Away => "away",
        },
        services: services.iter().map(offer).collect(),
    }
}

fn offer(offer: &ServiceOffer) -> OfferView {
    OfferView {
        name: offer.name.clone(),
        capacity: offer.capacity,
        health: match offer.health {
            ServiceHealth::Up => "up",
            ServiceHealth::Down => "down",
        },
    }
}

/// `GET /mesh/why`, for the operator alone.
#[derive(Debug, Serialize)]
pub(crate) struct Why {
    service: String,
    /// Where nobody can be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    rule: &'static str,
    candidates: Vec<WhyCandidate>,
}

#[derive(Debug, Serialize)]
struct WhyCandidate {
    node_id: String,
    /// What its answers say: the node's id, or what an agent calls itself.
    served_by: String,
    address: Option<String>,
    standing: &'static str,
    in_flight: u32,
    capacity: u32,
    cost_us: f32,
    score: f32,
    rtt_us: u64,
    /// What carries its tunnel.
    transport: &'static str,
    verdict: &'static str,
}

const RULE: &str =
    "two of those that may be chosen, at random; of them the one with the lower score = cost_us × (in_flight + 1)";

/// Who would be asked for a service, and why.
pub(crate) fn why(service: &str, offer: Option<Offer>, known: impl FnOnce() -> String) -> Why {
    let Some(offer) = offer else {
        return Why { service: service.to_owned(), reason: Some(known()), rule: RULE, candidates: Vec::new() };
    };
    let now = hedgerow_http::now();
    let any_live_free = offer
        .candidates
        .iter()
        .map(|candidate| candidate.contender(now))
        .any(|contender| contender.standing == Standing::Live && contender.in_flight < contender.capacity);
    let candidates = offer.candidates.iter().map(|candidate| {
        let contender = candidate.contender(now);
        let full = contender.in_flight >= contender.capacity;
        let (standing, verdict) = match contender.standing {
            Standing::Out => ("out", "not chosen: it is leaving, or its tunnel is closed"),
            _ if full => ("full", "not chosen: all of its slots are taken"),
            Standing::Suspect if any_live_free => ("suspect", "not chosen: it was silent, and others are there"),
            Standing::Suspect => ("suspect", "may be chosen: it was silent, and nobody else is free"),
            Standing::Live => ("live", "may be chosen"),
        };
        WhyCandidate {
            node_id: candidate.node().to_string(),
            served_by: String::from_utf8_lossy(candidate.name().as_bytes()).into_owned(),
            address: candidate.tunnel().remote().map(|address| address.to_string()),
            standing,
            in_flight: contender.in_flight,
            capacity: contender.capacity,
            cost_us: contender.cost_us,
            score: contender.cost_us.max(1.0) * (contender.in_flight as f32 + 1.0),
            rtt_us: candidate.tunnel().rtt().as_micros() as u64,
            transport: candidate.tunnel().transport().as_str(),
            verdict,
        }
    });
    Why { service: offer.service.to_string(), reason: None, rule: RULE, candidates: candidates.collect() }
}

/// `GET /`: where to go from here.
#[derive(Debug, Serialize)]
pub(crate) struct Welcome {
    name: &'static str,
    version: &'static str,
    message: &'static str,
    federation: String,
    services: Vec<String>,
    endpoints: BTreeMap<&'static str, &'static str>,
}

/// Services named on the welcome page: the registry has all of them.
const WELCOME_SERVICES_MAX: usize = 100;

/// For a person or a program that came without knowing where to.
pub(crate) fn welcome(federation: &Federation, here: &str) -> Welcome {
    let snapshot = federation.snapshot();
    let up = snapshot.services().filter(|(_, _, up)| *up > 0);
    Welcome {
        name: "hedgerow-entry",
        version: env!("CARGO_PKG_VERSION"),
        message: "One public URL for services that run on volunteers' machines.",
        federation: federation.id.to_string(),
        services: up.take(WELCOME_SERVICES_MAX).map(|(name, ..)| format!("{here}/service/{name}/")).collect(),
        endpoints: BTreeMap::from([
            ("ANY /service/{name}/{path}", "a service, wherever it runs"),
            ("ANY /service/~{node-id}/{name}/{path}", "that service of one node"),
            ("GET /health", "whether this entry serves"),
            ("GET /mesh/registry", "which nodes and services there are"),
            ("GET /mesh/bootstrap", "what a new node needs; hedgerow-node join does the rest"),
        ]),
    }
}
