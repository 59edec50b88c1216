//! An entry without sockets: whoever embeds it hands it the connections of clients and the tunnels of nodes. The simulation runs the
//! entry's own code so, and nothing else of it is different: the same routing, forwarding and registry, within the bounds that it is
//! given.
//!
//! It has no TLS, no admin listener and no routes to agents at URLs of their own.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::registry::Digest;
use hedgerow_tunnel::link::Link;
use hedgerow_tunnel::{EntryIdentity, TunnelError};
use hedgerow_urls::Dialler;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::LocalSet;

use crate::cli::Options;
use crate::settings::Settings;
use crate::shard::{Common, Shard};
use crate::sockets::Bound;
use crate::tunnels::Gatehouse;
use crate::{census, connection, sync};

/// An entry without sockets. It ends when it is dropped, as one does that is killed.
pub struct Embedded {
    shard: Rc<Shard>,
    gatehouse: Rc<Gatehouse>,
    /// All that goes on in it.
    tasks: LocalSet,
}

impl Embedded {
    /// One that knows nothing yet. `incarnation` is another number for each run; `tunnels` is where its tunnels come in, as its
    /// bootstrap says it; `limits` are the bounds of its registry.
    pub fn new(
        key: SecretKey,
        federation: FederationId,
        incarnation: u64,
        limits: Limits,
        tunnels: SocketAddr,
    ) -> Result<Self, Failure> {
        let settings = Settings::check(Options { threads: Some(1), ..Options::default() })?;
        let identity = EntryIdentity { key, federation, incarnation };
        let bound = Bound { http: Vec::new(), tunnel: tunnels, admin: None };
        let dialler = Dialler::new(settings.urls.clone());
        let dialler = dialler.map_err(|error| Failure::runtime(format!("cannot set up TLS with agents: {error}")))?;
        let common = Arc::new(Common::new(settings, identity, limits, bound, dialler, Shutdown::new()));
        let shard = Rc::new(Shard::new(common.clone(), 0));
        let gatehouse = Rc::new(Gatehouse::new(&common, shard.counters.clone(), 0));
        Ok(Self { shard, gatehouse, tasks: LocalSet::new() })
    }

    /// Serves a client that has connected from this address.
    pub fn serve_client<S>(&self, stream: S, from: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.tasks.spawn_local(connection::embedded(self.shard.clone(), stream, from));
    }

    /// Takes in a node's connection from this address, once it has come up.
    pub fn take_in<L: Link>(&self, handshake: impl Future<Output = Result<L, TunnelError>> + 'static, address: IpAddr) {
        self.tasks.spawn_local(self.gatehouse.clone().take_in(handshake, address));
    }

    /// The digest of its registry, as it shows it at `/mesh/registry`; nothing before it has one.
    pub fn digest(&self) -> Option<Digest> {
        self.shard.common.federation.snapshot().digest
    }

    /// Does what there is to do; it stands still while nobody polls this.
    pub async fn run(&self) -> Infallible {
        let federation = &self.shard.common.federation;
        let synchronised = sync::keep(federation, self.shard.common.identity.incarnation);
        let all = async {
            let (never, ..) =
                tokio::join!(federation.keep_current(), synchronised, census::tell(federation), self.shard.sweep());
            never
        };
        self.tasks.run_until(all).await
    }
}
