//! The node's own port: the routes of an entry, for the services of this node alone, for this machine or its LAN.
//!
//! Requests take the same way as those from an entry, over a tunnel in memory: so slots are counted in one place, and a
//! draining node refuses here as it does there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hedgerow_contract::{Catalogue, RECORDS_HEADER};
use hedgerow_http::{
    Candidate, Cors, Directory, ForwardConfig, Forwarder, Loads, Offer, Peer, Problem, ResponseBody, Scheme, Stats,
    is_routed, request_id,
};
use hedgerow_process::exit::Failure;
use hedgerow_proto::frame::Hello;
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::{Body, ServiceHealth, ServiceOffer};
use hedgerow_proto::route::Target;
use hedgerow_tunnel::{DialConfig, Open, Tunnel, TunnelEvent, memory, serve_over, welcome};
use http::header::ORIGIN;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{LocalSet, spawn_local};
use tracing::{debug, error};

use crate::membership::tunnel_config;
use crate::node::Node;

/// Connections at once: a household, not the world.
const CONNECTIONS_MAX: usize = 512;
/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause after the system would give no connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the port.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error: io::Error| {
        Failure::runtime(format!("cannot listen on {address}: {error}"))
            .means("the node could not serve its LAN there, so it did not start")
            .advice("give --listen another port (0 takes any that is free), or leave it out")
    })
}

/// Serves the port on a thread of its own until the process ends.
pub fn serve(listener: std::net::TcpListener, node: &Arc<Node>) -> Result<(), Failure> {
    // Nobody else is in this federation: what the node signs for it counts nowhere but on this port.
    let federation = FederationId::of_key(&node.identity.key().id());
    let lan = Lan { config: config(node, federation)?, federation, node: Arc::downgrade(node), seed: node.seed() };
    let failed = |error: io::Error| Failure::runtime(format!("cannot serve on --listen: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let thread = std::thread::Builder::new().name("lan".into()).spawn(move || {
        LocalSet::new().block_on(&runtime, async move {
            if let Err(error) = lan.run(listener).await {
                error!(%error, "the node's own port is closed");
            }
        });
    });
    thread.map(drop).map_err(failed)
}

/// A tunnel's settings with a record that is signed once: the services' health is read from them, not from it.
fn config(node: &Node, federation: FederationId) -> Result<DialConfig, Failure> {
    let (key, incarnation) = (node.identity.key().clone(), node.identity.incarnation);
    let record = node.profile.record(node.profile.roles, &node.services, &[], None);
    let signed = Voice::new(key, federation, incarnation, 0, Limits::PRODUCTION).sign(&Body::Node(record));
    let signed = signed.map_err(|error| Failure::runtime(format!("this node's record cannot be signed: {error}")))?;
    let record = watch::Sender::new(signed.bytes().clone()).subscribe();
    Ok(tunnel_config(&node.member(), node.services.clone(), record))
}

struct Lan {
    config: DialConfig,
    federation: FederationId,
    node: Weak<Node>,
    seed: u64,
}

impl Lan {
    async fn run(self, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let tunnel = self.tunnel().await?;
        let Some(node) = self.node.upgrade() else { return Ok(()) };
        let directory = OwnServices::new(&node, &tunnel);
        let forwarder =
            Forwarder::new(Arc::new(ForwardConfig::default()), directory, Arc::new(Stats::default()), self.seed);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let forwarder = forwarder.clone();
                    spawn_local(async move {
                        if let Err(error) = connection(stream, from, forwarder).await {
                            debug!(%error, "a client's connection broke");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    debug!(%error, "no connection could be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A tunnel from this node to itself.
    async fn tunnel(&self) -> io::Result<Tunnel> {
        let id = self.config.key.id();
        let (entry, node) = memory::pair(id, id);
        let (config, federation) = (self.config.clone(), self.federation);
        spawn_local(async move {
            if let Err(error) = serve_over(&config, federation, Arc::new(node), |_| {}).await {
                debug!(%error, "the tunnel in memory ended");
            }
        });
        let hello = Hello { federation, incarnation: self.config.incarnation, shard: 0, shards: 1 };
        let welcomed = welcome(Arc::new(entry), hello, &Limits::PRODUCTION, &Open).await;
        let (tunnel, mut events, ..) = welcomed.map_err(io::Error::other)?;
        spawn_local(async move { while !matches!(events.next().await, TunnelEvent::Closed(_)) {} });
        Ok(tunnel)
    }
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    forwarder: Forwarder<OwnServices>,
) -> Result<(), hyper::Error> {
    let peer = Rc::new(Peer::client(from.ip(), Scheme::Http));
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "a connection keeps its delay");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let (forwarder, peer) = (forwarder.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(&forwarder, &peer, request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
}

async fn answer(forwarder: &Forwarder<OwnServices>, peer: &Peer, request: Request<Incoming>) -> Response<ResponseBody> {
    if is_routed(request.uri().path()) {
        return forwarder.forward(request, peer).await;
    }
    let (cors, origin) = (Cors::default(), request.headers().get(ORIGIN).cloned());
    if let Some(answer) = cors.preflight(request.method(), request.headers()) {
        return answer;
    }
    let request = match forwarder.directory().node.contract() {
        // An entry reaches every worker; this port only those of this node and those at home here.
        Some(contract) => match contract.answer_http(request, "http", forwarder.directory().node.entry_url()).await {
            Ok(mut response) => {
                // Between a coordinator and an entry alone.
                response.headers_mut().remove(RECORDS_HEADER);
                cors.apply(origin.as_ref(), response.headers_mut());
                return response.map(ResponseBody::full);
            }
            Err(request) => request,
        },
        None => request,
    };
    let mut random = fastrand::Rng::with_seed(forwarder.directory().node.seed());
    let (id, _) = request_id(request.headers(), &mut random);
    let refused = |problem: Problem| problem.request_id(String::from_utf8_lossy(id.as_bytes())).into_response();
    let mut response = match (request.uri().path(), request.method()) {
        ("/health", &Method::GET | &Method::HEAD) => forwarder.directory().health(),
        ("/mesh/registry", &Method::GET | &Method::HEAD) => forwarder.directory().registry(),
        ("/health" | "/mesh/registry", _) => {
            let detail = "it can be read and nothing else";
            let problem =
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail);
            refused(problem.allow("GET, HEAD"))
        }
        _ => {
            let detail = "a node serves /service/NAME/… for its own services, /health and /mesh/registry";
            refused(Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail))
        }
    };
    cors.apply(origin.as_ref(), response.headers_mut());
    response
}

/// This node's services, as the forwarding sees them.
struct OwnServices {
    node: Arc<Node>,
    offers: Vec<(ServiceName, Offer)>,
    loads: Loads,
    tunnel: Tunnel,
}

impl OwnServices {
    fn new(node: &Arc<Node>, tunnel: &Tunnel) -> Self {
        let loads = Loads::default();
        let offers = node.services.iter().map(|service| {
            let name = service.spec.name.clone();
            let load = loads.of(tunnel.node(), &name);
            let candidate = Candidate::new(&name, tunnel.clone(), service.spec.capacity, load);
            (name.clone(), Offer { service: name, candidates: Arc::new([candidate]) })
        });
        let offers = offers.collect();
        Self { offers, loads, node: node.clone(), tunnel: tunnel.clone() }
    }

    /// The workers that are at home here and offer the service: of a coordinator's own port they are to be had too.
    fn held(&self, name: &str, wanted: Option<NodeId>) -> Vec<Candidate> {
        let Ok(name) = ServiceName::new(name) else { return Vec::new() };
        let meshes = self.node.meshes();
        let held = meshes.iter().filter(|mesh| mesh.roles().coordinates()).flat_map(|mesh| {
            let tunnels = mesh.workers.all().into_iter();
            let tunnels = tunnels.filter(|tunnel| wanted.is_none_or(|node| node == tunnel.node()));
            let name = &name;
            tunnels.filter_map(move |tunnel| {
                let offers = |offer: &&ServiceOffer| offer.name == *name && offer.health == ServiceHealth::Up;
                let capacity = mesh.replica.read(|registry| {
                    let node = registry.node(&tunnel.node())?.node()?;
                    Some(node.services.iter().find(offers)?.capacity)
                })?;
                Some(Candidate::new(name, tunnel.clone(), capacity, self.loads.of(tunnel.node(), name)))
            })
        });
        held.collect()
    }

    /// Who can be asked for the service of this very name.
    fn offer(&self, name: &str, wanted: Option<NodeId>) -> Option<Offer> {
        let mine = wanted.is_none_or(|node| node == self.tunnel.node());
        let offer = self.offers.iter().find(|(offered, _)| offered.as_str() == name);
        let mine = offer.filter(|_| mine && self.is_up(name)).map(|(_, offer)| offer.clone());
        let held = self.held(name, wanted);
        match (mine, held.is_empty()) {
            (mine, true) => mine,
            (None, false) => Some(Offer { service: ServiceName::new(name).ok()?, candidates: held.into() }),
            (Some(mine), false) => {
                let candidates = mine.candidates.iter().cloned().chain(held).collect();
                Some(Offer { service: mine.service, candidates })
            }
        }
    }

    fn is_up(&self, name: &str) -> bool {
        let mut services = self.node.services.iter();
        services.any(|service| service.spec.name.as_str() == name && service.health().state == ServiceHealth::Up)
    }

    /// The contract's answer to "is it alive": this node stands for itself, so it knows of no coordinators.
    fn health(&self) -> Response<ResponseBody> {
        let up = self.node.services.iter().filter(|service| service.health().state == ServiceHealth::Up).count();
        let all = self.node.services.iter().count();
        let body = serde_json::json!({
            "status": "healthy",
            "coordinators": 0,
            "message": format!("node {} with {up} of {all} services up", self.tunnel.node().short()),
        });
        json(body.to_string())
    }

    fn registry(&self) -> Response<ResponseBody> {
        // Our own types of numbers, texts and lists: there is nothing to fail.
        json(serde_json::to_string(&self.node.registry()).expect("plain data always serialises"))
    }
}

fn json(text: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(text));
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

impl Directory for OwnServices {
    fn find(&self, target: &Target<'_>) -> Option<Offer> {
        let wanted: Option<NodeId> = match target {
            Target::Service { .. } => None,
            Target::Node { node, .. } => Some(*node),
            Target::Worker { worker, .. } => Some(worker.parse().ok()?),
        };
        let name = target.service();
        // As at an entry: an alias holds wherever a service is named, and a service of the name itself comes first.
        self.offer(name, wanted).or_else(|| self.offer(aliases().get(name)?.as_str(), wanted))
    }

    fn known(&self, target: &Target<'_>) -> String {
        let is = |name: &str| self.offers.iter().any(|(offered, _)| offered.as_str() == name);
        let name = target.service();
        if is(name) || aliases().get(name).is_some_and(|meant| is(meant.as_str())) {
            "this node offers it, and it is down at the moment".into()
        } else {
            "this port serves this node's own services alone, and it offers none of that name".into()
        }
    }
}

/// Other names of services, for this port: those that every federation begins with. An entry's own are its operator's.
fn aliases() -> &'static BTreeMap<ServiceName, ServiceName> {
    Catalogue::built_in().aliases()
}
