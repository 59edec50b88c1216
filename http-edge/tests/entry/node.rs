//! A node in the test's own process: the dialling side of the tunnel, in front of a service of the test's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{Preface, Refusal, StreamKind};
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::record::{Body, NodeRecord, Roles, ServiceHealth, ServiceOffer, Signed, Version};
use hedgerow_proto::registry::Registry;
use hedgerow_proto::sync::{Session, SyncError};
use hedgerow_tunnel::link::{BoxFuture, BoxStream};
use hedgerow_tunnel::serve::OtherStream;
use hedgerow_tunnel::sync::{SyncReplica, synchronise};
use hedgerow_tunnel::{
    BoxIo, DialConfig, Directory, DrainState, OpenService, Services, Slot, Target, TunnelState, TunnelStatus, Way,
    maintain,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::common::{Entry, in_time};

/// A service that answers with what it was asked, and holds back where it is told to.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// Requests for `/hold` wait for this.
    pub(crate) release: Arc<Notify>,
    /// One for each request for `/hold` that has come.
    pub(crate) holding: Arc<Notify>,
    /// One for each of them that was given up before.
    pub(crate) cancelled: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let [release, holding, cancelled] = std::array::from_fn(|_| Arc::new(Notify::new()));
        let task = tokio::spawn({
            let (release, holding, cancelled) = (release.clone(), holding.clone(), cancelled.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, release.clone(), holding.clone(), cancelled.clone()));
                }
            }
        });
        Self { address, release, holding, cancelled, task }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, release: Arc<Notify>, holding: Arc<Notify>, cancelled: Arc<Notify>) {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let asked = String::from_utf8_lossy(&head).into_owned();
        head.clear();
        if asked.contains(" /hold ") {
            holding.notify_one();
            tokio::select! {
                () = release.notified() => {}
                // Nothing more is to come: an end or a reset means that the request was cancelled.
                _ = stream.read_u8() => return cancelled.notify_one(),
            }
        }
        if asked.contains("upgrade: echo") {
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            if stream.write_all(switch).await.is_ok() {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }
            return;
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{asked}", asked.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct OneService {
    address: SocketAddr,
    /// The names that it goes by: a real node refuses every other.
    names: Vec<&'static str>,
    registry: Option<Replica>,
    takes_peers: bool,
}

/// What a coordinator knows.
#[derive(Clone)]
pub(crate) struct Replica(pub(crate) Arc<Mutex<Registry>>);

impl SyncReplica for Replica {
    fn transmit(&self, session: &mut Session) -> Option<Vec<u8>> {
        session.poll_transmit(Time::ORIGIN, &self.0.lock().unwrap())
    }

    fn receive(&self, session: &mut Session, message: &[u8]) -> Result<(), SyncError> {
        session.handle(Time::ORIGIN, &mut self.0.lock().unwrap(), message).map(drop)
    }
}

struct Free;

impl Slot for Free {
    fn keep(self: Box<Self>, _io: BoxIo) {}
}

impl Services for OneService {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async move {
            let asked = preface.service.as_ref().ok_or(Refusal::UnknownService)?;
            if !self.names.contains(&asked.as_str()) {
                return Err(Refusal::UnknownService);
            }
            let io = TcpStream::connect(self.address).await.map_err(|_| Refusal::ServiceDown)?;
            Ok(OpenService { io: Box::new(io), reused: false, slot: Box::new(Free) })
        })
    }

    fn other(&self, preface: &Preface) -> Option<OtherStream> {
        if preface.kind == StreamKind::MeshPeer {
            let take: OtherStream = Box::new(|stream| Box::pin(take_peer(stream)));
            return self.takes_peers.then_some(take);
        }
        let replica = self.registry.clone().filter(|_| preface.kind == StreamKind::Sync)?;
        Some(Box::new(move |mut stream| {
            Box::pin(async move {
                // The entry has what it wanted, or the test will say what is missing.
                let _ = synchronise(&mut stream, Session::respond(), &replica).await;
                let _ = stream.shutdown().await;
            })
        }))
    }
}

/// Shakes hands as a WebSocket does, says with which head it was asked, and answers with whatever it hears.
async fn take_peer(mut stream: BoxStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let said = [switch.as_bytes(), &head].concat();
    if stream.write_all(&said).await.is_ok() && stream.flush().await.is_ok() {
        let (mut read, mut write) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    }
}

struct Fixed(Target);

impl Directory for Fixed {
    fn target(&self) -> BoxFuture<'_, Result<Target, String>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// What a node says of itself.
#[derive(Clone)]
pub(crate) struct Says {
    pub(crate) seed: u8,
    pub(crate) epoch: u64,
    pub(crate) roles: Roles,
    pub(crate) services: Vec<(&'static str, ServiceHealth)>,
    pub(crate) multiaddrs: Vec<String>,
    /// For coordinators that take part in synchronisation.
    pub(crate) registry: Option<Replica>,
}

impl Says {
    pub(crate) fn worker(seed: u8, services: &[&'static str]) -> Self {
        let services = services.iter().map(|name| (*name, ServiceHealth::Up)).collect();
        Self { seed, epoch: 1, roles: Roles::Worker, services, multiaddrs: vec![], registry: None }
    }

    pub(crate) fn coordinator(seed: u8) -> Self {
        Self { roles: Roles::Coordinator, ..Self::worker(seed, &[]) }
    }

    pub(crate) fn key(&self) -> SecretKey {
        SecretKey::from_seed([self.seed; 32])
    }

    fn body(&self) -> Body {
        let offers = self.services.iter().map(|(name, health)| ServiceOffer {
            name: ServiceName::new(name).unwrap(),
            capacity: 8,
            health: *health,
        });
        Body::Node(NodeRecord {
            roles: self.roles,
            location: "a test".into(),
            version: "0".into(),
            services: offers.collect(),
            multiaddrs: self.multiaddrs.clone(),
            home: None,
            candidacy: Default::default(),
            hardware: Default::default(),
        })
    }

    /// What it says of itself, as it signs it.
    pub(crate) fn record(&self, federation: FederationId) -> Bytes {
        self.sign(federation, 1, &self.body())
    }

    pub(crate) fn sign(&self, federation: FederationId, seq: u64, body: &Body) -> Bytes {
        let version = Version { epoch: self.epoch, seq };
        Signed::sign(&self.key(), federation, self.incarnation(), version, body).unwrap().bytes().clone()
    }

    fn incarnation(&self) -> u64 {
        u64::from(self.seed) << 32 | self.epoch
    }
}

/// A node that runs.
pub(crate) struct Node {
    pub(crate) says: Says,
    pub(crate) status: watch::Receiver<TunnelStatus>,
    /// What entries have told of coordinators.
    pub(crate) coordinators: mpsc::Receiver<Vec<Vec<u8>>>,
    federation: FederationId,
    record: watch::Sender<Bytes>,
    leave: Arc<OnceLock<Bytes>>,
    drain: watch::Sender<DrainState>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// Dials the entry, and serves what comes from the service at `service`.
    pub(crate) fn start(entry: &Entry, service: SocketAddr, says: Says) -> Self {
        Self::start_by(Way::Quic(entry.tunnel), entry, service, says)
    }

    /// The same, by this way.
    pub(crate) fn start_by(way: Way, entry: &Entry, service: SocketAddr, says: Says) -> Self {
        let federation = entry.ready["federation"].as_str().unwrap().parse().unwrap();
        let target =
            Target { ways: vec![way], entry: entry.ready["node_id"].as_str().unwrap().parse().unwrap(), federation };
        let record = watch::Sender::new(says.record(federation));
        let drain = watch::Sender::new(DrainState::Running);
        let leave = Arc::new(OnceLock::new());
        let (tell, coordinators) = mpsc::channel(16);
        let names: Vec<_> = says.services.iter().map(|(name, _)| *name).collect();
        let authorities = names.iter().map(|name| (ServiceName::new(name).unwrap(), service.to_string())).collect();
        let config = DialConfig {
            key: says.key(),
            incarnation: says.incarnation(),
            services: Arc::new(OneService {
                address: service,
                names,
                registry: says.registry.clone(),
                takes_peers: says.roles.coordinates(),
            }),
            authorities,
            record: record.subscribe(),
            leave: leave.clone(),
            drain: drain.subscribe(),
            coordinators: tell,
            census: watch::Sender::new(None),
            newer: mpsc::channel(1).0,
            pong_timeout: hedgerow_tunnel::tuning::PONG_TIMEOUT,
            lanes_max: 2,
            seed: u64::from(says.seed),
        };
        let start = TunnelStatus { entry: None, state: TunnelState::Connecting, failures: 0 };
        let (say, status) = watch::channel(start);
        let task = tokio::spawn(maintain(config, Arc::new(Fixed(target)), say));
        Self { says, status, coordinators, federation, record, leave, drain, task }
    }

    /// The same, and waits until its tunnel is up.
    pub(crate) async fn join(entry: &Entry, service: SocketAddr, says: Says) -> Self {
        let mut node = Self::start(entry, service, says);
        node.until("the tunnel is up", |state| matches!(state, TunnelState::Up(_))).await;
        node
    }

    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&TunnelState) -> bool) {
        in_time(what, self.status.wait_for(|status| wanted(&status.state))).await.unwrap();
    }

    pub(crate) fn id(&self) -> NodeId {
        self.says.key().id()
    }

    /// Says something new about its services.
    pub(crate) fn say(&mut self, seq: u64, services: &[(&'static str, ServiceHealth)]) {
        self.says.services = services.to_vec();
        self.record.send_replace(self.says.sign(self.federation, seq, &self.says.body()));
    }

    /// Leaves, as a node does that is stopped.
    pub(crate) async fn leave(&mut self, seq: u64) {
        self.leave.set(self.says.sign(self.federation, seq, &Body::Leave)).unwrap();
        self.drain.send_replace(DrainState::Draining);
        self.until("the node has left", |state| matches!(state, TunnelState::Drained)).await;
    }
}
