//! The node's own port: the routes of an entry, for this machine or its LAN. Of a node they lead to its own services; of a
//! coordinator to all workers and agents as well that it knows a way to.
//!
//! Requests to its own services take the same way as those from an entry, over a tunnel in memory: so slots are counted in one
//! place, and a draining node refuses here as it does there.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hedgerow_contract::RECORDS_HEADER;
use hedgerow_http::{
    Cors, ForwardConfig, Forwarder, Peer, Problem, ResponseBody, Scheme, Stats, is_routed, request_id,
};
use hedgerow_process::exit::Failure;
use hedgerow_proto::frame::Hello;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::{Body, ServiceHealth};
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

use crate::elsewhere::Outward;
use crate::membership::tunnel_config;
use crate::node::Node;

mod directory;

use directory::Reachable;

/// Connections at once: a household, not the world.
const CONNECTIONS_MAX: usize = 512;
/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle streams kept for one tunnel, and for how long: those to workers at home elsewhere share what two coordinators carry between
/// them.
const IDLE_STREAMS_MAX: usize = 32;
const IDLE_STREAM_TIMEOUT: Duration = Duration::from_secs(10);
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
pub fn serve(listener: std::net::TcpListener, node: &Arc<Node>, outward: Arc<Outward>) -> Result<(), Failure> {
    // Nobody else is in this federation: what the node signs for it counts nowhere but on this port.
    let federation = FederationId::of_key(&node.identity.key().id());
    let (config, seed) = (config(node, federation)?, node.seed());
    let lan = Lan { config, federation, node: Arc::downgrade(node), outward, seed };
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
    outward: Arc<Outward>,
    seed: u64,
}

impl Lan {
    async fn run(self, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let tunnel = self.tunnel().await?;
        let Some(node) = self.node.upgrade() else { return Ok(()) };
        let directory = Reachable::new(&node, &tunnel, self.outward.clone());
        let config = ForwardConfig {
            idle_streams_max: IDLE_STREAMS_MAX,
            idle_stream_timeout: IDLE_STREAM_TIMEOUT,
            ..ForwardConfig::default()
        };
        let forwarder = Forwarder::new(Arc::new(config), directory, Arc::new(Stats::default()), self.seed);
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

async fn connection(stream: TcpStream, from: SocketAddr, forwarder: Forwarder<Reachable>) -> Result<(), hyper::Error> {
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

async fn answer(forwarder: &Forwarder<Reachable>, peer: &Peer, request: Request<Incoming>) -> Response<ResponseBody> {
    if is_routed(request.uri().path()) {
        return forwarder.forward(request, peer).await;
    }
    let (cors, origin) = (Cors::default(), request.headers().get(ORIGIN).cloned());
    if let Some(answer) = cors.preflight(request.method(), request.headers()) {
        return answer;
    }
    let request = match forwarder.directory().node().contract() {
        // An entry reaches every worker, also those with no home and from wherever one asks.
        Some(contract) => match contract.answer_http(request, "http", forwarder.directory().node().entry_url()).await {
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
    let mut random = fastrand::Rng::with_seed(forwarder.directory().node().seed());
    let (id, _) = request_id(request.headers(), &mut random);
    let refused = |problem: Problem| problem.request_id(String::from_utf8_lossy(id.as_bytes())).into_response();
    let mut response = match (request.uri().path(), request.method()) {
        ("/health", &Method::GET | &Method::HEAD) => health(forwarder.directory().node()),
        ("/mesh/registry", &Method::GET | &Method::HEAD) => registry(forwarder.directory().node()),
        ("/health" | "/mesh/registry", _) => {
            let detail = "it can be read and nothing else";
            let problem =
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail);
            refused(problem.allow("GET, HEAD"))
        }
        _ => {
            let detail = "a node serves /service/NAME/…, /worker/ID/NAME/…, /health and /mesh/registry";
            refused(Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail))
        }
    };
    cors.apply(origin.as_ref(), response.headers_mut());
    response
}

/// The contract's answer to "is it alive": this node stands for itself, so it knows of no coordinators.
fn health(node: &Node) -> Response<ResponseBody> {
    let up = node.services.iter().filter(|service| service.health().state == ServiceHealth::Up).count();
    let all = node.services.iter().count();
    let body = serde_json::json!({
        "status": "healthy",
        "coordinators": 0,
        "message": format!("node {} with {up} of {all} services up", node.identity.key().id().short()),
    });
    json(body.to_string())
}

fn registry(node: &Node) -> Response<ResponseBody> {
    // Our own types of numbers, texts and lists: there is nothing to fail.
    json(serde_json::to_string(&node.registry()).expect("plain data always serialises"))
}

fn json(text: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(text));
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
