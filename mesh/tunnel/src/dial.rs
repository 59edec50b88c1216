//! The node's side of a tunnel: dials an entry, joins, serves its streams, notices when nothing passes, and dials again.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::backoff::Backoff;
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{Census, Control, Hello, Join, Reject, Welcome, close};
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::liveness::{Beat, Pings};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use crate::accept::TunnelError;
use crate::frames::ControlStream;
use crate::link::{BoxFuture, Link, LinkClosed, Transport, last_words};
use crate::serve::{Activity, Services, serve_link};
use crate::session::session;
use crate::ways::Way;
use crate::{quic, tcp, tuning};

/// Whether a node takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainState {
    /// Yes.
    Running,
    /// No: those that run may finish, and then the connections close.
    Draining,
}

/// One entry, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The ways to it: QUIC first, and those of one transport a little apart from each other.
    pub ways: Vec<Way>,
    /// The key that it must prove.
    pub entry: NodeId,
    /// The federation that it serves.
    pub federation: FederationId,
}

/// Where an entry is: asked before every attempt, since an entry may come back with another key or port.
pub trait Directory: Send + Sync + 'static {
    /// The entry as it is now, or why that is not known.
    fn target(&self) -> BoxFuture<'_, Result<Target, String>>;

    /// A connection on one of the ways to it, on which it proves its key.
    fn dial<'a>(
        &'a self,
        key: &'a SecretKey,
        entry: NodeId,
        way: &'a Way,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, TunnelError>> {
        Box::pin(async move {
            Ok(match way {
                Way::Quic(address) => Arc::new(quic::dial(key, entry, *address).await?),
                Way::Tcp { address, host } => Arc::new(tcp::dial(key, entry, *address, host).await?) as Arc<dyn Link>,
            })
        })
    }
}

/// What every tunnel of a node shares.
#[derive(Clone)]
pub struct DialConfig {
    /// The node's key.
    pub key: SecretKey,
    /// Random for each run of the node.
    pub incarnation: u64,
    /// What the node offers.
    pub services: Arc<dyn Services>,
    /// What a request to each of its services has as `Host`.
    pub authorities: Vec<(ServiceName, String)>,
    /// The bytes of the node's signed record; a new value is sent on.
    pub record: watch::Receiver<Bytes>,
    /// The bytes of the signed Leave: set before draining begins, or never by a node whose words must outlive it.
    pub leave: Arc<OnceLock<Bytes>>,
    /// Whether the node is leaving.
    pub drain: watch::Receiver<DrainState>,
    /// Signed records of coordinators that the entries tell of.
    pub coordinators: mpsc::Sender<Vec<Vec<u8>>>,
    /// What the entries last said of how many coordinators there are.
    pub census: watch::Sender<Option<Census>>,
    /// Where a refusal for the sake of another process with this key leaves that one's record.
    pub newer: mpsc::Sender<Vec<u8>>,
    /// After so long without an answer to its PINGs the node gives a connection up.
    pub pong_timeout: Duration,
    /// Connections to one entry at most.
    pub lanes_max: u16,
    /// For the jitter.
    pub seed: u64,
}

/// How a tunnel is.
#[derive(Debug, Clone)]
pub struct TunnelStatus {
    /// The entry's key, once known.
    pub entry: Option<NodeId>,
    /// What it is doing.
    pub state: TunnelState,
    /// Failures in a row before this.
    pub failures: u32,
}

/// What a tunnel is doing.
#[derive(Debug, Clone)]
pub enum TunnelState {
    /// On the way.
    Connecting,
    /// Requests can come.
    Up(Up),
    /// An attempt failed; the next one comes by itself.
    Waiting {
        /// What went wrong.
        error: String,
        /// When the next attempt begins.
        until: Instant,
    },
    /// The entry does not take this node. Tried again seldom.
    Rejected(Reject),
    /// The node has left.
    Drained,
}

/// A tunnel that is up.
#[derive(Debug, Clone)]
pub struct Up {
    /// The entry's address.
    pub remote: Option<SocketAddr>,
    /// The node's own address as the entry sees it.
    pub observed: String,
    /// Since when.
    pub since: Instant,
    /// Round-trip time at the last ping.
    pub rtt: Duration,
    /// Connections to this entry.
    pub connections: u16,
    /// What carries it.
    pub transport: Transport,
    /// Where that is not QUIC: why not.
    pub why_not_quic: Option<String>,
}

/// How long a refused node waits before it asks again: somebody has to change something first.
const REJECTED_WAIT: Duration = Duration::from_secs(15);

/// Keeps one tunnel to one entry up until the node drains or `status` has nobody listening any more.
pub async fn maintain(config: DialConfig, directory: Arc<dyn Directory>, status: watch::Sender<TunnelStatus>) {
    let mut backoff = Backoff::new(config.seed);
    let mut head_start = tuning::QUIC_HEAD_START;
    let mut drain = config.drain.clone();
    let set = |state| status.send_modify(|status| status.state = state);
    while *drain.borrow_and_update() == DrainState::Running && !status.is_closed() {
        set(TunnelState::Connecting);
        let (wait, state) = match session(&config, &*directory, &status, &mut head_start).await {
            Ok(()) => break,
            // The node speaks above the record that it is told of, or stops: either way the next attempt is another one.
            Err(SessionEnd::Rejected(Reject { record: Some(ref record), .. }))
                if config.newer.try_send(record.clone()).is_ok() =>
            {
                waiting("another process speaks with this node's key".into(), backoff.next_wait())
            }
            Err(SessionEnd::Rejected(reject)) => {
                (REJECTED_WAIT.mul_f32(0.5) + backoff.next_wait(), TunnelState::Rejected(reject))
            }
            Err(SessionEnd::Failed(error)) => waiting(error, backoff.next_wait()),
            Err(SessionEnd::Lost(error)) => {
                backoff.succeeded();
                status.send_modify(|status| status.failures = 0);
                waiting(error, backoff.next_wait())
            }
        };
        status.send_modify(|status| {
            status.failures = status.failures.saturating_add(1);
            status.state = state;
        });
        tokio::select! {
            () = sleep(wait) => {}
            Ok(()) = drain.changed() => {}
        }
    }
    set(TunnelState::Drained);
}

/// Joins over a connection that is there already and serves it until it ends: for a node's own port, over memory, and for a
/// worker's connection to its home. `on_pong` is called with each pong; with the first one the tunnel is up.
pub async fn serve_over(
    config: &DialConfig,
    federation: FederationId,
    link: Arc<dyn Link>,
    on_pong: impl Fn(Duration),
) -> Result<(), TunnelError> {
    let target = Target { ways: Vec::new(), entry: link.peer(), federation };
    let joined = join(config, greet(link, &target).await?, 0).await?;
    match run(config, joined, &Arc::new(Activity::default()), on_pong).await {
        End::Drained => Ok(()),
        End::Closed(closed) => Err(closed.into()),
    }
}

fn waiting(error: String, wait: Duration) -> (Duration, TunnelState) {
    (wait, TunnelState::Waiting { error, until: Instant::now() + wait })
}

pub(crate) enum SessionEnd {
    /// It never came up.
    Failed(String),
    /// It was up.
    Lost(String),
    Rejected(Reject),
}

impl From<TunnelError> for SessionEnd {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Rejected(reject) => Self::Rejected(reject),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A connection on which the entry has said Hello.
pub(crate) struct Greeted {
    pub(crate) link: Arc<dyn Link>,
    control: ControlStream,
    pub(crate) hello: Hello,
}

/// A connection that the entry has taken.
pub(crate) struct Joined {
    pub(crate) link: Arc<dyn Link>,
    control: ControlStream,
    pub(crate) welcome: Welcome,
}

async fn in_time<T>(step: impl Future<Output = Result<T, TunnelError>>) -> Result<T, TunnelError> {
    timeout(tuning::HANDSHAKE_TIMEOUT, step).await.unwrap_or(Err(TunnelError::Timeout))
}

/// Waits for the entry's Hello.
pub(crate) async fn greet(link: Arc<dyn Link>, target: &Target) -> Result<Greeted, TunnelError> {
    in_time(async {
        let mut control = ControlStream::new(link.accept().await?);
        let hello = match control.read().await? {
            Some(Control::Hello(hello)) => hello,
            other => return Err(TunnelError::Protocol(format!("expected Hello, got {other:?}"))),
        };
        if hello.federation != target.federation {
            let said = hello.federation;
            return Err(TunnelError::Protocol(format!(
                "its bootstrap said federation {}, its tunnel {said}",
                target.federation
            )));
        }
        Ok(Greeted { link, control, hello })
    })
    .await
}

/// Hands the node's record over and waits for Welcome.
pub(crate) async fn join(config: &DialConfig, greeted: Greeted, lane: u16) -> Result<Joined, TunnelError> {
    let Greeted { link, mut control, hello } = greeted;
    in_time(async {
        let join = Join {
            federation: hello.federation,
            incarnation: config.incarnation,
            lane,
            record: config.record.borrow().to_vec(),
            authorities: config.authorities.clone(),
            credentials: Vec::new(),
        };
        control.write(&Control::Join(join)).await?;
        match control.read().await? {
            Some(Control::Welcome(welcome)) => Ok(Joined { link, control, welcome }),
            Some(Control::Reject(reject)) => {
                link.close(close::GOING, "refused");
                Err(TunnelError::Rejected(reject))
            }
            other => Err(TunnelError::Protocol(format!("expected Welcome, got {other:?}"))),
        }
    })
    .await
}

/// How a connection ended.
pub(crate) enum End {
    Drained,
    Closed(LinkClosed),
}

/// Serves one connection until it ends: streams, pings, and news both ways.
pub(crate) async fn run(
    config: &DialConfig,
    joined: Joined,
    activity: &Arc<Activity>,
    on_pong: impl Fn(Duration),
) -> End {
    let Joined { link, mut control, welcome } = joined;
    let serve = serve_link(link.clone(), config.services.clone(), config.drain.clone(), activity.clone());
    tokio::pin!(serve);
    let mut record = config.record.clone();
    record.mark_changed();
    let mut drain = config.drain.clone();
    drain.mark_changed();
    let began = Instant::now();
    let interval = Duration::from_millis(welcome.ping_interval_ms.into());
    let mut pings = Pings::new(Time::ORIGIN, interval, config.pong_timeout);
    let mut leaving: Option<u64> = None;
    loop {
        let say = tokio::select! {
            closed = &mut serve => return End::Closed(closed),
            () = activity.idle(), if leaving == Some(0) => {
                link.close(close::GOING, "the node has left");
                return End::Drained;
            }
            said = control.read() => match said {
                Ok(Some(Control::Ping(number))) => Control::Pong(number),
                Ok(Some(Control::Pong(number))) => {
                    pings.answered();
                    on_pong(link.rtt());
                    if leaving.is_some_and(|asked| number >= asked) {
                        // The entry has read Leave: nothing new will come.
                        leaving = Some(0);
                    }
                    continue;
                }
                Ok(Some(Control::Coordinators(records))) => {
                    // A hint: if nobody has room for it now, the next one will do.
                    let _ = config.coordinators.try_send(records);
                    continue;
                }
                Ok(Some(Control::Census(census))) => {
                    config.census.send_replace(Some(census));
                    continue;
                }
                Ok(Some(Control::Going)) => {
                    debug!("the entry is about to stop");
                    continue;
                }
                Ok(Some(other)) => return give_up(&*link, close::PROTOCOL, &format!("unexpected {other:?}")),
                Ok(None) => return End::Closed(last_words(&*link, close::GOING, "the other end has gone").await),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return give_up(&*link, close::PROTOCOL, &error.to_string());
                }
                Err(error) => return End::Closed(last_words(&*link, close::PROTOCOL, &error.to_string()).await),
            },
            // One whose sender is gone says nothing more, and must not be asked in a loop.
            Ok(()) = record.changed() => Control::Record(record.borrow_and_update().to_vec()),
            Ok(()) = drain.changed() => {
                if *drain.borrow_and_update() == DrainState::Running {
                    continue;
                }
                // Without one the entry hears of it by the end of the connection.
                let Some(leave) = config.leave.get() else {
                    leaving = Some(0);
                    continue;
                };
                let number = pings.number();
                leaving = Some(number);
                if let Err(end) = say_within(&*link, &mut control, Control::Leave(leave.to_vec())).await {
                    return end;
                }
                Control::Ping(number)
            }
            () = sleep_until(began + pings.poll_timeout().since_origin()) => {
                match pings.beat(Time::from_origin(began.elapsed())) {
                    Some(Beat::Ping(number)) => Control::Ping(number),
                    Some(Beat::GiveUp) => {
                        return give_up(&*link, close::STALLED, "the tunnel is up and passes nothing");
                    }
                    None => continue,
                }
            }
        };
        if let Err(end) = say_within(&*link, &mut control, say).await {
            return end;
        }
    }
}

async fn say_within(link: &dyn Link, control: &mut ControlStream, say: Control) -> Result<(), End> {
    match timeout(tuning::PONG_TIMEOUT, control.write(&say)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(End::Closed(last_words(link, close::PROTOCOL, &error.to_string()).await)),
        Err(_) => Err(give_up(link, close::STALLED, "the entry does not read the control stream")),
    }
}

/// Closes the connection.
fn give_up(link: &dyn Link, code: u32, reason: &str) -> End {
    link.close(code, reason);
    End::Closed(LinkClosed { code: Some(code), reason: reason.to_owned() })
}
