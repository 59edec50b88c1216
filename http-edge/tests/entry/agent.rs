//! An agent without a key of ours: HTTP at an address of its own, and a coordinator that speaks for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hedgerow_proto::clock::Time;
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Body, Guest, GuestDetails, GuestStatus, Roles, Signed};
use hedgerow_proto::registry::{Registry, Source};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::common::Entry;
use crate::node::{Node, Replica, Says};

/// What it answers to a head.
type Answers = dyn Fn(&str) -> String + Send + Sync;

/// An HTTP server: as soon as this is dropped nothing is left of it, open connections included.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    /// Connections that came in.
    hits: Arc<AtomicUsize>,
    /// One for each request for `/hold`, which is never answered.
    pub(crate) holding: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Answers every request with its head.
    pub(crate) async fn start() -> Self {
        Self::at(([127, 0, 0, 1], 0).into()).await
    }

    /// The same, here.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        let echo = |head: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        Self::on(TcpListener::bind(address).await.unwrap(), None, Arc::new(echo))
    }

    pub(crate) async fn answering(answers: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::serving(None, Arc::new(answers)).await
    }

    /// Over TLS.
    pub(crate) async fn secured(tls: rustls::ServerConfig) -> Self {
        Self::serving(Some(Arc::new(tls).into()), Arc::new(|_| "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()))
            .await
    }

    async fn serving(tls: Option<TlsAcceptor>, answers: Arc<Answers>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), tls, answers)
    }

    fn on(listener: TcpListener, tls: Option<TlsAcceptor>, answers: Arc<Answers>) -> Self {
        let address = listener.local_addr().unwrap();
        let (hits, holding) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, held) = (hits.clone(), holding.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (tls, answers, held) = (tls.clone(), answers.clone(), held.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &*answers, &held).await,
                        // Who does not trust the certificate hangs up.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &*answers, &held).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, hits, holding, task }
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it, and everything that it does, until nobody takes a connection there: a process that another test is just starting
    /// has a copy of the listener for a moment.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        while TcpStream::connect(self.address).await.is_ok() {}
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answers: &Answers, holding: &Notify) {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let asked = String::from_utf8_lossy(&head).into_owned();
        head.clear();
        if asked.contains("/hold ") {
            holding.notify_one();
            std::future::pending::<()>().await;
        }
        if stream.write_all(answers(&asked).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A coordinator that speaks for agents.
pub(crate) struct Sponsor {
    says: Says,
    replica: Replica,
    federation: FederationId,
    seq: u64,
    _node: Node,
}

impl Sponsor {
    /// Speaks for these from the start: each by its id, its URL, and its services.
    pub(crate) async fn join(entry: &Entry, seed: u8, guests: &[(&str, &str, &[&str])]) -> Self {
        let federation = entry.ready["federation"].as_str().unwrap().parse().unwrap();
        let replica = Replica(Arc::new(Mutex::new(Registry::new(federation, Limits::PRODUCTION))));
        let says = Says { roles: Roles::Coordinator, registry: Some(replica.clone()), ..Says::worker(seed, &[]) };
        let own = Signed::open(says.record(federation), federation, &Limits::PRODUCTION).unwrap();
        replica.0.lock().unwrap().insert(Time::ORIGIN, own, Source::Own).unwrap();
        let mut sponsor = Speaks { says: &says, replica: &replica, federation, seq: 1 };
        for (id, url, services) in guests {
            sponsor.say(id, url, services, GuestStatus::Healthy);
        }
        let seq = sponsor.seq;
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let node = Node::join(entry, nowhere, says.clone()).await;
        Self { says, replica, federation, seq, _node: node }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.says.key().id()
    }

    /// Says something new of one of them. The entry hears of it with the next synchronisation, within seconds.
    pub(crate) fn say(&mut self, id: &str, url: &str, services: &[&str], status: GuestStatus) {
        let mut speaks =
            Speaks { says: &self.says, replica: &self.replica, federation: self.federation, seq: self.seq };
        speaks.say(id, url, services, status);
        self.seq = speaks.seq;
    }
}

struct Speaks<'a> {
    says: &'a Says,
    replica: &'a Replica,
    federation: FederationId,
    seq: u64,
}

impl Speaks<'_> {
    fn say(&mut self, id: &str, url: &str, services: &[&str], status: GuestStatus) {
        let details = GuestDetails {
            worker_type: "cpu".into(),
            tunnel_url: url.into(),
            location: "a test".into(),
            services: services.iter().map(|name| ServiceName::new(name).unwrap()).collect(),
            capabilities: "{}".into(),
            status,
            load_percent: 0,
        };
        self.seq += 1;
        let body = Body::Guest(Guest { worker_id: id.into(), details });
        let signed = self.says.sign(self.federation, self.seq, &body);
        let signed = Signed::open(signed, self.federation, &Limits::PRODUCTION).unwrap();
        self.replica.0.lock().unwrap().insert(Time::ORIGIN, signed, Source::Own).unwrap();
    }
}
