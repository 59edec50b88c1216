//! What a connection to a port for clients may be beside a client's: a node's that lets no UDP out. It says so in the first message
//! of its TLS handshake, so one open port, 443, is enough for everybody.
//!
//! Until then it is bounded as clients are: by `--connections-max` and the time that a handshake may take. From then on it is in the
//! gatehouse, with its bounds for handshakes of all and of one source, and is no client's connection any more.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hedgerow_tunnel::tcp::Acceptor;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::server::StartHandshake;

use crate::tunnels::Gatehouse;

/// The public door of one thread.
pub(crate) struct FrontDoor {
    /// How TLS is done with clients. None: they are served in the clear.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) gatehouse: Rc<Gatehouse>,
    pub(crate) tunnels: Rc<Acceptor>,
}

impl FrontDoor {
    /// Takes a node's connection in.
    pub(crate) fn take_in(&self, start: StartHandshake<TcpStream>, address: IpAddr) {
        let tunnels = self.tunnels.clone();
        let handshake = async move { tunnels.handshake(start).await };
        spawn_local(self.gatehouse.clone().take_in(handshake, address));
    }
}
