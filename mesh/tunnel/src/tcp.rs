//! Tunnels over TLS over TCP, for nodes whose network lets no UDP out: the same keys, proven by the same handshake, on a port that
//! may serve https too.
//!
//! HTTP/2 (RFC 9113, the `h2` crate) makes streams of the one connection, with its flow control and its resets. The end that accepted
//! the connection, an entry, is the HTTP/2 client: so only it opens streams, as over QUIC. No request means anything; each opens
//! a stream and no more.
//!
//! ```text
//!   node                                                entry
//!   TCP, TLS 1.3 with raw keys, ALPN_TCP ─────────────▶ the port for clients, or one that serves in the clear
//!   HTTP/2 server ◀── POST / ── the first stream ────── HTTP/2 client     carries the last words of either end
//!                 ◀── POST / ── control, exchanges ────
//!                 ◀─▶ PING each 5 s: round trip, and whether the path is there
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use hedgerow_proto::frame::ALPN_TCP;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::SecretKey;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ClientHello;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::StartHandshake;

use crate::accept::TunnelError;
use crate::link::LinkClosed;
use crate::quic::{EntryIdentity, within_handshake};
use crate::{tls, tuning};

mod driver;
mod heard;
mod link;
mod stream;
mod words;

use heard::Heard;
pub use link::TcpLink;

/// A node's side: a connection to this entry at this address. `host` is the entry's name or address in its URL, for proxies and
/// firewalls on the way that look at it: keys are proven, not names.
pub async fn dial(key: &SecretKey, entry: NodeId, address: SocketAddr, host: &str) -> Result<TcpLink, TunnelError> {
    let config = Arc::new(tls::client(key, entry, ALPN_TCP)?);
    let name = ServerName::try_from(host.to_owned()).map_err(TunnelError::config)?;
    within_handshake(async {
        let socket = TcpStream::connect(address).await?;
        set_up(&socket)?;
        let (socket, heard) = Heard::new(socket);
        let tls = TlsConnector::from(config).connect(name, socket).await?;
        let peer = proven(tls.get_ref().1.peer_certificates())?;
        TcpLink::accepting(tls, peer, address, heard).await
    })
    .await?
}

/// Whether a TLS handshake begins that asks for a tunnel, and not for https.
pub fn asks_for_tunnel(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ALPN_TCP))
}

/// An entry's side.
pub struct Acceptor {
    config: Arc<rustls::ServerConfig>,
    /// Becomes something when all connections are to close.
    closing: watch::Sender<Option<LinkClosed>>,
}

impl Acceptor {
    /// For connections to this entry.
    pub fn new(identity: &EntryIdentity) -> Result<Self, TunnelError> {
        let config = Arc::new(tls::server(&identity.key, ALPN_TCP)?);
        Ok(Self { config, closing: watch::Sender::new(None) })
    }

    /// Completes the handshake of a connection that [asks for a tunnel](asks_for_tunnel).
    pub async fn handshake(&self, start: StartHandshake<TcpStream>) -> Result<TcpLink, TunnelError> {
        let StartHandshake { accepted, io: socket, .. } = start;
        set_up(&socket)?;
        let remote = socket.peer_addr()?;
        let (socket, heard) = Heard::new(socket);
        let start = StartHandshake::from_parts(accepted, socket);
        within_handshake(async {
            let tls = start.into_stream(self.config.clone()).await?;
            let peer = proven(tls.get_ref().1.peer_certificates())?;
            TcpLink::opening(tls, peer, remote, heard, self.closing.subscribe()).await
        })
        .await?
    }

    /// Closes all connections that it has accepted.
    pub fn close(&self, code: u32, reason: &str) {
        self.closing.send_replace(Some(LinkClosed { code: Some(code), reason: reason.to_owned() }));
    }

    /// Ready when all of them are gone.
    pub async fn wait_idle(&self) {
        self.closing.closed().await;
    }
}

fn proven(certificates: Option<&[CertificateDer<'_>]>) -> Result<NodeId, TunnelError> {
    certificates.and_then(|shown| tls::node_id(shown.first()?)).ok_or(TunnelError::NoKey)
}

fn set_up(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(socket);
        // What is sent and never acknowledged ends the connection as soon as silence does.
        socket.set_tcp_user_timeout(Some(tuning::IDLE_TIMEOUT))?;
        socket.set_tcp_notsent_lowat(tuning::TCP_UNSENT_BYTES)?;
    }
    Ok(())
}
