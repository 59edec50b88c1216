//! libp2p's transport over the simulated network: what TCP is in the product.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Ready, ready};
use futures_util::{AsyncRead, AsyncWrite, FutureExt};
use hedgerow_mesh::host::muxer::ending;
use hedgerow_mesh::host::paths::{Connect, EntryTransport};
use hedgerow_mesh::host::{Multiaddr, in_time};
use hedgerow_tunnel::BoxIo;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, noise, plaintext, yamux};

use super::{Listener, Network, Stream, address};

/// How connections prove their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// As the product does.
    #[default]
    Noise,
    /// Keys are said and not proven, and nothing is encrypted: several times cheaper, for large federations without adversaries.
    Plaintext,
}

/// A node's transport, up to the point where the product's own begins to be the same: keys, then streams by yamux. `by_entry` are the
/// ways by entries, for a node that has any.
pub fn upgraded(
    network: &Network,
    node: u32,
    key: &Keypair,
    security: Security,
    by_entry: Option<EntryTransport>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let direct = SimTransport { network: network.clone(), node, listeners: Vec::new(), events: VecDeque::new() };
    let direct = secured(direct, key, security)?;
    Ok(match by_entry {
        None => in_time(direct),
        Some(by_entry) => {
            // Each takes only addresses of its own.
            let all = secured(by_entry, key, security)?.or_transport(direct);
            in_time(all.map(|either, _| either.into_inner()))
        }
    })
}

/// How entries are connected to.
pub fn to_entries(network: &Network, node: u32) -> Arc<Connect> {
    let network = network.clone();
    Arc::new(move |at| {
        let network = network.clone();
        Box::pin(async move {
            if at.tls.is_some() {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "entries have no TLS here"));
            }
            Ok(Box::new(network.dial(node, at.address).await?) as BoxIo)
        })
    })
}

fn secured<T>(transport: T, key: &Keypair, security: Security) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error>
where
    T: Transport<Error: Send + Sync, Dial: Send, ListenerUpgrade: Send> + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let upgrade = transport.upgrade(Version::V1Lazy);
    Ok(match security {
        Security::Noise => upgrade
            .authenticate(noise::Config::new(key)?)
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, ending(muxer)))
            .boxed(),
        Security::Plaintext => upgrade
            .authenticate(plaintext::Config::new(key))
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, ending(muxer)))
            .boxed(),
    })
}

type Happened = TransportEvent<Ready<io::Result<Stream>>, io::Error>;

struct SimTransport {
    network: Network,
    node: u32,
    listeners: Vec<(ListenerId, Listener)>,
    events: VecDeque<Happened>,
}

impl Transport for SimTransport {
    type Output = Stream;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Stream>>;
    type Dial = BoxFuture<'static, io::Result<Stream>>;

    fn listen_on(&mut self, id: ListenerId, at: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let asked = address::parse(&at).ok_or(TransportError::MultiaddrNotSupported(at))?;
        let listener = self.network.listen(self.node, asked.port()).map_err(TransportError::Other)?;
        let listen_addr = address::multiaddr(listener.address());
        self.events.push_back(TransportEvent::NewAddress { listener_id: id, listen_addr });
        self.listeners.push((id, listener));
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|(listener, _)| *listener != id);
        let removed = self.listeners.len() < before;
        if removed {
            self.events.push_back(TransportEvent::ListenerClosed { listener_id: id, reason: Ok(()) });
        }
        removed
    }

    fn dial(&mut self, to: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let to = address::parse(&to).ok_or(TransportError::MultiaddrNotSupported(to))?;
        let (network, node) = (self.network.clone(), self.node);
        // Only now, when it is polled, as the contract of transports has it.
        Ok(async move { network.dial(node, to).await }.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Happened> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        for (id, listener) in &self.listeners {
            match listener.poll_accept(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok((stream, from))) => {
                    return Poll::Ready(TransportEvent::Incoming {
                        listener_id: *id,
                        upgrade: ready(Ok(stream)),
                        local_addr: address::multiaddr(listener.address()),
                        send_back_addr: address::multiaddr(from),
                    });
                }
                Poll::Ready(Err(error)) => {
                    let listener_id = *id;
                    self.listeners.retain(|(id, _)| *id != listener_id);
                    return Poll::Ready(TransportEvent::ListenerClosed { listener_id, reason: Err(error) });
                }
            }
        }
        Poll::Pending
    }
}
