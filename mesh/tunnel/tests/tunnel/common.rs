//! An entry and a node in one process, over real QUIC or TCP on loopback or over memory, with a service that echoes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::frame::{Hello, Preface, Refusal, ServiceConnection, StreamKind, WhenFull};
use hedgerow_proto::id::{FederationId, NodeId, RequestId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Body, NodeRecord, Roles, ServiceHealth, ServiceOffer, Signed, Version};
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::{
    BoxIo, DialConfig, Directory, DrainState, EntryIdentity, Link, Open, OpenService, Services, Slot, Target, Tunnel,
    TunnelError, TunnelEvent, TunnelState, TunnelStatus, Way, maintain, quic, tcp, welcome,
};
use tokio::io::{BufStream, DuplexStream, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::LazyConfigAcceptor;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// What a test runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Memory,
    Quic,
    Tcp,
}

/// Each test over each of these.
macro_rules! over_each {
    ([$($over:ident: $value:ident),*] $tests:tt) => {
        $(mod $over { crate::common::over_each!(@one $value $tests); })*
    };
    (@one $value:ident { $($test:ident,)* }) => {
        $(#[tokio::test]
        async fn $test() {
            super::$test(crate::common::Over::$value).await;
        })*
    };
}
pub(crate) use over_each;

pub(crate) fn federation() -> FederationId {
    FederationId([1; 32])
}

pub(crate) fn node_record(key: &SecretKey, seq: u64) -> Bytes {
    let record = NodeRecord {
        roles: Roles::Worker,
        location: "test".into(),
        version: "0".into(),
        services: vec![ServiceOffer {
            name: ServiceName::new("echo").unwrap(),
            capacity: 2,
            health: ServiceHealth::Up,
        }],
        multiaddrs: vec![],
        home: None,
        candidacy: Default::default(),
        hardware: Default::default(),
    };
    sign(key, seq, &Body::Node(record))
}

pub(crate) fn sign(key: &SecretKey, seq: u64, body: &Body) -> Bytes {
    Signed::sign(key, federation(), 1, Version { epoch: 1, seq }, body).unwrap().bytes().clone()
}

pub(crate) fn preface(service: &str) -> Preface {
    Preface {
        kind: StreamKind::Http,
        node: None,
        service: Some(ServiceName::new(service).unwrap()),
        request: RequestId(7),
        hops: 0,
        connection: ServiceConnection::MayReuse,
        when_full: WhenFull::Refuse,
    }
}

/// The far ends of the connections that the node opened to its service, for the test to play the service.
pub(crate) struct TestServices {
    pub(crate) capacity: usize,
    pub(crate) taken: Arc<AtomicUsize>,
    pub(crate) in_line: Arc<AtomicUsize>,
    pub(crate) kept: Arc<Mutex<Vec<BoxIo>>>,
    pub(crate) service_end: mpsc::UnboundedSender<DuplexStream>,
}

struct TestSlot(Arc<AtomicUsize>, Arc<Mutex<Vec<BoxIo>>>);

impl Drop for TestSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slot for TestSlot {
    fn keep(self: Box<Self>, io: BoxIo) {
        self.1.lock().unwrap().push(io);
    }
}

impl TestServices {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<DuplexStream>) {
        let (service_end, connections) = mpsc::unbounded_channel();
        (
            Arc::new(Self {
                capacity: 2,
                taken: Arc::default(),
                in_line: Arc::default(),
                kept: Arc::default(),
                service_end,
            }),
            connections,
        )
    }
}

/// A place in line.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn taken_in(line: &Arc<AtomicUsize>) -> Self {
        line.fetch_add(1, Ordering::SeqCst);
        Self(line.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Services for TestServices {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async move {
            if preface.service.as_ref().map(ServiceName::as_str) != Some("echo") {
                return Err(Refusal::UnknownService);
            }
            if self.taken.fetch_add(1, Ordering::SeqCst) >= self.capacity {
                self.taken.fetch_sub(1, Ordering::SeqCst);
                if preface.when_full == WhenFull::Wait {
                    // Nothing becomes free here.
                    let _place = Place::taken_in(&self.in_line);
                    std::future::pending::<()>().await;
                }
                return Err(Refusal::Full);
            }
            let slot = Box::new(TestSlot(self.taken.clone(), self.kept.clone()));
            if let Some(io) = self.kept.lock().unwrap().pop() {
                return Ok(OpenService { io, reused: true, slot });
            }
            let (mine, theirs) = tokio::io::duplex(4096);
            self.service_end.send(theirs).map_err(|_| Refusal::ServiceDown)?;
            // Which holds back what is written until it is flushed, as TLS does on a slow line.
            Ok(OpenService { io: Box::new(BufStream::new(mine)), reused: false, slot })
        })
    }
}

/// An entry on a port of loopback: hands over each tunnel that comes up, and then its events.
pub(crate) struct Entry {
    pub(crate) identity: EntryIdentity,
    /// Its UDP port.
    pub(crate) address: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) tunnels: mpsc::UnboundedReceiver<(Tunnel, mpsc::UnboundedReceiver<TunnelEvent>)>,
    runtime: Option<Runtime>,
}

impl Entry {
    pub(crate) fn start(key: SecretKey, incarnation: u64, address: SocketAddr) -> Self {
        Self::start_shards(key, incarnation, address, 1)
    }

    /// On a runtime of its own, with so many endpoints on one port.
    pub(crate) fn start_shards(key: SecretKey, incarnation: u64, address: SocketAddr, shards: u16) -> Self {
        let identity = EntryIdentity { key, federation: federation(), incarnation };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (up, tunnels) = mpsc::unbounded_channel();
        let mut address = address;
        for shard in 0..shards {
            let sharing = if shard == 0 { quic::Sharing::First } else { quic::Sharing::Further };
            let (socket, _) = quic::bind(address, sharing).unwrap();
            address = socket.local_addr().unwrap();
            runtime.spawn(accept_all(identity.clone(), socket, (shard, shards), up.clone()));
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let tcp = listener.local_addr().unwrap();
        runtime.spawn(accept_all_tcp(identity.clone(), listener, shards, up));
        Self { identity, address, tcp, tunnels, runtime: Some(runtime) }
    }

    pub(crate) async fn tunnel(&mut self) -> (Tunnel, mpsc::UnboundedReceiver<TunnelEvent>) {
        in_time("a tunnel", self.tunnels.recv()).await.unwrap()
    }

    /// It, reached in this way alone.
    pub(crate) fn target(&self, over: Over) -> Target {
        let way = match over {
            Over::Memory => unreachable!("nobody dials over memory"),
            Over::Quic => Way::Quic(self.address),
            Over::Tcp => tcp_way(self.tcp),
        };
        Target { ways: vec![way], entry: self.identity.key.id(), federation: federation() }
    }
}

pub(crate) fn tcp_way(address: SocketAddr) -> Way {
    Way::Tcp { address, host: "localhost".into() }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port in front of an entry that can be turned to another one: to the node it looks as if the process behind its
/// address was killed and started again.
pub(crate) struct Turnstile {
    pub(crate) address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    deaf: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Turnstile {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = outside.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let deaf = Arc::new(AtomicBool::new(false));
        let (towards, is_deaf) = (target.clone(), deaf.clone());
        let task = tokio::spawn(async move {
            let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
            let mut node = None;
            loop {
                tokio::select! {
                    Ok((got, from)) = outside.recv_from(&mut up) => {
                        node = Some(from);
                        let to = *towards.lock().unwrap();
                        let _ = inside.send_to(&up[..got], to).await;
                    }
                    Ok((got, from)) = inside.recv_from(&mut down) => {
                        let current = *towards.lock().unwrap() == from && !is_deaf.load(Ordering::Relaxed);
                        if let (Some(node), true) = (node, current) {
                            let _ = outside.send_to(&down[..got], node).await;
                        }
                    }
                }
            }
        });
        Self { address, target, deaf, task }
    }

    /// From now on nothing reaches the node, which is still heard.
    pub(crate) fn deafen(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    pub(crate) fn turn(&self, to: SocketAddr) {
        *self.target.lock().unwrap() = to;
    }
}

impl Drop for Turnstile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The same over TCP: what comes in is cut when it is turned, as the kernel of the killed process would do it.
pub(crate) struct TcpTurnstile {
    pub(crate) address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    task: JoinHandle<()>,
}

impl TcpTurnstile {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = outside.local_addr().unwrap();
        let target = watch::Sender::new(target);
        let mut towards = target.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((mut node, _)) = outside.accept() => {
                        let to = *towards.borrow();
                        connections.spawn(async move {
                            let Ok(mut entry) = TcpStream::connect(to).await else { return };
                            let _ = copy_bidirectional(&mut node, &mut entry).await;
                        });
                    }
                    Ok(()) = towards.changed() => connections.abort_all(),
                }
            }
        });
        Self { address, target, task }
    }

    pub(crate) fn turn(&self, to: SocketAddr) {
        self.target.send_replace(to);
    }
}

impl Drop for TcpTurnstile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Up = mpsc::UnboundedSender<(Tunnel, mpsc::UnboundedReceiver<TunnelEvent>)>;

async fn accept_all(identity: EntryIdentity, socket: std::net::UdpSocket, (shard, shards): (u16, u16), up: Up) {
    let endpoint = quic::listen(&identity, socket).unwrap();
    let acceptor = Arc::new(quic::Acceptor::new(&identity).unwrap());
    while let Some(incoming) = endpoint.accept().await {
        let (acceptor, up, incarnation) = (acceptor.clone(), up.clone(), identity.incarnation);
        let hello = Hello { federation: federation(), incarnation, shard, shards };
        tokio::spawn(async move {
            let Ok(link) = acceptor.handshake(incoming).await else { return };
            take_in(Arc::new(link), hello, up).await;
        });
    }
}

/// One listener for all threads, which get the connections in turn.
async fn accept_all_tcp(identity: EntryIdentity, listener: std::net::TcpListener, shards: u16, up: Up) {
    let listener = TcpListener::from_std(listener).unwrap();
    let acceptor = Arc::new(tcp::Acceptor::new(&identity).unwrap());
    let turn = AtomicU16::new(0);
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, up, incarnation) = (acceptor.clone(), up.clone(), identity.incarnation);
        let shard = turn.fetch_add(1, Ordering::Relaxed) % shards;
        let hello = Hello { federation: federation(), incarnation, shard, shards };
        tokio::spawn(async move {
            let Ok(link) = accept_tcp(&acceptor, stream).await else { return };
            take_in(Arc::new(link), hello, up).await;
        });
    }
}

/// As an entry does with what asks for a tunnel.
pub(crate) async fn accept_tcp(acceptor: &tcp::Acceptor, stream: TcpStream) -> Result<tcp::TcpLink, TunnelError> {
    let start = LazyConfigAcceptor::new(Default::default(), stream).await?;
    assert!(tcp::asks_for_tunnel(&start.client_hello()));
    acceptor.handshake(start).await
}

async fn take_in(link: Arc<dyn Link>, hello: Hello, up: Up) {
    let welcomed = welcome(link, hello, &Limits::PRODUCTION, &Open).await;
    let Ok((tunnel, mut events, _, _)) = welcomed else { return };
    let (say, said) = mpsc::unbounded_channel();
    let _ = up.send((tunnel, said));
    loop {
        let event = events.next().await;
        let last = matches!(event, TunnelEvent::Closed(_));
        if say.send(event).is_err() || last {
            return;
        }
    }
}

pub(crate) struct Fixed(pub(crate) Mutex<Target>);

impl Directory for Fixed {
    fn target(&self) -> BoxFuture<'_, Result<Target, String>> {
        let target = self.0.lock().unwrap().clone();
        Box::pin(async move { Ok(target) })
    }
}

/// What a node dials with, and what it is told by.
pub(crate) struct Parts {
    key: SecretKey,
    connections: mpsc::UnboundedReceiver<DuplexStream>,
    record: watch::Sender<Bytes>,
    drain: watch::Sender<DrainState>,
    leave: Arc<OnceLock<Bytes>>,
    pub(crate) config: DialConfig,
}

impl Parts {
    pub(crate) fn new(seed: u8) -> Self {
        let key = SecretKey::from_seed([seed; 32]);
        let (services, connections) = TestServices::new();
        let record = watch::Sender::new(node_record(&key, 1));
        let drain = watch::Sender::new(DrainState::Running);
        let leave = Arc::new(OnceLock::new());
        let (coordinators, _) = mpsc::channel(1);
        let config = DialConfig {
            key: key.clone(),
            incarnation: u64::from(seed),
            services,
            authorities: vec![(ServiceName::new("echo").unwrap(), "localhost:8000".into())],
            record: record.subscribe(),
            leave: leave.clone(),
            drain: drain.subscribe(),
            coordinators,
            census: watch::Sender::new(None),
            newer: mpsc::channel(1).0,
            pong_timeout: hedgerow_tunnel::tuning::PONG_TIMEOUT,
            lanes_max: 4,
            seed: u64::from(seed),
        };
        Self { key, connections, record, drain, leave, config }
    }
}

pub(crate) struct Node {
    pub(crate) key: SecretKey,
    pub(crate) connections: mpsc::UnboundedReceiver<DuplexStream>,
    pub(crate) record: watch::Sender<Bytes>,
    pub(crate) drain: watch::Sender<DrainState>,
    pub(crate) leave: Arc<OnceLock<Bytes>>,
    pub(crate) status: watch::Receiver<TunnelStatus>,
    pub(crate) task: JoinHandle<()>,
}

impl Node {
    pub(crate) fn start(seed: u8, target: Target) -> Self {
        let Parts { key, connections, record, drain, leave, config } = Parts::new(seed);
        let start = TunnelStatus { entry: None, state: TunnelState::Connecting, failures: 0 };
        let (say, status) = watch::channel(start);
        let task = tokio::spawn(maintain(config, Arc::new(Fixed(Mutex::new(target))), say));
        Self { key, connections, record, drain, leave, status, task }
    }

    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&TunnelState) -> bool) {
        in_time(what, self.status.wait_for(|status| wanted(&status.state))).await.unwrap();
    }

    pub(crate) fn id(&self) -> NodeId {
        self.key.id()
    }
}

/// Two ends of a connection: the entry's and the node's.
pub(crate) async fn pair(over: Over) -> (Arc<dyn Link>, Arc<dyn Link>) {
    let key = SecretKey::from_seed([2; 32]);
    let identity = EntryIdentity { key: SecretKey::from_seed([1; 32]), federation: federation(), incarnation: 1 };
    let id = identity.key.id();
    match over {
        Over::Memory => {
            let (entry, node) = hedgerow_tunnel::memory::pair(id, key.id());
            (Arc::new(entry), Arc::new(node))
        }
        Over::Quic => {
            let (socket, _) = quic::bind(([127, 0, 0, 1], 0).into(), quic::Sharing::Alone).unwrap();
            let address = socket.local_addr().unwrap();
            let endpoint = quic::listen(&identity, socket).unwrap();
            let acceptor = quic::Acceptor::new(&identity).unwrap();
            let accepted = async { acceptor.handshake(endpoint.accept().await.unwrap()).await };
            let (entry, node) = tokio::join!(accepted, quic::dial(&key, id, address));
            (Arc::new(entry.unwrap()), Arc::new(node.unwrap()))
        }
        Over::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let acceptor = tcp::Acceptor::new(&identity).unwrap();
            let accepted = async { accept_tcp(&acceptor, listener.accept().await.unwrap().0).await };
            let (entry, node) = tokio::join!(accepted, tcp::dial(&key, id, address, "localhost"));
            (Arc::new(entry.unwrap()), Arc::new(node.unwrap()))
        }
    }
}

/// Two ends with the node's end served.
pub(crate) async fn served(over: Over) -> (Arc<dyn Link>, Arc<TestServices>, mpsc::UnboundedReceiver<DuplexStream>) {
    let (entry, node) = pair(over).await;
    let (services, connections) = TestServices::new();
    let (serving, drain) = (services.clone(), watch::Sender::new(DrainState::Running));
    tokio::spawn(async move {
        hedgerow_tunnel::serve_link(node, serving, drain.subscribe(), Arc::default()).await;
    });
    (entry, services, connections)
}
