//! A front, nodes and their services in one thread, joined by pipes in memory.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_http::{Candidate, Directory, ForwardConfig, Forwarder, Loads, Offer, Peer, Scheme, Stats};
use hedgerow_proto::attempts::AttemptLimits;
use hedgerow_proto::frame::{Hello, Preface, Refusal, ServiceConnection, WhenFull, close};
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Body, NodeRecord, Roles, Signed, Version};
use hedgerow_proto::route::Target;
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::{
    BoxIo, DialConfig, DrainState, EntryIdentity, Link, Open, OpenService, Services, Slot, Tunnel, TunnelEvent,
    TunnelState, TunnelStatus, maintain, memory, quic, serve_over, welcome,
};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const PIPE_BYTES: usize = 16 * 1024;

pub(crate) type AnyBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Runs a test on one thread, as a shard does.
pub(crate) fn on_a_shard(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { in_time("the test", test).await });
}

/// Runs it over memory, and over QUIC.
pub(crate) fn over_both(test: impl AsyncFn(Over)) {
    on_a_shard(test(Over::Memory));
    on_a_shard(test(Over::Quic));
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Gives others their turn until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    in_time(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

pub(crate) fn text(text: impl Into<Bytes>) -> AnyBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What a node does when it is asked.
type OnOpen = Box<dyn Fn() -> Opened + Send + Sync>;

/// What came of it.
pub(crate) enum Opened {
    /// A connection to the service.
    Fresh(DuplexStream),
    /// One that was kept.
    Kept(BoxIo),
    Refused(Refusal),
    /// Neither ACCEPT nor REFUSE.
    Silence,
}

/// A node's services: one, by hand or by hyper, with a number of slots.
pub(crate) struct TestServices {
    on_open: OnOpen,
    capacity: usize,
    pub(crate) taken: Arc<AtomicUsize>,
    pub(crate) taken_most: AtomicUsize,
    freed: Arc<Notify>,
    pub(crate) kept: Arc<Mutex<Vec<BoxIo>>>,
    pub(crate) asked: AtomicUsize,
    /// What each was asked to do when it is full.
    pub(crate) when_full: Mutex<Vec<WhenFull>>,
}

struct TestSlot {
    taken: Arc<AtomicUsize>,
    freed: Arc<Notify>,
    kept: Arc<Mutex<Vec<BoxIo>>>,
}

impl Drop for TestSlot {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
        self.freed.notify_one();
    }
}

impl Slot for TestSlot {
    fn keep(self: Box<Self>, io: BoxIo) {
        self.kept.lock().unwrap().push(io);
    }
}

impl TestServices {
    fn take(&self) -> Option<Box<TestSlot>> {
        let free = |taken: usize| (taken < self.capacity).then_some(taken + 1);
        let before = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).ok()?;
        self.taken_most.fetch_max(before + 1, Ordering::SeqCst);
        Some(Box::new(TestSlot { taken: self.taken.clone(), freed: self.freed.clone(), kept: self.kept.clone() }))
    }

    async fn take_in_line(&self) -> Option<Box<TestSlot>> {
        let in_line = async {
            loop {
                self.freed.notified().await;
                if let Some(slot) = self.take() {
                    return slot;
                }
            }
        };
        tokio::time::timeout(WhenFull::IN_LINE_MAX, in_line).await.ok()
    }
}

impl Services for TestServices {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.when_full.lock().unwrap().push(preface.when_full);
            let slot = match self.take() {
                Some(slot) => slot,
                None if preface.when_full == WhenFull::Wait => self.take_in_line().await.ok_or(Refusal::Full)?,
                None => return Err(Refusal::Full),
            };
            if preface.connection == ServiceConnection::MayReuse
                && let Some(io) = self.kept.lock().unwrap().pop()
            {
                return Ok(OpenService { io, reused: true, slot });
            }
            match (self.on_open)() {
                Opened::Fresh(io) => Ok(OpenService { io: Box::new(io), reused: false, slot }),
                Opened::Kept(io) => Ok(OpenService { io, reused: true, slot }),
                Opened::Refused(refusal) => Err(refusal),
                Opened::Silence => std::future::pending().await,
            }
        })
    }
}

/// What a tunnel runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Memory,
    /// QUIC on loopback, as in earnest: where a stream's end, its reset and its window are not what they are in memory.
    Quic,
}

/// A node with a tunnel to the front.
pub(crate) struct Node {
    pub(crate) services: Arc<TestServices>,
    pub(crate) id: NodeId,
    pub(crate) tunnel: Tunnel,
    capacity: u32,
    _drain: watch::Sender<DrainState>,
    _record: watch::Sender<Bytes>,
    _status: watch::Receiver<TunnelStatus>,
}

impl Node {
    /// A node whose service is played by `on_open`.
    pub(crate) async fn by_hand(
        seed: u8,
        capacity: usize,
        on_open: impl Fn() -> Opened + Send + Sync + 'static,
    ) -> Self {
        Self::by_hand_over(Over::Memory, seed, capacity, on_open).await
    }

    pub(crate) async fn by_hand_over(
        over: Over,
        seed: u8,
        capacity: usize,
        on_open: impl Fn() -> Opened + Send + Sync + 'static,
    ) -> Self {
        let key = SecretKey::from_seed([seed; 32]);
        let services = Arc::new(TestServices {
            on_open: Box::new(on_open),
            capacity,
            taken: Arc::default(),
            freed: Arc::default(),
            taken_most: AtomicUsize::new(0),
            kept: Arc::default(),
            asked: AtomicUsize::new(0),
            when_full: Mutex::default(),
        });
        let (drain, record) = (watch::Sender::new(DrainState::Running), watch::Sender::new(record(&key)));
        let (coordinators, _) = tokio::sync::mpsc::channel(1);
        let (id, serving) = (key.id(), services.clone());
        let config = DialConfig {
            key,
            incarnation: 1,
            services: serving,
            authorities: vec![(service(), "127.0.0.1:8000".into())],
            record: record.subscribe(),
            leave: Arc::default(),
            drain: drain.subscribe(),
            coordinators,
            census: watch::Sender::new(None),
            newer: tokio::sync::mpsc::channel(1).0,
            pong_timeout: hedgerow_tunnel::tuning::PONG_TIMEOUT,
            lanes_max: 1,
            seed: 1,
        };
        let start = TunnelStatus { entry: None, state: TunnelState::Connecting, failures: 0 };
        let (say, status) = watch::channel(start);
        let link: Arc<dyn Link> = match over {
            Over::Memory => {
                let (entry, node) = memory::pair(NodeId([0xee; 32]), id);
                spawn_local(async move { serve_over(&config, federation(), Arc::new(node), |_| {}).await });
                Arc::new(entry)
            }
            Over::Quic => Arc::new(dialled_in(config, say).await),
        };
        let hello = Hello { federation: federation(), incarnation: 1, shard: 0, shards: 1 };
        let (tunnel, mut events, _, _) = welcome(link, hello, &Limits::PRODUCTION, &Open).await.unwrap();
        spawn_local(async move { while !matches!(events.next().await, TunnelEvent::Closed(_)) {} });
        Self {
            services,
            id,
            tunnel,
            capacity: capacity.try_into().unwrap(),
            _drain: drain,
            _record: record,
            _status: status,
        }
    }

    /// As the forwarding sees it.
    pub(crate) fn candidate(&self) -> Candidate {
        self.candidate_in(&Loads::default())
    }

    /// As the forwarding of this process sees it.
    pub(crate) fn candidate_in(&self, loads: &Loads) -> Candidate {
        Candidate::new(&service(), self.tunnel.clone(), self.capacity, loads.of(self.id, &service()))
    }

    /// Its tunnel is gone from one moment to the next.
    pub(crate) fn dies(&self) {
        self.tunnel.close(close::GOING, "killed");
    }

    /// A node whose service is a hyper server with this handler.
    pub(crate) async fn with<F, Fut>(seed: u8, capacity: usize, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + 'static,
        Fut: Future<Output = Response<AnyBody>> + 'static,
    {
        Self::with_over(Over::Memory, seed, capacity, handler).await
    }

    pub(crate) async fn with_over<F, Fut>(over: Over, seed: u8, capacity: usize, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + 'static,
        Fut: Future<Output = Response<AnyBody>> + 'static,
    {
        let (connect, mut connections) = tokio::sync::mpsc::unbounded_channel();
        spawn_local(async move {
            while let Some(io) = connections.recv().await {
                let handler = handler.clone();
                spawn_local(async move {
                    let service = service_fn(move |request| {
                        let answer = handler(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let io: TokioIo<DuplexStream> = TokioIo::new(io);
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
                });
            }
        });
        Self::by_hand_over(over, seed, capacity, move || {
            let (mine, theirs) = tokio::io::duplex(PIPE_BYTES);
            connect.send(theirs).unwrap();
            Opened::Fresh(mine)
        })
        .await
    }
}

/// Runs HTTP/2's tasks on this thread.
#[derive(Clone, Copy)]
pub(crate) struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

fn federation() -> FederationId {
    FederationId([1; 32])
}

fn record(key: &SecretKey) -> Bytes {
    let record = NodeRecord {
        roles: Roles::Worker,
        location: "test".into(),
        version: "0".into(),
        services: vec![],
        multiaddrs: vec![],
        home: None,
        candidacy: Default::default(),
        hardware: Default::default(),
    };
    let signed = Signed::sign(key, federation(), 1, Version { epoch: 1, seq: 1 }, &Body::Node(record)).unwrap();
    signed.bytes().clone()
}

impl Drop for Node {
    fn drop(&mut self) {
        self.dies();
    }
}

/// An entry's end of a QUIC connection that a node has dialled.
async fn dialled_in(config: DialConfig, status: watch::Sender<TunnelStatus>) -> quic::QuicLink {
    struct Here(hedgerow_tunnel::Target);
    impl hedgerow_tunnel::Directory for Here {
        fn target(&self) -> BoxFuture<'_, Result<hedgerow_tunnel::Target, String>> {
            let target = self.0.clone();
            Box::pin(async move { Ok(target) })
        }
    }

    let identity = EntryIdentity { key: SecretKey::from_seed([0xee; 32]), federation: federation(), incarnation: 1 };
    let (socket, _) = quic::bind((Ipv4Addr::LOCALHOST, 0).into(), quic::Sharing::First).unwrap();
    let ways = vec![hedgerow_tunnel::Way::Quic(socket.local_addr().unwrap())];
    let endpoint = quic::listen(&identity, socket).unwrap();
    let target = hedgerow_tunnel::Target { ways, entry: identity.key.id(), federation: federation() };
    spawn_local(maintain(config, Arc::new(Here(target)), status));
    let incoming = in_time("a connection", endpoint.accept()).await.unwrap();
    let link = quic::Acceptor::new(&identity).unwrap().handshake(incoming).await.unwrap();
    // The endpoint lives as long as its connection.
    spawn_local(async move { endpoint.wait_idle().await });
    link
}

pub(crate) fn service() -> ServiceName {
    ServiceName::new("web").unwrap()
}

/// All nodes offer `web`.
#[derive(Clone, Default)]
pub(crate) struct Nodes(Rc<RefCell<Arc<[Candidate]>>>);

impl Directory for Nodes {
    fn find(&self, target: &Target<'_>) -> Option<Offer> {
        let offer = Offer { service: service(), candidates: self.0.borrow().clone() };
        (target.service() == "web" && !offer.candidates.is_empty()).then_some(offer)
    }

    fn known(&self, _: &Target<'_>) -> String {
        "no node has ever offered it; offered now: web".into()
    }
}

/// A front with a forwarder.
pub(crate) struct Front {
    pub(crate) forwarder: Forwarder<Nodes>,
    pub(crate) stats: Arc<Stats>,
}

/// The times of production are long for a test that waits them out.
pub(crate) fn config() -> ForwardConfig {
    with_attempts(|_| {})
}

/// With other times or bounds of a request's attempts.
pub(crate) fn with_attempts(change: impl FnOnce(&mut AttemptLimits)) -> ForwardConfig {
    let mut attempts = AttemptLimits { accept_timeout: Duration::from_secs(1), ..AttemptLimits::PRODUCTION };
    change(&mut attempts);
    ForwardConfig { attempts, ..ForwardConfig::default() }
}

impl Front {
    pub(crate) fn before(nodes: &[&Node]) -> Self {
        Self::with(config(), nodes)
    }

    pub(crate) fn with(config: ForwardConfig, nodes: &[&Node]) -> Self {
        let loads = Loads::default();
        Self::to(config, nodes.iter().map(|node| node.candidate_in(&loads)).collect())
    }

    /// In front of these.
    pub(crate) fn of(candidates: Vec<Candidate>) -> Self {
        Self::to(config(), candidates)
    }

    fn to(config: ForwardConfig, candidates: Vec<Candidate>) -> Self {
        let stats = Arc::new(Stats::default());
        let directory = Nodes(Rc::new(RefCell::new(candidates.into())));
        Self { forwarder: Forwarder::new(Arc::new(config), directory, stats.clone(), 7), stats }
    }

    /// A client's raw connection.
    pub(crate) fn connect(&self) -> DuplexStream {
        let (mine, theirs) = tokio::io::duplex(PIPE_BYTES);
        let forwarder = self.forwarder.clone();
        let peer = Rc::new(Peer::client(IpAddr::V4(Ipv4Addr::LOCALHOST), Scheme::Http));
        spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (forwarder, peer) = (forwarder.clone(), peer.clone());
                async move { Ok::<_, Infallible>(forwarder.forward(request, &peer).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
            let _ = connection.with_upgrades().await;
        });
        mine
    }

    /// A client that speaks HTTP/1.1.
    pub(crate) async fn client(&self) -> SendRequest<AnyBody> {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.connect())).await.unwrap();
        spawn_local(connection);
        sender
    }

    /// A client that speaks HTTP/2, and its front.
    pub(crate) async fn client_h2(&self) -> hyper::client::conn::http2::SendRequest<AnyBody> {
        let (mine, theirs) = tokio::io::duplex(PIPE_BYTES);
        let forwarder = self.forwarder.clone();
        let peer = Rc::new(Peer::client(IpAddr::V4(Ipv4Addr::LOCALHOST), Scheme::Https));
        spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (forwarder, peer) = (forwarder.clone(), peer.clone());
                async move { Ok::<_, Infallible>(forwarder.forward(request, &peer).await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(Local);
            let _ = builder.serve_connection(TokioIo::new(theirs), service).await;
        });
        let (sender, connection) = hyper::client::conn::http2::handshake(Local, TokioIo::new(mine)).await.unwrap();
        spawn_local(connection);
        sender
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, request: Request<AnyBody>) -> Response<Incoming> {
        let mut client = self.client().await;
        in_time("an answer", client.send_request(request)).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Incoming> {
        self.send(Request::get(path).header("host", "fed.example").body(text("")).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.send(Request::post(path).header("host", "fed.example").body(text(body)).unwrap()).await
    }
}
