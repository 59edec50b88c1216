//! The entry's side of a tunnel: the handshake on the control stream, and the handle that requests are routed by.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::frame::{Control, Hello, Join, Reject, RejectReason, Welcome, close};
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::liveness::suspect_idle_after;
use hedgerow_proto::record::{Body, Record, Signed};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::frames::ControlStream;
use crate::link::{BoxStream, Link, LinkClosed, Transport, last_words};
use crate::tuning;
use crate::watchdog::Watchdog;

/// Why a tunnel did not come up, or could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The configuration of TLS or QUIC was refused: a fault of this program.
    #[error("cannot set the tunnel up: {0}")]
    Config(String),
    /// A socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection failed or was closed during the handshake.
    #[error("the connection failed: {0}")]
    Closed(#[from] LinkClosed),
    /// The peer took too long.
    #[error("the handshake took longer than {} s", tuning::HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// The peer wants another protocol, and has been told from where it came: no fault of anybody's.
    #[error("the other end does not want a tunnel, and was told from where it has come")]
    NoTunnelWanted,
    /// The peer proved no Ed25519 key.
    #[error("the other end proved no Ed25519 key")]
    NoKey,
    /// The peer said something else than the handshake asks for.
    #[error("the other end broke the handshake: {0}")]
    Protocol(String),
    /// The entry does not take this node.
    #[error("refused by the entry: {}", .0.message)]
    Rejected(Reject),
    /// Neither transport leads to it.
    #[error("over QUIC: {quic}; over TCP: {tcp}")]
    NoWay {
        /// What became of QUIC.
        quic: Box<Self>,
        /// What became of TCP.
        tcp: Box<Self>,
    },
}

impl TunnelError {
    pub(crate) fn config(error: impl fmt::Display) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<rustls::Error> for TunnelError {
    fn from(error: rustls::Error) -> Self {
        Self::config(error)
    }
}

impl From<quinn::ConnectionError> for TunnelError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Closed(error.into())
    }
}

/// Who may join: the seam of the operator's policy, called for every tunnel.
pub trait Admission: Send + Sync {
    /// Lets this node in, or says for its log why not.
    fn admit(&self, node: NodeId, join: &Join, record: &Record) -> Result<(), Reject>;
}

/// Any key may join.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open;

impl Admission for Open {
    fn admit(&self, _node: NodeId, _join: &Join, _record: &Record) -> Result<(), Reject> {
        Ok(())
    }
}

/// Whether a tunnel gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Liveness {
    /// Yes.
    Live = 0,
    /// Nothing has come from the node for a moment: only when nobody else can. It comes back by itself.
    Suspect = 1,
    /// The node has said Leave, or another connection has taken its place: none.
    Draining = 2,
    /// The connection is no more.
    Closed = 3,
}

/// One connection of a node, for the thread that accepted it and all others. Clones are the same tunnel.
#[derive(Clone)]
pub struct Tunnel(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) link: Arc<dyn Link>,
    keeping: Keeping,
    id: u64,
    lane: u16,
    incarnation: u64,
    authorities: Vec<(ServiceName, String)>,
    in_flight: AtomicUsize,
    /// A request has begun on an idle tunnel: the watchdog looks at it from now on.
    pub(crate) became_busy: Notify,
    became_idle: Notify,
    /// Another connection has taken its place: until then what runs may finish.
    leave_by: OnceLock<Instant>,
    left: Notify,
    liveness: AtomicU8,
    pub(crate) liveness_changed: Notify,
    created: Instant,
    ping_interval: Duration,
    /// When the node's last message came, in milliseconds since `created`.
    heard_ms: AtomicU64,
    outgoing: mpsc::Sender<Control>,
}

/// Who says how a tunnel does.
#[derive(Debug, Clone)]
enum Keeping {
    /// Its control stream, which [`TunnelEvents`] keeps.
    Control,
    /// The connection alone.
    Link,
    /// The tunnel of whoever passes its streams on.
    Other(Tunnel),
}

const REPLACED: &str = "a newer connection of this node takes the place of this one";

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel({} lane {} {:?})", self.node().short(), self.lane(), self.liveness())
    }
}

impl Tunnel {
    /// A tunnel without a control stream, and so without a handshake, pings and a watchdog: over a connection that is watched
    /// elsewhere, or that ends in this process. It is live until the connection closes, and never suspect. `authorities` is
    /// what requests to the services have as `Host`. Its incarnation and its lane are 0, what is sent to it is lost, and it
    /// needs nobody to poll it.
    pub fn detached(link: Arc<dyn Link>, authorities: Vec<(ServiceName, String)>) -> Self {
        // The other end is gone from the start: nobody would read.
        let (outgoing, _) = mpsc::channel(1);
        let identity = Identity { lane: 0, incarnation: 0, authorities };
        Self(Arc::new(Shared::new(link, Keeping::Link, identity, outgoing)))
    }

    /// A tunnel whose streams go down another one, which passes them on: it does as that one does.
    pub fn passed_on(link: Arc<dyn Link>, by: Self) -> Self {
        // Nobody would read: it has no control stream.
        let (outgoing, _) = mpsc::channel(1);
        let identity = Identity { lane: 0, incarnation: 0, authorities: Vec::new() };
        Self(Arc::new(Shared::new(link, Keeping::Other(by), identity, outgoing)))
    }

    /// A number of its own in this process.
    pub fn id(&self) -> u64 {
        self.0.id
    }
    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.0.link.peer()
    }
    /// Which of the node's connections to this entry: 0 is the first.
    pub fn lane(&self) -> u16 {
        self.0.lane
    }
    /// Random for each run of the node.
    pub fn incarnation(&self) -> u64 {
        self.0.incarnation
    }
    /// What a request to this service has as `Host`: the service's own authority, as the node has told.
    pub fn authority(&self, service: &str) -> Option<&str> {
        let mut all = self.0.authorities.iter();
        all.find(|(name, _)| name.as_str() == service).map(|(_, authority)| authority.as_str())
    }
    /// The node's address, for quotas and the admin listener only.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.0.link.remote()
    }
    /// What carries it.
    pub fn transport(&self) -> Transport {
        self.0.link.transport()
    }
    /// For how long it has been up.
    pub fn up_for(&self) -> Duration {
        self.0.created.elapsed()
    }
    /// The round-trip time.
    pub fn rtt(&self) -> Duration {
        self.0.link.rtt()
    }
    /// Opens a stream for exchanges.
    pub async fn open(&self) -> Result<BoxStream, LinkClosed> {
        self.0.link.open().await
    }
    /// Counts one request as running while the guard lives: a busy tunnel is watched.
    pub fn in_flight(&self) -> InFlight {
        if self.0.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.became_busy.notify_one();
        }
        // The tunnel that passes its streams on is busy too, and is watched for that.
        let other = match &self.0.keeping {
            Keeping::Other(other) => Some(Box::new(other.in_flight())),
            Keeping::Control | Keeping::Link => None,
        };
        InFlight { shared: self.0.clone(), _other: other }
    }
    /// How many requests run on it.
    pub fn in_flight_count(&self) -> usize {
        self.0.in_flight.load(Ordering::Relaxed)
    }
    /// Whether it gets requests.
    pub fn liveness(&self) -> Liveness {
        match &self.0.keeping {
            Keeping::Control => {}
            _ if self.0.link.is_closed() => return Liveness::Closed,
            Keeping::Link => return Liveness::Live,
            Keeping::Other(other) => return other.liveness(),
        }
        match self.0.liveness.load(Ordering::Acquire) {
            0 => {
                // Its pings have stopped, and no request has noticed yet.
                let heard = self.0.created + Duration::from_millis(self.0.heard_ms.load(Ordering::Relaxed));
                let limit = suspect_idle_after(self.0.ping_interval);
                if heard.elapsed() > limit { Liveness::Suspect } else { Liveness::Live }
            }
            1 => Liveness::Suspect,
            2 => Liveness::Draining,
            _ => Liveness::Closed,
        }
    }
    /// Whether the connection is no more.
    pub fn is_closed(&self) -> bool {
        self.liveness() == Liveness::Closed
    }
    /// Marks it suspect: an exchange got no verdict in time. The mark goes when it answers a ping.
    /// One without a control stream has nobody who would do that, and stays live.
    pub fn suspect(&self) {
        match &self.0.keeping {
            Keeping::Control => {}
            Keeping::Link => return,
            // Its pings tell whether it was the coordinator or the worker.
            Keeping::Other(other) => return other.look_at(),
        }
        self.0.raise(Liveness::Suspect);
        self.0.became_busy.notify_one();
    }
    /// The watchdog looks at it from now on, as at one on which a request has begun.
    fn look_at(&self) {
        self.0.became_busy.notify_one();
    }
    /// Ready when the connection is no more; says why.
    pub async fn closed(&self) -> LinkClosed {
        self.0.link.closed().await
    }
    /// Ready when it is suspect or closed.
    pub async fn suspected(&self) {
        match &self.0.keeping {
            Keeping::Control => self.silent().await,
            Keeping::Link => drop(self.0.link.closed().await),
            // What is passed on is not passed on again. One without a control stream is never silent, only closed.
            Keeping::Other(other) => tokio::select! {
                _ = self.0.link.closed() => {}
                () = other.silent() => {}
            },
        }
    }
    /// Ready when the control stream's watchdog suspects it, or it is closed.
    async fn silent(&self) {
        loop {
            let changed = self.0.liveness_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if matches!(self.liveness(), Liveness::Suspect | Liveness::Closed) {
                return;
            }
            changed.await;
        }
    }
    /// Sends a message on the control stream, if there is one. A node that does not read them loses its tunnel.
    pub fn send(&self, control: Control) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.0.outgoing.try_send(control) {
            self.close(close::STALLED, "the control stream is not read");
        }
    }
    /// Closes the connection.
    pub fn close(&self, code: u32, reason: &str) {
        self.0.link.close(code, reason);
    }
    /// Another connection of the node takes its place. Where that is a change of transport, what runs here may finish first, for a
    /// while; else the connection is closed at once, since it may be the one that passes nothing any more.
    pub fn replaced_by(&self, newer: &Self) {
        let moved = self.incarnation() == newer.incarnation() && self.transport() != newer.transport();
        // One that is suspect for a moment finishes what runs on it too: what may not run twice would fail for nothing.
        if moved && matches!(self.liveness(), Liveness::Live | Liveness::Suspect) {
            self.0.raise(Liveness::Draining);
            let _ = self.0.leave_by.set(Instant::now() + tuning::MOVE_TIMEOUT);
            self.0.left.notify_waiters();
        } else {
            self.close(close::REPLACED, REPLACED);
        }
    }
}

/// What the other end has said of the connection.
struct Identity {
    lane: u16,
    incarnation: u64,
    authorities: Vec<(ServiceName, String)>,
}

impl Shared {
    fn new(link: Arc<dyn Link>, keeping: Keeping, identity: Identity, outgoing: mpsc::Sender<Control>) -> Self {
        let Identity { lane, incarnation, authorities } = identity;
        Self {
            ping_interval: link.ping_interval(lane),
            link,
            keeping,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            lane,
            incarnation,
            authorities,
            in_flight: AtomicUsize::new(0),
            became_busy: Notify::new(),
            became_idle: Notify::new(),
            leave_by: OnceLock::new(),
            left: Notify::new(),
            liveness: AtomicU8::new(Liveness::Live as u8),
            liveness_changed: Notify::new(),
            created: Instant::now(),
            heard_ms: AtomicU64::new(0),
            outgoing,
        }
    }

    /// Makes it worse, never better.
    pub(crate) fn raise(&self, to: Liveness) {
        if self.liveness.fetch_max(to as u8, Ordering::AcqRel) < to as u8 {
            self.liveness_changed.notify_waiters();
        }
    }
    /// Something came: it is there. That it hears us is another matter.
    pub(crate) fn came(&self) {
        self.heard_ms.store(self.created.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
    /// It has heard us: no longer suspect.
    pub(crate) fn heard(&self) {
        self.came();
        let _ = self.liveness.compare_exchange(
            Liveness::Suspect as u8,
            Liveness::Live as u8,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }
    /// Ready when another connection has taken its place, the node knows it, and nothing runs on this one any more, or not in time.
    /// Cancel-safe.
    async fn left(&self) {
        let leave_by = loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            match self.leave_by.get() {
                Some(leave_by) => break *leave_by,
                None => left.await,
            }
        };
        tokio::time::sleep_until(leave_by - (tuning::MOVE_TIMEOUT - tuning::MOVE_LINGER)).await;
        let idle = async {
            loop {
                let mut idle = std::pin::pin!(self.became_idle.notified());
                idle.as_mut().enable();
                if self.in_flight.load(Ordering::Relaxed) == 0 {
                    return;
                }
                idle.await;
            }
        };
        // Over in time or not: that was its time.
        let _ = tokio::time::timeout_at(leave_by, idle).await;
    }
    pub(crate) fn is_watched(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0 || self.is_suspect()
    }
    pub(crate) fn is_suspect(&self) -> bool {
        self.liveness.load(Ordering::Acquire) == Liveness::Suspect as u8
    }
}

/// One running request.
pub struct InFlight {
    shared: Arc<Shared>,
    /// The same on the tunnel that passes the streams on.
    _other: Option<Box<Self>>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.shared.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.became_idle.notify_waiters();
        }
    }
}

/// What happens on a tunnel.
#[derive(Debug)]
pub enum TunnelEvent {
    /// The node has said something new about itself.
    Record(Signed, Record),
    /// The node leaves: no new requests, and its connection will close when the running ones have finished.
    Leave(Signed, Record),
    /// The connection is no more. The last event.
    Closed(LinkClosed),
}

/// The control stream of a tunnel. Must be polled for as long as the tunnel lives: it answers pings and watches.
pub struct TunnelEvents {
    shared: Arc<Shared>,
    hello: Hello,
    limits: Limits,
    control: ControlStream,
    outgoing: mpsc::Receiver<Control>,
    watchdog: Watchdog,
}

impl Drop for TunnelEvents {
    fn drop(&mut self) {
        self.shared.link.close(close::GOING, "the entry let go of the tunnel");
        self.shared.raise(Liveness::Closed);
    }
}

/// Does the handshake on a fresh connection. Returns the tunnel with the node's record in it as its first event's worth.
pub async fn welcome(
    link: Arc<dyn Link>,
    hello: Hello,
    limits: &Limits,
    admission: &dyn Admission,
) -> Result<(Tunnel, TunnelEvents, Signed, Record), TunnelError> {
    let handshake = shake_hands(&link, &hello, limits, admission);
    let outcome = tokio::time::timeout(tuning::HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(TunnelError::Timeout));
    let (control, join, signed, record) = match outcome {
        Ok(done) => done,
        Err(error) => {
            link.close(close::REFUSED, &error.to_string());
            return Err(error);
        }
    };
    let (outgoing, to_write) = mpsc::channel(tuning::CONTROL_QUEUE);
    let Join { lane, incarnation, authorities, .. } = join;
    let identity = Identity { lane, incarnation, authorities };
    let shared = Arc::new(Shared::new(link, Keeping::Control, identity, outgoing));
    let watchdog = Watchdog::new(shared.clone());
    let events =
        TunnelEvents { shared: shared.clone(), hello, limits: limits.clone(), control, outgoing: to_write, watchdog };
    Ok((Tunnel(shared), events, signed, record))
}

async fn shake_hands(
    link: &Arc<dyn Link>,
    hello: &Hello,
    limits: &Limits,
    admission: &dyn Admission,
) -> Result<(ControlStream, Join, Signed, Record), TunnelError> {
    let mut control = ControlStream::new(link.open().await?);
    control.write(&Control::Hello(hello.clone())).await?;
    let join = match control.read().await? {
        Some(Control::Join(join)) => join,
        other => return Err(TunnelError::Protocol(format!("expected Join, got {other:?}"))),
    };
    match check(link.peer(), hello, &join, limits, admission) {
        Ok((signed, record)) => {
            let welcome = Welcome {
                observed: link.remote().map(|address| address.to_string()).unwrap_or_default(),
                ping_interval_ms: link.ping_interval(join.lane).as_millis() as u32,
            };
            control.write(&Control::Welcome(welcome)).await?;
            Ok((control, join, signed, record))
        }
        Err(reject) => {
            control.write(&Control::Reject(reject.clone())).await?;
            // The node closes when it has read this; the time-out around us is the bound.
            link.closed().await;
            Err(TunnelError::Rejected(reject))
        }
    }
}

fn check(
    peer: NodeId,
    hello: &Hello,
    join: &Join,
    limits: &Limits,
    admission: &dyn Admission,
) -> Result<(Signed, Record), Reject> {
    if join.federation != hello.federation {
        let message = format!(
            "this entry serves federation {}, the node wants {}: check the address that it was given",
            hello.federation, join.federation
        );
        return Err(Reject { reason: RejectReason::Federation, message, record: None });
    }
    let bad = |message: String| Reject { reason: RejectReason::Record, message, record: None };
    let signed = Signed::open(Bytes::copy_from_slice(&join.record), hello.federation, limits)
        .map_err(|error| bad(format!("the node's record is not valid: {error}")))?;
    let record = signed.record().clone();
    if record.writer != peer {
        return Err(bad("the node's record is signed by another key than the connection's".into()));
    }
    if !matches!(record.body, Body::Node(_)) {
        return Err(bad("the node sent another kind of record than its own".into()));
    }
    admission.admit(peer, join, &record)?;
    Ok((signed, record))
}

impl TunnelEvents {
    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> TunnelEvent {
        loop {
            let control = tokio::select! {
                closed = self.shared.link.closed() => return self.ended(closed),
                () = self.shared.left() => {
                    self.shared.link.close(close::REPLACED, REPLACED);
                    continue;
                }
                control = self.control.read() => control,
                Some(control) = self.outgoing.recv() => {
                    self.write(&control).await;
                    continue;
                }
                ping = self.watchdog.tick() => {
                    if let Some(number) = ping {
                        self.write(&Control::Ping(number)).await;
                    }
                    continue;
                }
            };
            let control = match control {
                Ok(Some(control)) => control,
                Ok(None) => return self.lost("the control stream ended").await,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.broke(&error.to_string());
                    let closed = self.shared.link.closed().await;
                    return self.ended(closed);
                }
                Err(error) => return self.lost(&error.to_string()).await,
            };
            self.shared.came();
            match control {
                Control::Ping(number) => self.write(&Control::Pong(number)).await,
                Control::Pong(_) => self.shared.heard(),
                Control::Record(bytes) => match self.open_record(bytes) {
                    Ok((signed, record)) if matches!(record.body, Body::Node(_)) => {
                        return TunnelEvent::Record(signed, record);
                    }
                    Ok(_) => self.broke("a record of another kind"),
                    Err(reason) => self.broke(&reason),
                },
                Control::Leave(bytes) => match self.open_record(bytes) {
                    Ok((signed, record)) if matches!(record.body, Body::Leave) => {
                        self.shared.raise(Liveness::Draining);
                        return TunnelEvent::Leave(signed, record);
                    }
                    Ok(_) => self.broke("a record of another kind in the place of Leave"),
                    Err(reason) => self.broke(&reason),
                },
                other => self.broke(&format!("{other:?} is not for a node to say now")),
            }
        }
    }

    fn open_record(&self, bytes: Vec<u8>) -> Result<(Signed, Record), String> {
        let signed = Signed::open(bytes.into(), self.hello.federation, &self.limits)
            .map_err(|error| format!("a record that is not valid: {error}"))?;
        let record = signed.record().clone();
        if record.writer != self.shared.link.peer() {
            return Err("a record of another node".into());
        }
        Ok((signed, record))
    }

    fn broke(&self, reason: &str) {
        self.shared.link.close(close::PROTOCOL, reason);
    }

    async fn write(&mut self, control: &Control) {
        let write = tokio::time::timeout(tuning::PONG_TIMEOUT, self.control.write(control)).await;
        match write {
            Ok(Ok(())) => {}
            // The close is the next event.
            Ok(Err(error)) => drop(self.lost(&error.to_string()).await),
            Err(_) => self.shared.link.close(close::STALLED, "the control stream is not read"),
        }
    }

    async fn lost(&mut self, reason: &str) -> TunnelEvent {
        // Whatever the peer has to say: it is asked for nothing any more.
        self.shared.raise(Liveness::Closed);
        let closed = last_words(&*self.shared.link, close::PROTOCOL, reason).await;
        self.ended(closed)
    }

    fn ended(&self, closed: LinkClosed) -> TunnelEvent {
        self.shared.raise(Liveness::Closed);
        TunnelEvent::Closed(closed)
    }
}
