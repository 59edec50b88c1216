//! The entry's end of a stream: one exchange after another, each a request and its answer.
//!
//! [`ExchangeIo`] is what an HTTP/1.1 client reads and writes; it puts the bytes into frames and takes them out again. Its
//! twin [`Exchange`] begins and ends exchanges round the client, learns the node's verdict, and can cut all off at once.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use futures_util::task::noop_waker_ref;
use hedgerow_proto::frame::{
    DATA_BYTES_MAX, FrameError, FrameHeader, FrameType, HEADER_BYTES, Preface, Refusal, Release, message, reset,
};
use hedgerow_proto::wire;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::{BoxStream, StreamReset};

/// Writes up to this long go out together with the frames in front of them: one call instead of two.
const COALESCE_BYTES: usize = 4096;

/// What the node made of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has a slot and the service a connection; from here on the request may run.
    Accepted,
    /// The service has not seen a byte.
    Refused(Refusal),
    /// The stream broke before the verdict came: whether anything ran is not known.
    Broken(Breakage),
}

/// Why a stream is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Breakage {
    /// A kept connection to the service had closed before it answered a byte.
    #[error("the service had closed its kept connection")]
    StaleConnection,
    /// The service's connection broke.
    #[error("the service broke off")]
    ServiceBroke,
    /// The node reset the stream with this code.
    #[error("the node reset the stream (code {0})")]
    Reset(u32),
    /// The tunnel is gone.
    #[error("the tunnel is gone: {0}")]
    Tunnel(String),
    /// The node broke the rules.
    #[error("the node broke the protocol: {0}")]
    Protocol(FrameError),
    /// The node ended the stream.
    #[error("the node ended the stream")]
    Eof,
    /// This side gave it up.
    #[error("given up")]
    Aborted,
}

/// An exchange stream as an HTTP client sees it. Drops to a reset.
pub struct ExchangeIo(Arc<Mutex<Inner>>);

/// The handle beside it.
#[derive(Clone)]
pub struct Exchange(Arc<Mutex<Inner>>);

/// Wraps a fresh stream.
pub fn exchange(stream: BoxStream) -> (ExchangeIo, Exchange) {
    let inner = Arc::new(Mutex::new(Inner {
        stream: Some(stream),
        out: BytesMut::new(),
        data_left: 0,
        finished: false,
        incoming: Incoming::Header { bytes: [0; HEADER_BYTES], filled: 0 },
        phase: Phase::Idle,
        breakage: None,
        wakers: Wakers::default(),
    }));
    (ExchangeIo(inner.clone()), Exchange(inner))
}

#[derive(Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
    verdict: Option<Waker>,
}

impl Wakers {
    fn wake_all(&mut self) {
        for waker in [self.read.take(), self.write.take(), self.verdict.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Keeps the waker of the last one who asked.
fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

enum Incoming {
    Header { bytes: [u8; HEADER_BYTES], filled: usize },
    Refusal { payload: Vec<u8>, filled: usize },
    Data { left: usize },
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Asked,
    Accepted { answer_began: bool },
    Refused(Refusal),
}

struct Inner {
    stream: Option<BoxStream>,
    /// Frames that wait to go out, in front of whatever is written next.
    out: BytesMut,
    /// What is still to come of the DATA frame whose header has gone out.
    data_left: usize,
    /// The client's bytes have ended.
    finished: bool,
    incoming: Incoming,
    phase: Phase,
    breakage: Option<Breakage>,
    wakers: Wakers,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    // A panic under the lock leaves a state that is at worst refused by the checks below.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn broke(&mut self, breakage: Breakage) -> io::Error {
        let code = match breakage {
            Breakage::Protocol(_) => reset::PROTOCOL,
            _ => reset::CANCELLED,
        };
        if let Some(mut stream) = self.stream.take() {
            stream.reset(code);
        }
        let kept = self.breakage.get_or_insert(breakage).clone();
        self.wakers.wake_all();
        io::Error::new(io::ErrorKind::BrokenPipe, kept)
    }

    fn failed(&mut self, error: &io::Error) -> io::Error {
        let breakage = match StreamReset::of(error) {
            Some(reset::STALE_CONNECTION) => Breakage::StaleConnection,
            Some(reset::SERVICE_BROKE) => Breakage::ServiceBroke,
            Some(code) => Breakage::Reset(code),
            None => Breakage::Tunnel(error.to_string()),
        };
        self.broke(breakage)
    }

    fn gone(&self) -> io::Error {
        let breakage = self.breakage.clone().unwrap_or(Breakage::Aborted);
        io::Error::new(io::ErrorKind::BrokenPipe, breakage)
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let Some(stream) = self.stream.as_mut() else { return Poll::Ready(Err(self.gone())) };
            match ready!(Pin::new(stream).poll_write(cx, &self.out)) {
                Ok(0) => return Poll::Ready(Err(self.broke(Breakage::Eof))),
                Ok(written) => self.out.advance(written),
                Err(error) => return Poll::Ready(Err(self.failed(&error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.data_left == 0 {
            let payload_bytes = buf.len().min(DATA_BYTES_MAX);
            self.out.extend_from_slice(&FrameHeader { frame_type: FrameType::Data, payload_bytes }.encode());
            if payload_bytes <= COALESCE_BYTES {
                self.out.extend_from_slice(&buf[..payload_bytes]);
                return match self.poll_out(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    // What is left goes out with the flush, or in front of the next write.
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(payload_bytes)),
                };
            }
            self.data_left = payload_bytes;
            ready!(self.poll_out(cx))?;
        }
        let Some(stream) = self.stream.as_mut() else { return Poll::Ready(Err(self.gone())) };
        let take = buf.len().min(self.data_left);
        match ready!(Pin::new(stream).poll_write(cx, &buf[..take])) {
            Ok(written) => {
                self.data_left -= written;
                Poll::Ready(Ok(written))
            }
            Err(error) => Poll::Ready(Err(self.failed(&error))),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Phase::Refused(_) = self.phase {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the node refused the exchange")));
            }
            let Some(stream) = self.stream.as_mut() else { return Poll::Ready(Err(self.gone())) };
            match &mut self.incoming {
                Incoming::End => return Poll::Ready(Ok(())),
                Incoming::Header { bytes, filled } => {
                    match ready!(poll_fill(stream, cx, bytes, filled)) {
                        Ok(Filled::Whole) => {}
                        // Without END it is no end of an answer.
                        Ok(Filled::EndBefore) if !matches!(self.phase, Phase::Accepted { .. }) => {
                            self.ended();
                            continue;
                        }
                        Ok(Filled::EndBefore | Filled::EndWithin) => {
                            return Poll::Ready(Err(self.broke(Breakage::Eof)));
                        }
                        Err(error) => return Poll::Ready(Err(self.failed(&error))),
                    }
                    let bytes = *bytes;
                    if let Err(error) = self.header(bytes) {
                        return Poll::Ready(Err(self.broke(Breakage::Protocol(error))));
                    }
                }
                Incoming::Refusal { payload, filled } => {
                    match ready!(poll_fill(stream, cx, payload, filled)) {
                        Ok(Filled::Whole) => {}
                        Ok(Filled::EndBefore | Filled::EndWithin) => {
                            return Poll::Ready(Err(self.broke(Breakage::Eof)));
                        }
                        Err(error) => return Poll::Ready(Err(self.failed(&error))),
                    }
                    match wire::decode::<Refusal>(payload, payload.len()) {
                        Ok(refusal) => {
                            self.phase = Phase::Refused(refusal);
                            self.wakers.verdict.take().map(Waker::wake).unwrap_or_default();
                        }
                        Err(error) => return Poll::Ready(Err(self.broke(Breakage::Protocol(error.into())))),
                    }
                }
                Incoming::Data { left: 0 } => {
                    self.incoming = Incoming::Header { bytes: [0; HEADER_BYTES], filled: 0 };
                }
                Incoming::Data { left } => {
                    let want = buf.remaining().min(*left);
                    let mut part = ReadBuf::new(buf.initialize_unfilled_to(want));
                    let polled = ready!(Pin::new(stream).poll_read(cx, &mut part));
                    let got = part.filled().len();
                    return match polled {
                        Ok(()) if got > 0 || want == 0 => {
                            *left -= got;
                            buf.advance(got);
                            Poll::Ready(Ok(()))
                        }
                        Ok(()) => Poll::Ready(Err(self.broke(Breakage::Eof))),
                        Err(error) => Poll::Ready(Err(self.failed(&error))),
                    };
                }
            }
        }
    }

    /// The node says no more.
    fn ended(&mut self) {
        self.incoming = Incoming::End;
        self.breakage.get_or_insert(Breakage::Eof);
        self.wakers.verdict.take().map(Waker::wake).unwrap_or_default();
    }

    fn header(&mut self, bytes: [u8; HEADER_BYTES]) -> Result<(), FrameError> {
        let header = FrameHeader::decode(bytes)?;
        self.incoming = Incoming::Header { bytes: [0; HEADER_BYTES], filled: 0 };
        match (header.frame_type, &mut self.phase) {
            (FrameType::Accept, phase @ Phase::Asked) if header.payload_bytes == 0 => {
                *phase = Phase::Accepted { answer_began: false };
                self.wakers.verdict.take().map(Waker::wake).unwrap_or_default();
            }
            (FrameType::Refuse, Phase::Asked) => {
                self.incoming = Incoming::Refusal { payload: vec![0; header.payload_bytes], filled: 0 };
            }
            (FrameType::Data, Phase::Accepted { answer_began }) => {
                *answer_began |= header.payload_bytes > 0;
                self.incoming = Incoming::Data { left: header.payload_bytes };
            }
            (FrameType::End, Phase::Accepted { .. }) if header.payload_bytes == 0 => self.ended(),
            (frame_type, _) => return Err(FrameError::OutOfPlace(frame_type)),
        }
        Ok(())
    }
}

enum Filled {
    Whole,
    EndBefore,
    EndWithin,
}

fn poll_fill(
    stream: &mut BoxStream,
    cx: &mut Context<'_>,
    bytes: &mut [u8],
    filled: &mut usize,
) -> Poll<io::Result<Filled>> {
    while *filled < bytes.len() {
        let mut buf = ReadBuf::new(&mut bytes[*filled..]);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf))?;
        match buf.filled().len() {
            0 if *filled == 0 => return Poll::Ready(Ok(Filled::EndBefore)),
            0 => return Poll::Ready(Ok(Filled::EndWithin)),
            got => *filled += got,
        }
    }
    Poll::Ready(Ok(Filled::Whole))
}

impl AsyncRead for ExchangeIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        register(&mut inner.wakers.read, cx);
        inner.poll_read(cx, buf)
    }
}

impl AsyncWrite for ExchangeIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        register(&mut inner.wakers.write, cx);
        inner.poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_out(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        // Between exchanges there is nothing to end, and in the middle of a frame it is no end.
        let within = matches!(inner.phase, Phase::Asked | Phase::Accepted { .. }) && inner.data_left == 0;
        if within && !std::mem::replace(&mut inner.finished, true) {
            inner.out.extend_from_slice(&FrameHeader { frame_type: FrameType::End, payload_bytes: 0 }.encode());
        }
        ready!(inner.poll_out(cx))?;
        match inner.stream.as_mut() {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Err(inner.gone())),
        }
    }
}

impl Drop for ExchangeIo {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        // The client has let go of its connection: whatever is still open is cancelled.
        drop(inner.stream.take());
        inner.breakage.get_or_insert(Breakage::Aborted);
        inner.wakers.wake_all();
    }
}

impl Exchange {
    /// Begins an exchange: OPEN goes out in front of the next bytes written.
    pub fn begin(&self, preface: &Preface) {
        let mut inner = lock(&self.0);
        inner.phase = Phase::Asked;
        inner.out.extend_from_slice(&message(FrameType::Open, preface));
    }

    /// The node's verdict on the exchange that was begun last. The client's connection must be polled meanwhile.
    pub async fn verdict(&self) -> Verdict {
        std::future::poll_fn(|cx| {
            let mut inner = lock(&self.0);
            match inner.phase {
                Phase::Accepted { .. } => Poll::Ready(Verdict::Accepted),
                Phase::Refused(refusal) => Poll::Ready(Verdict::Refused(refusal)),
                Phase::Idle | Phase::Asked => match inner.breakage.clone() {
                    Some(breakage) => Poll::Ready(Verdict::Broken(breakage)),
                    None => {
                        register(&mut inner.wakers.verdict, cx);
                        Poll::Pending
                    }
                },
            }
        })
        .await
    }

    /// The verdict as far as it has come.
    pub fn verdict_now(&self) -> Option<Verdict> {
        let inner = lock(&self.0);
        match inner.phase {
            Phase::Accepted { .. } => Some(Verdict::Accepted),
            Phase::Refused(refusal) => Some(Verdict::Refused(refusal)),
            Phase::Idle | Phase::Asked => inner.breakage.clone().map(Verdict::Broken),
        }
    }

    /// Why the stream is of no more use, if so.
    pub fn breakage(&self) -> Option<Breakage> {
        lock(&self.0).breakage.clone()
    }

    /// Whether a byte of the answer has come.
    pub fn answer_began(&self) -> bool {
        matches!(lock(&self.0).phase, Phase::Accepted { answer_began: true })
    }

    /// Ends the exchange after its whole answer was read, and frees the service's slot. If the frame cannot go out
    /// cleanly the stream is reset instead, which frees the slot too.
    pub fn release(&self, release: Release) {
        let mut inner = lock(&self.0);
        if inner.data_left > 0 || !inner.out.is_empty() {
            inner.broke(Breakage::Aborted);
            return;
        }
        inner.phase = Phase::Idle;
        inner.out.extend_from_slice(&message(FrameType::Release, &release));
        let mut cx = Context::from_waker(noop_waker_ref());
        if inner.poll_out(&mut cx).is_pending() {
            // Nothing but a stalled connection holds back a few bytes.
            inner.broke(Breakage::Aborted);
        }
    }

    /// Cuts the exchange off: the node closes the service's connection at once.
    pub fn abort(&self) {
        lock(&self.0).broke(Breakage::Aborted);
    }
}
