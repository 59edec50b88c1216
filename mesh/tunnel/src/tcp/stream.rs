//! One stream of HTTP/2 as a pair of byte streams.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use hedgerow_proto::frame::reset;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::link::Shared;
use crate::link::{LinkClosed, Stream, StreamReset};

/// Codes of ours begin here in a RST_STREAM; those below mean something in HTTP/2 (RFC 9113 §7).
const RESET_BASE: u32 = 0x100;
/// Bytes taken from one write: they are copied, and a frame of HTTP/2 is no longer.
const WRITE_BYTES_MAX: usize = 16 * 1024;

/// What comes from the other end.
pub(super) enum Incoming {
    /// Nothing before the answer's head has come.
    Head(ResponseFuture),
    Body(RecvStream),
    End,
}

impl Incoming {
    /// The next bytes; none at the end.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        loop {
            match self {
                Self::Head(answer) => *self = Self::Body(ready!(Pin::new(answer).poll(cx))?.into_body()),
                Self::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(bytes) => return Poll::Ready(bytes.map(Some)),
                    None => *self = Self::End,
                },
                Self::End => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// These bytes have been taken: as many more may come.
    pub(super) fn taken(&mut self, bytes: usize) {
        if let Self::Body(body) = self {
            // Refused only for more than has come.
            let _ = body.flow_control().release_capacity(bytes);
        }
    }
}

/// A stream of a [`TcpLink`](super::TcpLink).
pub(super) struct H2Stream {
    send: SendStream<Bytes>,
    incoming: Incoming,
    /// What has come and was not taken yet.
    rest: Bytes,
    shared: Arc<Shared>,
    finished: bool,
    /// Its place among the streams that this end may have open.
    _place: Option<OwnedSemaphorePermit>,
}

impl H2Stream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        incoming: Incoming,
        shared: Arc<Shared>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { send, incoming, rest: Bytes::new(), shared, finished: false, _place: place }
    }

    /// Nothing goes any more once the connection is closed.
    fn check(&self) -> io::Result<()> {
        self.shared.why_closed().map_or(Ok(()), |closed| Err(closed.into()))
    }

    fn error(&self, error: h2::Error) -> io::Error {
        if let Some(closed) = self.shared.why_closed() {
            return closed.into();
        }
        match error.reason() {
            Some(reason) if error.is_reset() => StreamReset(code(reason)).into_io(),
            _ => LinkClosed { code: None, reason: error.to_string() }.into(),
        }
    }

    /// Why nothing can be written: the stream was reset, or the connection is gone.
    fn not_writable(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => StreamReset(code(reason)).into_io(),
            Poll::Ready(Err(error)) => self.error(error),
            // It was finished before.
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

/// The code of a reset; what the library says by itself, mostly because a stream was let go of, is a cancellation.
fn code(reason: Reason) -> u32 {
    u32::from(reason).checked_sub(RESET_BASE).unwrap_or(reset::CANCELLED)
}

impl AsyncRead for H2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        // A frame without bytes is not the end.
        while self.rest.is_empty() {
            match ready!(self.incoming.poll_bytes(cx)) {
                Ok(Some(bytes)) => self.rest = bytes,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(self.error(error))),
            }
        }
        let take = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..take]);
        self.rest.advance(take);
        self.incoming.taken(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let want = bytes.len().min(WRITE_BYTES_MAX);
        if want == 0 {
            return Poll::Ready(Ok(0));
        }
        while self.send.capacity() == 0 {
            self.send.reserve_capacity(want);
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(self.error(error))),
                None => return Poll::Ready(Err(self.not_writable(cx))),
            }
        }
        let room = self.send.capacity();
        let take = want.min(room);
        if self.send.send_data(Bytes::copy_from_slice(&bytes[..take]), false).is_err() {
            return Poll::Ready(Err(self.not_writable(cx)));
        }
        if take < room {
            // Of the connection's window nobody may keep what he does not use.
            self.send.reserve_capacity(0);
        }
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written goes out by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.finished, true) {
            // An error says only that it was reset before: either way nothing more will go out.
            let _ = self.send.send_data(Bytes::new(), true);
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for H2Stream {
    fn reset(&mut self, code: u32) {
        self.finished = true;
        self.send.send_reset(Reason::from(code.saturating_add(RESET_BASE)));
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<u32> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) if self.shared.why_closed().is_none() => Poll::Ready(code(reason)),
            // The connection is lost, which reading tells.
            Ok(_) | Err(_) => Poll::Pending,
        }
    }
}

impl Drop for H2Stream {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(reset::CANCELLED);
        }
    }
}
