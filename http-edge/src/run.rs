//! The life of the process: sockets, threads, the ready file, and the way out.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_process::exit::Failure;
use hedgerow_process::ready_file::ReadyFile;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_proto::limits::Limits;
use hedgerow_urls::Dialler;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::census;
use crate::identity;
use crate::settings::Settings;
use crate::shard::{self, Common, Line};
use crate::sockets::{self, Bound, ShardSockets};
use crate::sync;
use crate::tls::Certificates;

/// How long the threads may take to end once everything is closed: what is left then is cut off.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What whoever started the entry reads.
#[derive(Debug, Serialize)]
struct Ready {
    node_id: String,
    federation: String,
    listen: Vec<String>,
    tunnel: String,
    admin: Option<String>,
    scheme: &'static str,
    pid: u32,
}

/// Runs the entry until it is told to stop.
pub(crate) fn run(settings: Settings) -> Result<(), Failure> {
    raise_file_limit();
    let certificates = settings.tls.clone().map(Certificates::load).transpose()?.map(Arc::new);
    let tls = certificates.as_ref().map(|certificates| certificates.server_config()).transpose();
    let tls = tls.map_err(|error| Failure::runtime(format!("cannot set TLS up: {error}")))?;
    let dialler = Dialler::new(settings.urls.clone());
    let dialler = dialler.map_err(|error| Failure::runtime(format!("cannot set up TLS with agents: {error}")))?;
    let identity = identity::load(&settings)?;
    let ready_file = settings.ready_file.as_deref().map(ReadyFile::at).transpose()?;
    let (bound, sockets) = sockets::bind(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let shutdown =
            Shutdown::on_signals().map_err(|error| Failure::runtime(format!("cannot listen for signals: {error}")))?;
        let common = Common::new(settings, identity, Limits::PRODUCTION, bound, dialler, shutdown);
        let common = Common { certificates, tls, ..common };
        serve(Arc::new(common), sockets, ready_file).await
    });
    // Without waiting for lookups of agents' hosts: the resolver may take its time.
    runtime.shutdown_background();
    outcome
}

/// How a thread ended.
type Ended = oneshot::Receiver<Result<(), Failure>>;

async fn serve(
    common: Arc<Common>,
    sockets: Vec<ShardSockets>,
    mut ready_file: Option<ReadyFile>,
) -> Result<(), Failure> {
    let threads = sockets.len();
    let (serving, mut started) = mpsc::channel(threads);
    let (busy, mut idle) = mpsc::channel(1);
    let (close, closing) = watch::channel(false);
    let mut ended = Vec::new();
    for (index, sockets) in sockets.into_iter().enumerate() {
        let line = Line { serving: serving.clone(), close: closing.clone(), busy: busy.clone() };
        ended.push(start(index, common.clone(), sockets, line)?);
    }
    drop((serving, busy));
    let outcome = {
        let mut failure = pin!(first_failure(&mut ended));
        tokio::select! {
            outcome = live(&common, &mut started, &mut idle, ready_file.as_mut()) => outcome,
            failure = failure.as_mut() => return Err(failure),
        }
    };
    // Its receivers are gone only with their threads.
    let _ = close.send(true);
    let all = async {
        for ended in &mut ended {
            // A thread that panicked has said so.
            let _ = ended.await;
        }
    };
    let _ = timeout(END_TIMEOUT, all).await;
    outcome
}

/// From the start to the moment when nothing has to be waited for any more.
async fn live(
    common: &Arc<Common>,
    started: &mut mpsc::Receiver<()>,
    idle: &mut mpsc::Receiver<()>,
    ready_file: Option<&mut ReadyFile>,
) -> Result<(), Failure> {
    for _ in 0..common.settings.threads {
        if started.recv().await.is_none() {
            // A thread has failed: the caller looks at that.
            std::future::pending::<()>().await;
        }
    }
    announce(common);
    if let Some(file) = ready_file {
        file.write(&ready(common))?;
    }
    let mut upkeep = pin!(upkeep(common));
    tokio::select! {
        never = upkeep.as_mut() => match never {},
        () = common.shutdown.draining() => {}
    }
    common.federation.say_going();
    let since = Instant::now();
    tokio::select! {
        never = upkeep.as_mut() => match never {},
        // Nothing is ever sent: it ends when every thread has let go of its end.
        _ = idle.recv() => info!(took = ?since.elapsed(), "drained"),
        () = sleep(common.settings.drain_timeout) => {
            let left: u64 = common.metrics.stats.iter().map(|stats| stats.snapshot().in_flight).sum();
            warn!(requests = left, "not drained in time; what is left is cut off");
        }
        () = common.shutdown.stopping() => {}
    }
    Ok(())
}

/// What goes on for as long as the entry lives.
async fn upkeep(common: &Common) -> Infallible {
    let certificates = async {
        let ended = match &common.certificates {
            Some(certificates) => certificates.keep_current().await,
            None => ignore_hangup().await,
        };
        match ended {
            Ok(never) => never,
            Err(error) => {
                warn!(%error, "cannot listen for SIGHUP; certificates will not be read anew");
                std::future::pending().await
            }
        }
    };
    let federation = &common.federation;
    let synchronised = sync::keep(federation, common.identity.incarnation);
    // Apart from the seed of the synchronisation, and of every thread.
    let routed = hedgerow_urls::keep(federation, &common.dialler, !common.identity.incarnation);
    let told = census::tell(federation);
    let (never, ..) = tokio::join!(certificates, federation.keep_current(), synchronised, routed, told);
    never
}

fn start(index: usize, common: Arc<Common>, sockets: ShardSockets, line: Line) -> Result<Ended, Failure> {
    let (say, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name(format!("shard-{index}"))
        .spawn(move || {
            // Nobody asks when the process is ending anyway.
            let _ = say.send(shard::run(index, common, sockets, line));
        })
        .map_err(|error| Failure::runtime(format!("cannot start thread {index}: {error}")))?;
    Ok(ended)
}

/// Ready when a thread ends that should not.
async fn first_failure(ended: &mut [Ended]) -> Failure {
    let (outcome, index, _) = futures_util::future::select_all(ended.iter_mut()).await;
    let failure = match outcome {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) | Err(_) => Failure::runtime(format!("thread {index} ended")),
    };
    failure.means("this entry cannot serve its share of the requests any more, so it stops")
}

/// Without certificates SIGHUP has nothing to do, and must not end the process.
async fn ignore_hangup() -> std::io::Result<Infallible> {
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        hangup.recv().await;
        info!("SIGHUP: there are no certificates to read anew");
    }
}

fn scheme(common: &Common) -> &'static str {
    if common.certificates.is_some() { "https" } else { "http" }
}

fn announce(common: &Common) {
    let Bound { http, tunnel, admin } = &common.bound;
    let urls: Vec<_> = http.iter().map(|address| format!("{}://{address}", scheme(common))).collect();
    info!(
        http = urls.join(" "),
        tunnels = %format_args!("udp {tunnel}"),
        admin = admin.map(|address| format!("http://{address}")).unwrap_or_default(),
        entry = %common.identity.key.id(),
        federation = %common.identity.federation,
        threads = common.settings.threads,
        "the entry serves"
    );
    if common.settings.urls.allow_private {
        warn!("--allow-private-urls: agents may have this entry ask whatever it can reach; not for a public entry");
    }
}

fn ready(common: &Common) -> Ready {
    let Bound { http, tunnel, admin } = &common.bound;
    Ready {
        node_id: common.identity.key.id().to_string(),
        federation: common.identity.federation.to_string(),
        listen: http.iter().map(ToString::to_string).collect(),
        tunnel: tunnel.to_string(),
        admin: admin.map(|address| address.to_string()),
        scheme: scheme(common),
        pid: std::process::id(),
    }
}

/// Each connection is a file: the usual limit of 1,024 is for programs that have few, and every process may raise it.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(%error, ?current, "cannot raise the limit of open files; the entry may run out of them under load");
    }
}
