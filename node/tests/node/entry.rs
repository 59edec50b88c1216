//! An entry, played by the test: a bootstrap over HTTP, tunnels over QUIC or TCP, and requests down them.

use std::net::SocketAddr;
use std::sync::Arc;

use hedgerow_proto::frame::{Hello, Preface, Refusal, ServiceConnection, StreamKind, WhenFull};
use hedgerow_proto::id::{FederationId, RequestId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::Record;
use hedgerow_tunnel::{
    EntryIdentity, Exchange, ExchangeIo, Link, Open, Tunnel, TunnelEvent, Verdict, exchange, quic, tcp, welcome,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::process::in_time;

pub(crate) struct Entry {
    /// Where its bootstrap is.
    pub(crate) address: SocketAddr,
    pub(crate) identity: EntryIdentity,
    joined: mpsc::UnboundedReceiver<Joined>,
    tasks: Vec<JoinHandle<()>>,
}

/// What comes through to an entry.
enum Tunnels {
    Quic,
    Tcp,
}

/// A node's tunnel.
pub(crate) struct Joined {
    pub(crate) tunnel: Tunnel,
    pub(crate) record: Record,
    pub(crate) events: mpsc::UnboundedReceiver<TunnelEvent>,
}

impl Entry {
    /// On any port.
    pub(crate) async fn start(key_seed: u8) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), key_seed).await
    }

    pub(crate) async fn start_at(address: SocketAddr, key_seed: u8) -> Self {
        Self::start_with(address, key_seed, None, Tunnels::Quic).await
    }

    /// One to which no UDP comes through: its tunnels come over TCP.
    pub(crate) async fn start_without_udp(key_seed: u8) -> Self {
        Self::start_with("127.0.0.1:0".parse().unwrap(), key_seed, None, Tunnels::Tcp).await
    }

    /// Over https, with a certificate for this name that vouches for itself; the certificate in PEM.
    pub(crate) async fn start_https(name: &str, key_seed: u8) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        (
            Self::start_with("127.0.0.1:0".parse().unwrap(), key_seed, Some(acceptor), Tunnels::Quic).await,
            made.cert.pem(),
        )
    }

    async fn start_with(address: SocketAddr, key_seed: u8, tls: Option<TlsAcceptor>, tunnels: Tunnels) -> Self {
        let key = SecretKey::from_seed([key_seed; 32]);
        let identity = EntryIdentity { key, federation: FederationId([9; 32]), incarnation: u64::from(key_seed) };
        let (socket, _) = quic::bind("127.0.0.1:0".parse().unwrap(), quic::Sharing::Alone).unwrap();
        let tunnel_port = socket.local_addr().unwrap().port();
        let over_tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp_port = over_tcp.local_addr().unwrap().port();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (join, joined) = mpsc::unbounded_channel();
        let document = serde_json::json!({
            "federation": identity.federation.to_string(),
            "entry": {
                "id": identity.key.id().to_string(),
                "tunnel": [
                    { "transport": "quic", "host": null, "port": tunnel_port },
                    { "transport": "tcp", "host": null, "port": tcp_port },
                ],
            },
            "ttl": 60,
            "coordinators": [],
        });
        let tasks = vec![
            tokio::spawn(introduce(listener, tls, document.to_string())),
            match tunnels {
                Tunnels::Quic => tokio::spawn(accept(identity.clone(), socket, join)),
                Tunnels::Tcp => tokio::spawn(accept_tcp(identity.clone(), over_tcp, socket, join)),
            },
        ];
        Self { address, identity, joined, tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops it, and gives its ports back.
    pub(crate) async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            // The error says that it was aborted.
            let _ = task.await;
        }
    }

    /// Whether no other tunnel has come up so far.
    pub(crate) fn nobody_else(&mut self) -> bool {
        self.joined.try_recv().is_err()
    }

    /// The next tunnel that comes up.
    pub(crate) async fn joined(&mut self) -> Joined {
        in_time("a tunnel", self.joined.recv()).await.unwrap()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Joined {
    pub(crate) async fn event(&mut self) -> TunnelEvent {
        in_time("news from the node", self.events.recv()).await.expect("the tunnel lives")
    }

    /// Begins a request; it has a verdict.
    pub(crate) async fn ask(&self, service: &str) -> Result<Asked, Refusal> {
        self.ask_or(WhenFull::Refuse, service).await
    }

    /// The same, for a service that may be full.
    pub(crate) async fn ask_or(&self, when_full: WhenFull, service: &str) -> Result<Asked, Refusal> {
        let (mut io, exchange) = exchange(self.tunnel.open().await.unwrap());
        exchange.begin(&Preface {
            kind: StreamKind::Http,
            node: None,
            service: Some(ServiceName::new(service).unwrap()),
            request: RequestId(1),
            hops: 0,
            connection: ServiceConnection::MayReuse,
            when_full,
        });
        io.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        io.flush().await.unwrap();
        let (answered, answer) = tokio::sync::oneshot::channel();
        // The verdict comes to whoever reads.
        let reading = tokio::spawn(async move {
            let mut text = Vec::new();
            while !text.ends_with(b"hello") {
                match io.read_buf(&mut text).await {
                    Ok(1..) => {}
                    _ => break,
                }
            }
            let _ = answered.send(String::from_utf8(text).unwrap());
            io
        });
        match in_time("a verdict", exchange.verdict()).await {
            Verdict::Accepted => Ok(Asked { exchange, answer, _reading: reading }),
            Verdict::Refused(refusal) => Err(refusal),
            Verdict::Broken(breakage) => panic!("the stream broke before a verdict: {breakage}"),
        }
    }
}

/// A request that the node has accepted.
pub(crate) struct Asked {
    pub(crate) exchange: Exchange,
    answer: tokio::sync::oneshot::Receiver<String>,
    _reading: JoinHandle<ExchangeIo>,
}

impl Asked {
    /// What the service answers; what came until then if the tunnel breaks.
    pub(crate) async fn answer(self) -> String {
        let answer = in_time("the answer", self.answer).await.unwrap();
        self.exchange.release(hedgerow_proto::frame::Release::Keep);
        answer
    }
}

async fn introduce(listener: TcpListener, tls: Option<TlsAcceptor>, document: String) {
    while let Ok((stream, _)) = listener.accept().await {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{document}",
            document.len()
        );
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                None => say(stream, answer).await,
                // Whoever does not like the certificate hangs up.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        say(stream, answer).await;
                    }
                }
            }
        });
    }
}

async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: String) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut asked).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn accept(identity: EntryIdentity, socket: std::net::UdpSocket, join: mpsc::UnboundedSender<Joined>) {
    let endpoint = quic::listen(&identity, socket).unwrap();
    let acceptor = Arc::new(quic::Acceptor::new(&identity).unwrap());
    while let Some(incoming) = endpoint.accept().await {
        let (acceptor, join, identity) = (acceptor.clone(), join.clone(), identity.clone());
        tokio::spawn(async move {
            let Ok(link) = acceptor.handshake(incoming).await else { return };
            take_in(Arc::new(link), &identity, join).await;
        });
    }
}

async fn accept_tcp(
    identity: EntryIdentity,
    listener: TcpListener,
    _silent: std::net::UdpSocket,
    join: mpsc::UnboundedSender<Joined>,
) {
    let acceptor = Arc::new(tcp::Acceptor::new(&identity).unwrap());
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, join, identity) = (acceptor.clone(), join.clone(), identity.clone());
        tokio::spawn(async move {
            let Ok(start) = LazyConfigAcceptor::new(Default::default(), stream).await else { return };
            let Ok(link) = acceptor.handshake(start).await else { return };
            take_in(Arc::new(link), &identity, join).await;
        });
    }
}

async fn take_in(link: Arc<dyn Link>, identity: &EntryIdentity, join: mpsc::UnboundedSender<Joined>) {
    let hello = Hello { federation: identity.federation, incarnation: identity.incarnation, shard: 0, shards: 1 };
    let welcomed = welcome(link, hello, &Limits::PRODUCTION, &Open).await;
    let Ok((tunnel, mut told, _, record)) = welcomed else { return };
    let (tell, events) = mpsc::unbounded_channel();
    let _ = join.send(Joined { tunnel, record, events });
    loop {
        let event = told.next().await;
        let last = matches!(event, TunnelEvent::Closed(_));
        if tell.send(event).is_err() || last {
            return;
        }
    }
}
