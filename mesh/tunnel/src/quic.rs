//! Tunnels over QUIC (RFC 9000) by quinn.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hedgerow_proto::frame::{ALPN, reset};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::scope::is_near;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, EndpointConfig, ReadError, TransportConfig, VarInt, WriteError};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::accept::TunnelError;
use crate::link::{BoxFuture, BoxStream, Link, LinkClosed, Stream, StreamReset, Transport};
use crate::{tls, tuning};

mod observe;

/// Who an entry is.
#[derive(Debug, Clone)]
pub struct EntryIdentity {
    /// The key of its tunnels. Reset and connection-id keys derive from it, so that after a restart the old connections
    /// of the nodes are reset at once.
    pub key: SecretKey,
    /// The federation that it serves.
    pub federation: FederationId,
    /// Random for each run.
    pub incarnation: u64,
}

/// The name in the TLS handshake: keys are proven, not names.
const SERVER_NAME: &str = "hedgerow";

fn transport(peer: IpAddr, streams_from_peer: u32) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let idle = VarInt::from_u32(tuning::IDLE_TIMEOUT.as_millis() as u32);
    config
        .max_concurrent_bidi_streams(streams_from_peer.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(tuning::STREAM_WINDOW_BYTES.into())
        .receive_window(tuning::CONNECTION_WINDOW_BYTES.into())
        .send_window(tuning::SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(idle.into()));
    // Under loss, BBR carries where loss-based control starves; on a clean local path it costs CPU for nothing.
    if !is_near(peer) {
        config.congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()));
    }
    Arc::new(config)
}

/// Whether other sockets of this process are bound to the same address (SO_REUSEPORT): one for each thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None are.
    Alone,
    /// This is the first: the address must be free, also of other processes that would share it.
    First,
    /// There is a first.
    Further,
}

/// A UDP socket with large buffers, and the size of the receive buffer that the kernel gave, in bytes.
pub fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<(std::net::UdpSocket, usize)> {
    let kind = socket2::Type::DGRAM;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, Some(socket2::Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if sharing == Sharing::Further {
        socket.set_reuse_port(true)?;
    }
    // Too large a wish is cut by the kernel, not refused.
    socket.set_recv_buffer_size(tuning::UDP_BUFFER_BYTES)?;
    socket.set_send_buffer_size(tuning::UDP_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if sharing == Sharing::First {
        // Only now: bound with it, the socket would join those of another process, and take half of its packets.
        socket.set_reuse_port(true)?;
    }
    // Linux reports twice what it grants (socket(7)).
    let granted = socket.recv_buffer_size()? / 2;
    Ok((socket.into(), granted))
}

/// An entry's side: an endpoint on this socket, on the current tokio runtime.
pub fn listen(identity: &EntryIdentity, socket: std::net::UdpSocket) -> Result<quinn::Endpoint, TunnelError> {
    let mut config = EndpointConfig::new(Arc::new(ResetKey::derive(&identity.key)));
    let cid_key = u64::from_be_bytes(first_8(identity.key.derive("quic-connection-id")));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    let server = server_config(identity, IpAddr::from([127, 0, 0, 1]))?;
    Ok(quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))?)
}

fn first_8(bytes: [u8; 32]) -> [u8; 8] {
    std::array::from_fn(|i| bytes[i])
}

/// The key of the stateless resets (RFC 9000 §10.3.2). A type of its own, since quinn takes one library's keys or the other's as
/// features of other crates have it.
struct ResetKey(aws_lc_rs::hmac::Key);

impl ResetKey {
    fn derive(key: &SecretKey) -> Self {
        Self(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key.derive("quic-reset")))
    }
}

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(aws_lc_rs::hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        aws_lc_rs::digest::SHA256_OUTPUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        aws_lc_rs::hmac::verify(&self.0, data, signature).map_err(|_| quinn::crypto::CryptoError)
    }
}

fn server_config(identity: &EntryIdentity, peer: IpAddr) -> Result<quinn::ServerConfig, TunnelError> {
    let tls = QuicServerConfig::try_from(tls::server(&identity.key, ALPN)?).map_err(TunnelError::config)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    // The node opens no streams: every stream is a request, and requests come from the entry.
    config.transport_config(transport(peer, 0));
    Ok(config)
}

/// The two configurations of an entry's endpoint, made once: for peers near by and for the rest of the world.
pub struct Acceptor {
    local: Arc<quinn::ServerConfig>,
    remote: Arc<quinn::ServerConfig>,
}

impl Acceptor {
    /// For connections to this entry.
    pub fn new(identity: &EntryIdentity) -> Result<Self, TunnelError> {
        let documentation = IpAddr::from([203, 0, 113, 1]);
        Ok(Self {
            local: Arc::new(server_config(identity, IpAddr::from([127, 0, 0, 1]))?),
            remote: Arc::new(server_config(identity, documentation)?),
        })
    }

    /// Completes the handshake of a connection that `Endpoint::accept` gave. Whoever wants something else than a tunnel is told from
    /// where it has come.
    pub async fn handshake(&self, incoming: quinn::Incoming) -> Result<QuicLink, TunnelError> {
        let from = incoming.remote_address();
        let config = if is_near(from.ip()) { &self.local } else { &self.remote };
        let mut config = quinn::ServerConfig::clone(config);
        config.crypto = Arc::new(observe::Observing { inner: config.crypto, from });
        // What comes with the first packet may be enough to refuse it.
        let connection = match incoming.accept_with(Arc::new(config)) {
            Ok(connecting) => within_handshake(connecting).await?,
            Err(error) => Err(error),
        };
        match connection {
            Ok(connection) => QuicLink::new(connection),
            Err(error) if observe::was_told(&error) => Err(TunnelError::NoTunnelWanted),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) async fn within_handshake<T>(handshake: impl Future<Output = T>) -> Result<T, TunnelError> {
    tokio::time::timeout(tuning::HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| TunnelError::Timeout)
}

/// A node's side: a connection to this entry at this address, from a port of its own.
pub async fn dial(key: &SecretKey, entry: NodeId, address: SocketAddr) -> Result<QuicLink, TunnelError> {
    let local: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let (socket, _) = bind(local, Sharing::Alone)?;
    let tls = QuicClientConfig::try_from(tls::client(key, entry, ALPN)?).map_err(TunnelError::config)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(transport(address.ip(), tuning::STREAMS_PER_CONNECTION_MAX));
    let endpoint = quinn::Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?;
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(TunnelError::config)?;
    QuicLink::new(within_handshake(connecting).await??)
}

/// A QUIC connection whose peer has proven its key.
pub struct QuicLink {
    connection: quinn::Connection,
    peer: NodeId,
}

impl QuicLink {
    fn new(connection: quinn::Connection) -> Result<Self, TunnelError> {
        let identity = connection.peer_identity();
        let certificates =
            identity.and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
        let peer = certificates.and_then(|shown| tls::node_id(shown.first()?.as_ref())).ok_or(TunnelError::NoKey)?;
        Ok(Self { connection, peer })
    }
}

impl From<ConnectionError> for LinkClosed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self {
                code: u32::try_from(close.error_code.into_inner()).ok(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            ConnectionError::Reset => Self { code: None, reason: "the other end has restarted".into() },
            ConnectionError::TimedOut => Self { code: None, reason: "nothing came from the other end".into() },
            other => Self { code: None, reason: other.to_string() },
        }
    }
}

impl Link for QuicLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let (send, recv) = self.connection.open_bi().await?;
            Ok(Box::new(QuicStream::new(send, recv)) as BoxStream)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let (send, recv) = self.connection.accept_bi().await?;
            Ok(Box::new(QuicStream::new(send, recv)) as BoxStream)
        })
    }

    fn close(&self, code: u32, reason: &str) {
        self.connection.close(code.into(), reason.as_bytes());
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(async move { self.connection.closed().await.into() })
    }

    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    fn peer(&self) -> NodeId {
        self.peer
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(self.connection.remote_address())
    }

    fn received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    fn transport(&self) -> Transport {
        Transport::Quic
    }
}

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, quinn::StoppedError>> + Send + Sync>>;

struct QuicStream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    stopped: Option<Stopped>,
    finished: bool,
}

impl QuicStream {
    fn new(send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self { send, recv, stopped: None, finished: false }
    }
}

fn code(value: VarInt) -> u32 {
    u32::try_from(value.into_inner()).unwrap_or(u32::MAX)
}

fn read_error(error: ReadError) -> io::Error {
    match error {
        ReadError::Reset(value) => StreamReset(code(value)).into_io(),
        ReadError::ConnectionLost(lost) => LinkClosed::from(lost).into(),
        other => other.into(),
    }
}

fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::Stopped(value) => StreamReset(code(value)).into_io(),
        WriteError::ConnectionLost(lost) => LinkClosed::from(lost).into(),
        other => other.into(),
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.recv.poll_read_buf(cx, buf).map_err(read_error)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf).map_err(write_error)
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        // An error says only that it was finished or reset before: either way nothing more will go out.
        let _ = self.send.finish();
        Poll::Ready(Ok(()))
    }
}

impl Stream for QuicStream {
    fn reset(&mut self, code: u32) {
        self.finished = true;
        let _ = self.send.reset(code.into());
        let _ = self.recv.stop(code.into());
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<u32> {
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(self.send.stopped()));
        match ready!(stopped.as_mut().poll(cx)) {
            Ok(Some(value)) => Poll::Ready(code(value)),
            // Everything arrived: nobody is going to stop it any more. Or the connection is lost, which reading tells.
            Ok(None) | Err(_) => {
                self.stopped = Some(Box::pin(std::future::pending()));
                Poll::Pending
            }
        }
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        // quinn would finish a dropped stream, and the peer would take half a message for a whole one.
        if !self.finished {
            let _ = self.send.reset(reset::CANCELLED.into());
        }
    }
}
