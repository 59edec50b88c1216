//! The transport of libp2p by way of entries. It dials WebSockets, and listens on streams that entries open down this node's tunnels:
//! there is no port.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hedgerow_tunnel::BoxIo;
use hedgerow_tunnel::link::BoxStream;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::target::{Host, Target};
use super::websocket::{self, ByteStream};
use super::{Multiaddr, Protocol, Security};

/// Streams of entries that may wait for the host. Handshakes at once are bounded by the host's limit of connections.
const ARRIVALS: usize = 64;
/// Addresses of one name that are tried, one after the other: all of them in the time that a connection has to come up.
const ADDRESSES_MAX: usize = 3;
/// How long one of them may take, up to the coordinator's 101: four round trips, and time for one that is far away.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Where streams go that entries open for mesh peers.
#[derive(Debug, Clone)]
pub struct Arrivals(mpsc::Sender<BoxStream>);

impl Arrivals {
    /// Hands a stream over that an entry has opened and this node has accepted. Where too many wait it is dropped, which resets it, and
    /// the peer is told by the entry.
    pub fn arrive(&self, stream: BoxStream) {
        if let Err(error) = self.0.try_send(stream) {
            tracing::debug!(%error, "a peer that comes by way of an entry is not taken in");
        }
    }
}

/// Streams from where they arrive to the transport that listens.
pub fn arrivals() -> (Arrivals, mpsc::Receiver<BoxStream>) {
    let (sender, receiver) = mpsc::channel(ARRIVALS);
    (Arrivals(sender), receiver)
}

/// Where an entry is connected to.
#[derive(Debug, Clone)]
pub struct At {
    /// Its address.
    pub address: SocketAddr,
    /// The name in its certificate; none for an entry in the clear.
    pub tls: Option<ServerName<'static>>,
}

/// Makes connections to entries.
pub type Connect = dyn Fn(At) -> BoxFuture<'static, io::Result<BoxIo>> + Send + Sync;

/// The connections of the binaries: TCP, and TLS to entries that `tls` trusts.
pub fn system(tls: Arc<ClientConfig>) -> Arc<Connect> {
    Arc::new(move |at| {
        let tls = tls.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(at.address).await?;
            stream.set_nodelay(true)?;
            Ok(match at.tls {
                None => Box::new(stream) as BoxIo,
                Some(name) => Box::new(TlsConnector::from(tls).connect(name, stream).await?),
            })
        })
    })
}

/// The transport. Above it come noise and yamux, as above TCP.
pub struct EntryTransport {
    connect: Arc<Connect>,
    arriving: mpsc::Receiver<BoxStream>,
    listener: Option<ListenerId>,
    events: VecDeque<TransportEvent<BoxFuture<'static, io::Result<ByteStream>>, io::Error>>,
}

impl EntryTransport {
    /// It dials entries by `connect`. `arriving` is what it listens on.
    pub fn new(connect: Arc<Connect>, arriving: mpsc::Receiver<BoxStream>) -> Self {
        Self { connect, arriving, listener: None, events: VecDeque::new() }
    }

    /// What to listen on. It stands for all entries, says nothing about any of them, and cannot be dialled.
    pub fn here() -> Multiaddr {
        Multiaddr::empty().with(Protocol::Ws("/mesh/peer".into()))
    }

    /// Where peers come from. The entry does not say, and nobody need know; but libp2p tells each peer from where it has come, and not
    /// all implementations can read the address of a WebSocket with a path.
    fn somewhere() -> Multiaddr {
        Multiaddr::empty()
            .with(Protocol::Ip4(Ipv4Addr::UNSPECIFIED))
            .with(Protocol::Tcp(0))
            .with(Protocol::Ws("/".into()))
    }
}

impl Transport for EntryTransport {
    type Output = ByteStream;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<ByteStream>>;
    type Dial = BoxFuture<'static, io::Result<ByteStream>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        if address != Self::here() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        if self.listener.is_some() {
            return Err(TransportError::Other(io::ErrorKind::AddrInUse.into()));
        }
        self.listener = Some(id);
        self.events.push_back(TransportEvent::NewAddress { listener_id: id, listen_addr: address });
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let removed = self.listener == Some(id);
        if removed {
            self.listener = None;
            self.events.push_back(TransportEvent::ListenerClosed { listener_id: id, reason: Ok(()) });
        }
        removed
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(target) = Target::of(&address) else { return Err(TransportError::MultiaddrNotSupported(address)) };
        let connect = self.connect.clone();
        Ok(Box::pin(async move { dial(&target, &*connect).await }))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        while let Poll::Ready(Some(stream)) = self.arriving.poll_recv(cx) {
            // Who does not listen takes nobody in: what is dropped is reset.
            let Some(listener_id) = self.listener else { continue };
            return Poll::Ready(TransportEvent::Incoming {
                listener_id,
                upgrade: Box::pin(websocket::answer(Box::new(stream))),
                local_addr: Self::here(),
                send_back_addr: Self::somewhere(),
            });
        }
        Poll::Pending
    }
}

/// At one address after the other: behind one name there may be several entries, and not all need have a tunnel of the peer's.
async fn dial(target: &Target, connect: &Connect) -> io::Result<ByteStream> {
    let addresses: Vec<SocketAddr> = match &target.host {
        Host::Address(address) => vec![(*address, target.port).into()],
        Host::Name(name, family) => {
            let found = lookup_host((name.as_str(), target.port)).await?;
            found.filter(|address| family.has(address)).take(ADDRESSES_MAX).collect()
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(ADDRESS_TIMEOUT, dial_at(address, target, connect)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn dial_at(address: SocketAddr, target: &Target, connect: &Connect) -> io::Result<ByteStream> {
    let tls = match target.security {
        Security::Plain => None,
        Security::Tls => Some(ServerName::try_from(target.name()).map_err(io::Error::other)?),
    };
    websocket::ask(connect(At { address, tls }).await?, &target.url()).await
}
