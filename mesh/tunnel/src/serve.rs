//! The node's end of the streams: takes a slot of the service, connects to it, and copies bytes. HTTP is not looked at.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use hedgerow_proto::frame::{
    FrameError, FrameHeader, FrameType, HEADER_BYTES, Preface, Refusal, Release, StreamKind, message, reset,
};
use hedgerow_proto::wire;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tracing::{Instrument, debug};

use crate::dial::DrainState;
use crate::frames::protocol;
use crate::link::{BoxFuture, BoxStream, Link, LinkClosed, StreamReset};
use crate::splice::{Ended, splice};

/// A connection to a service.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
/// Any connection to a service.
pub type BoxIo = Box<dyn Io>;

/// What a node offers: only services that its operator named.
pub trait Services: Send + Sync + 'static {
    /// Takes one of the service's slots and a connection to it, or says why not. Nothing has reached the service when
    /// this refuses. Where the preface says so it may wait for a slot, up to
    /// [`WhenFull::IN_LINE_MAX`](hedgerow_proto::frame::WhenFull::IN_LINE_MAX); it is dropped if the entry gives up.
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>>;

    /// A stream that carries no HTTP (registry sync, a mesh peer): taken over whole, or refused.
    fn other(&self, _preface: &Preface) -> Option<OtherStream> {
        None
    }
}

/// Takes a stream over, after ACCEPT has gone out.
pub type OtherStream = Box<dyn FnOnce(BoxStream) -> BoxFuture<'static, ()> + Send>;

/// A connection to a service, with the slot that it takes.
pub struct OpenService {
    /// The connection.
    pub io: BoxIo,
    /// Whether it has carried an exchange before: it may be about to close.
    pub reused: bool,
    /// The slot.
    pub slot: Box<dyn Slot>,
}

/// One of a service's slots. Dropping it frees it.
pub trait Slot: Send {
    /// Frees the slot, and the connection is clean: it may serve again.
    fn keep(self: Box<Self>, io: BoxIo);
}

/// Counts the exchanges that run on a node's connections: it leaves when there are none.
#[derive(Default)]
pub struct Activity {
    running: AtomicUsize,
    changed: Notify,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// Ready when nothing runs.
    pub async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

/// Serves the streams that the other end opens, until the connection closes; says why it did.
pub async fn serve_link(
    link: Arc<dyn Link>,
    services: Arc<dyn Services>,
    drain: watch::Receiver<DrainState>,
    activity: Arc<Activity>,
) -> LinkClosed {
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = link.accept() => match stream {
                Ok(stream) => {
                    let (services, drain, activity) = (services.clone(), drain.clone(), activity.clone());
                    let serving = async move {
                        if let Err(error) = serve_stream(stream, &*services, drain, &activity).await {
                            debug!(%error, "an exchange stream ended");
                        }
                    };
                    tasks.spawn(serving.in_current_span());
                }
                Err(closed) => return closed,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Serves one stream, to its end.
pub async fn serve_stream(
    mut stream: BoxStream,
    services: &dyn Services,
    drain: watch::Receiver<DrainState>,
    activity: &Arc<Activity>,
) -> io::Result<()> {
    let mut input = BytesMut::new();
    while let Some(preface) = next_open(&mut stream, &mut input).await? {
        let running = activity.begin();
        let refusal = if *drain.borrow() == DrainState::Draining {
            Refusal::Draining
        } else if preface.hops > Preface::HOPS_MAX {
            Refusal::TooManyHops
        } else {
            match preface.kind {
                StreamKind::Control => return Err(break_off(stream, FrameError::OutOfPlace(FrameType::Open))),
                StreamKind::Sync | StreamKind::MeshPeer | StreamKind::Relay | StreamKind::Contract => {
                    match services.other(&preface) {
                        // Nothing may follow before ACCEPT, so nothing is lost with `input`.
                        Some(take_over) => {
                            write_empty(&mut stream, FrameType::Accept).await?;
                            take_over(stream).await;
                            return Ok(());
                        }
                        None => Refusal::Unsupported,
                    }
                }
                StreamKind::Http | StreamKind::Upgrade => match open(&mut stream, services, &preface).await? {
                    Ok(open) => match run(&mut stream, &mut input, open, preface.kind).await? {
                        Next::Another => continue,
                        Next::End => return Ok(()),
                    },
                    Err(refusal) => refusal,
                },
            }
        };
        debug!(request = %preface.request, reason = refusal.as_str(), "refused");
        stream.write_all(&message(FrameType::Refuse, &refusal)).await?;
        stream.flush().await?;
        drop(running);
    }
    stream.shutdown().await
}

/// What the services say of it, unless the entry gives it up before: who has gone must not get a slot that others wait for.
async fn open(
    stream: &mut BoxStream,
    services: &dyn Services,
    preface: &Preface,
) -> io::Result<Result<OpenService, Refusal>> {
    tokio::select! {
        biased;
        opened = services.open(preface) => Ok(opened),
        code = poll_fn(|cx| stream.poll_stopped(cx)) => Err(StreamReset(code).into_io()),
    }
}

async fn write_empty(stream: &mut BoxStream, frame_type: FrameType) -> io::Result<()> {
    stream.write_all(&FrameHeader { frame_type, payload_bytes: 0 }.encode()).await
}

enum Next {
    Another,
    End,
}

async fn run(stream: &mut BoxStream, input: &mut BytesMut, open: OpenService, kind: StreamKind) -> io::Result<Next> {
    let OpenService { mut io, reused, slot } = open;
    write_empty(stream, FrameType::Accept).await?;
    let ended = splice(stream, input, &mut io, reused).await;
    match ended {
        // A connection is clean only if nothing more came from it than the entry has read.
        Ok(Ended::Released(Release::Keep)) if kind == StreamKind::Http && is_quiet(&mut io) => slot.keep(io),
        _ => {
            // In this order: a slot that is free has no connection any more.
            drop(io);
            drop(slot);
        }
    }
    Ok(match ended? {
        Ended::Released(_) => Next::Another,
        Ended::Closed => Next::End,
    })
}

/// Whether a connection has neither bytes to read nor ended: only then may it carry another exchange.
pub fn is_quiet(io: &mut BoxIo) -> bool {
    let mut byte = [0];
    // Outside the task's budget: a busy task's connection would otherwise look quiet whatever it is.
    tokio::task::unconstrained(io.read(&mut byte)).now_or_never().is_none()
}

/// The next OPEN. What the entry had sent for an exchange that was refused is thrown away.
async fn next_open(stream: &mut BoxStream, input: &mut BytesMut) -> io::Result<Option<Preface>> {
    let mut skip = 0;
    loop {
        if let Some(preface) = parse_open(input, &mut skip).map_err(protocol)? {
            return Ok(Some(preface));
        }
        let between = input.is_empty() && skip == 0;
        // An idle stream holds no large buffer: there may be thousands of them.
        let mut some = [0; IDLE_READ_BYTES];
        let got = stream.read(&mut some).await?;
        input.extend_from_slice(&some[..got]);
        if got == 0 {
            return if between { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// Read at once while no exchange runs: an OPEN and the head of a small request.
const IDLE_READ_BYTES: usize = 1024;

/// Takes frames off `input` up to and including an OPEN; `skip` counts the bytes to throw away that are still to come.
fn parse_open(input: &mut BytesMut, skip: &mut usize) -> Result<Option<Preface>, FrameError> {
    loop {
        let dropped = input.len().min(*skip);
        input.advance(dropped);
        *skip -= dropped;
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = FrameHeader::decode(*header)?;
        match header.frame_type {
            FrameType::Data | FrameType::End | FrameType::Release => *skip = HEADER_BYTES + header.payload_bytes,
            FrameType::Open if input.len() < HEADER_BYTES + header.payload_bytes => return Ok(None),
            FrameType::Open => {
                input.advance(HEADER_BYTES);
                let payload = input.split_to(header.payload_bytes);
                return Ok(Some(wire::decode(&payload, payload.len())?));
            }
            other => return Err(FrameError::OutOfPlace(other)),
        }
    }
}

fn break_off(mut stream: BoxStream, error: FrameError) -> io::Error {
    stream.reset(reset::PROTOCOL);
    protocol(error)
}
