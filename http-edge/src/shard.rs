//! One thread of the entry: its own runtime, sockets, pools and counters. While a request is under way nothing of it is
//! shared with another thread, unless it goes down a tunnel that another thread holds.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_http::{ForwardConfig, Forwarder, Stats};
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_proto::frame::close;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::route::AnybodyMayAnswer;
use hedgerow_tunnel::quic::{self, Acceptor};
use hedgerow_tunnel::tcp;
use hedgerow_tunnel::{EntryIdentity, Open as OpenToAll};
use hedgerow_urls::Dialler;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::connection::{self, Counted};
use crate::federation::{Federation, ShardDirectory};
use crate::front_door::FrontDoor;
use crate::mesh_peer::Places;
use crate::metrics::{Counters, Metrics};
use crate::settings::Settings;
use crate::sockets::{Bound, ShardSockets};
use crate::tls::Certificates;
use crate::tunnels::Gatehouse;

/// Connections to the admin listener at once: a few scrapes and a person.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// How often a thread that drains looks whether it is done, and how often idle streams are let go of.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// How long after a failure to accept (no file descriptors left, mostly) the next attempt is made.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the last words of the tunnels may take to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What all threads share; immutable.
pub(crate) struct Common {
    pub(crate) settings: Settings,
    pub(crate) identity: EntryIdentity,
    pub(crate) bound: Bound,
    pub(crate) federation: Arc<Federation>,
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// None: HTTP in the clear.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) forward: Arc<ForwardConfig>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) dialler: Arc<Dialler>,
    pub(crate) mesh_peers: Arc<Places>,
    pub(crate) shutdown: Shutdown,
}

impl Common {
    /// Without certificates, and with nobody there yet.
    pub(crate) fn new(
        settings: Settings,
        identity: EntryIdentity,
        limits: Limits,
        bound: Bound,
        dialler: Dialler,
        shutdown: Shutdown,
    ) -> Self {
        let federation = Arc::new(Federation::new(
            &identity,
            limits,
            settings.threads,
            settings.aliases.clone(),
            Box::new(OpenToAll),
            Box::new(AnybodyMayAnswer),
        ));
        let forward = ForwardConfig {
            body_bytes_max: settings.body_bytes_max,
            cors: settings.cors.clone(),
            ..ForwardConfig::default()
        };
        let mesh_peers = Arc::<Places>::default();
        let metrics = Metrics {
            federation: federation.clone(),
            mesh_peers: mesh_peers.clone(),
            counters: (0..settings.threads).map(|_| Arc::new(Counters::default())).collect(),
            stats: (0..settings.threads).map(|_| Arc::new(Stats::default())).collect(),
        };
        Self {
            settings,
            identity,
            bound,
            federation,
            certificates: None,
            tls: None,
            forward: Arc::new(forward),
            metrics: Arc::new(metrics),
            dialler: Arc::new(dialler),
            mesh_peers,
            shutdown,
        }
    }
}

/// What the connections of one thread share.
pub(crate) struct Shard {
    pub(crate) common: Arc<Common>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) forwarder: Forwarder<ShardDirectory>,
    pub(crate) random: RefCell<fastrand::Rng>,
    stats: Arc<Stats>,
    connections: Arc<Semaphore>,
    connections_max: u32,
}

/// How a thread and the one that started it talk.
pub(crate) struct Line {
    /// Says that the thread serves.
    pub(crate) serving: tokio::sync::mpsc::Sender<()>,
    /// Becomes true when all threads are done and the tunnels may go.
    pub(crate) close: watch::Receiver<bool>,
    /// Says that the thread has no more requests: by being dropped.
    pub(crate) busy: tokio::sync::mpsc::Sender<()>,
}

impl Shard {
    /// The thread of this number.
    pub(crate) fn new(common: Arc<Common>, index: usize) -> Self {
        let (counters, stats) = (common.metrics.counters[index].clone(), common.metrics.stats[index].clone());
        // The incarnation is random, and the only randomness that the threads start from.
        let mut random = fastrand::Rng::with_seed(common.identity.incarnation.wrapping_add(index as u64));
        let directory = ShardDirectory { federation: common.federation.clone(), shard: index };
        let connections_max = common.settings.connections_max.div_ceil(common.settings.threads);
        Self {
            forwarder: Forwarder::new(common.forward.clone(), directory, stats.clone(), random.u64(..)),
            random: RefCell::new(random),
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max: u32::try_from(connections_max).unwrap_or(u32::MAX),
            common,
            counters,
            stats,
        }
    }

    /// Lets go of streams that have been idle for long; runs for ever.
    pub(crate) async fn sweep(&self) -> Infallible {
        loop {
            sleep(SWEEP_INTERVAL).await;
            self.forwarder.sweep();
        }
    }

    /// The socket with its bytes counted.
    pub(crate) fn counted(&self, stream: TcpStream) -> Counted {
        Counted::new(stream, self.counters.clone())
    }
}

/// Runs one thread until the entry has drained.
pub(crate) fn run(index: usize, common: Arc<Common>, sockets: ShardSockets, line: Line) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start thread {index}: {error}")))?;
    let local = LocalSet::new();
    let outcome = local.block_on(&runtime, serve(index, common, sockets, line));
    // What still runs has had its time.
    drop(local);
    runtime.shutdown_background();
    outcome
}

async fn serve(index: usize, common: Arc<Common>, sockets: ShardSockets, mut line: Line) -> Result<(), Failure> {
    let broken = |what: &str, error: &dyn std::fmt::Display| Failure::runtime(format!("{what}: {error}"));
    let tls = common.tls.clone();
    let endpoint =
        quic::listen(&common.identity, sockets.tunnel).map_err(|error| broken("cannot listen for tunnels", &error))?;
    let acceptor = Acceptor::new(&common.identity).map_err(|error| broken("cannot listen for tunnels", &error))?;
    let shard = Rc::new(Shard::new(common, index));
    let gatehouse = Rc::new(Gatehouse::new(&shard.common, shard.counters.clone(), index));
    spawn_local(gatehouse.clone().accept(endpoint.clone(), Rc::new(acceptor)));
    let over_tcp = tcp::Acceptor::new(&shard.common.identity);
    let over_tcp = Rc::new(over_tcp.map_err(|error| broken("cannot take tunnels in over TCP", &error))?);
    let door = Rc::new(FrontDoor { tls, gatehouse, tunnels: over_tcp.clone() });
    for listener in sockets.http {
        let listener = TcpListener::from_std(listener).map_err(|error| broken("cannot listen", &error))?;
        let (shard, door) = (shard.clone(), door.clone());
        spawn_local(async move {
            let limit = shard.connections.clone();
            let each = |stream, from| connection::public(shard.clone(), stream, from, door.clone());
            until_draining(&shard, accept(&listener, &shard, limit, each)).await;
        });
    }
    if let Some(listener) = sockets.admin {
        let listener = TcpListener::from_std(listener).map_err(|error| broken("cannot listen", &error))?;
        let shard = shard.clone();
        spawn_local(async move {
            // To the end: a drain is something to look at.
            let limit = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
            accept(&listener, &shard, limit, |stream, _| connection::operator(shard.clone(), stream)).await;
        });
    }
    spawn_local({
        let shard = shard.clone();
        async move { match shard.sweep().await {} }
    });
    // Nobody listens any more only when the process ends.
    let _ = line.serving.send(()).await;
    shard.common.shutdown.draining().await;
    drained(&shard).await;
    drop(line.busy);
    // An end of the sender is an end of the process.
    let _ = line.close.wait_for(|close| *close).await;
    const LAST_WORDS: &str = "this entry stops";
    endpoint.close(close::GOING.into(), LAST_WORDS.as_bytes());
    over_tcp.close(close::GOING, LAST_WORDS);
    let all = async { tokio::join!(endpoint.wait_idle(), over_tcp.wait_idle()) };
    let _ = timeout(CLOSE_TIMEOUT, all).await;
    Ok(())
}

/// Ready when no client's connection is left, and no request and upgraded connection under way.
async fn drained(shard: &Shard) {
    // The semaphore is never closed.
    let _ = shard.connections.acquire_many(shard.connections_max).await;
    while shard.stats.snapshot().in_flight > 0 {
        sleep(DRAIN_LOOK_INTERVAL).await;
    }
}

async fn until_draining(shard: &Shard, accepting: impl Future<Output = ()>) {
    tokio::select! {
        () = accepting => {}
        () = shard.common.shutdown.draining() => {}
    }
}

/// Takes connections in, at most as many at once as `limit` has permits.
async fn accept<F: Future<Output = ()> + 'static>(
    listener: &TcpListener,
    shard: &Rc<Shard>,
    limit: Arc<Semaphore>,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let (mut warned, mut failing) = (false, false);
    loop {
        if limit.available_permits() == 0 && !std::mem::replace(&mut warned, true) {
            warn!("a thread holds as many connections as it may (--connections-max); new ones wait until one ends");
        }
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                failing = false;
                let open = Open::count(shard.counters.clone(), permit);
                let connection = serve(stream, from);
                spawn_local(async move {
                    connection.await;
                    drop(open);
                });
            }
            // The client went away before it was accepted.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "cannot accept connections for now; the limit of open files (ulimit -n) may be too low");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that counts as open while this lives.
struct Open {
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn count(counters: Arc<Counters>, permit: OwnedSemaphorePermit) -> Self {
        counters.connections_accepted.add(1);
        counters.connections_open.add(1);
        Self { counters, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counters.connections_open.sub(1);
    }
}
