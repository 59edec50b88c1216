//! What the node takes from outside: its clock, its bounds, the network under its libp2p host, and the connections to its services.
//! The simulation puts its own in their place.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hedgerow_mesh::clock::{Clock, SystemClock};
use hedgerow_mesh::host::{Host, HostConfig, HostError, HostHandle, LanDiscovery};
use hedgerow_proto::limits::Limits;
use hedgerow_tunnel::BoxIo;
use hedgerow_tunnel::link::BoxFuture;
use tokio::net::TcpStream;

use crate::service_spec::ServiceAddress;

/// Puts a host up, and runs it for as long as somebody holds a handle.
pub type SpawnHost = dyn Fn(HostConfig) -> Result<HostHandle, HostError> + Send + Sync;

/// Connects to a service.
pub trait Connect: Send + Sync {
    /// A new connection to this address.
    fn connect<'a>(&'a self, address: &'a ServiceAddress) -> BoxFuture<'a, io::Result<BoxIo>>;
}

/// What the node takes from outside.
#[derive(Clone)]
pub struct Platform {
    /// The clock of its replicas.
    pub clock: Arc<dyn Clock>,
    /// The bounds of its replicas, and of all that goes in and out of them.
    pub limits: Limits,
    /// Puts its libp2p hosts up.
    pub spawn_host: Arc<SpawnHost>,
}

impl Platform {
    /// What the binary runs on. `tls` says which entries are trusted, and `lan` whether others are looked for on the LAN.
    pub fn system(tls: Arc<rustls::ClientConfig>, lan: LanDiscovery) -> Self {
        let spawn_host = move |config| Host::spawn(config, tls.clone(), lan);
        Self { clock: Arc::new(SystemClock), limits: Limits::PRODUCTION, spawn_host: Arc::new(spawn_host) }
    }
}

/// Connects to one service by TCP, where it was found last or where its name now leads.
#[derive(Debug, Default)]
pub struct Tcp {
    resolved: Mutex<Option<SocketAddr>>,
}

impl Tcp {
    async fn dial(&self, address: &ServiceAddress) -> io::Result<TcpStream> {
        let known = *self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = known
            && let Ok(stream) = TcpStream::connect(address).await
        {
            return Ok(stream);
        }
        TcpStream::connect((address.host.as_str(), address.port)).await
    }
}

impl Connect for Tcp {
    fn connect<'a>(&'a self, address: &'a ServiceAddress) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let stream = self.dial(address).await?;
            stream.set_nodelay(true)?;
            if let Ok(peer) = stream.peer_addr() {
                *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
            }
            Ok(Box::new(stream) as BoxIo)
        })
    }
}
