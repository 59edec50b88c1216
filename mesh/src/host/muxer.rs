//! Streams that end with their connection, as those of QUIC do.
//!
//! With yamux 0.14 they do not where the connection is closed from this side: whoever waits to read a stream, or for room to write,
//! is never woken (`yamux::connection::Active::close`). And where the connection breaks they end as if the peer had finished them, so
//! that half of what was said looks whole. A close is not over before everything has gone out, either, which it never has where the
//! path is dead, and as long as it is not over the peer counts as connected.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerEvent};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// How long what still waits to go out may hold up a close: some round trips around the world.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection's streams, boxed; each of them is an error from when the connection is closed or broken.
pub fn ending<M>(muxer: M) -> StreamMuxerBox
where
    M: StreamMuxer<Error: Into<io::Error>, Substream: Send + Unpin + 'static> + Send + Unpin + 'static,
{
    let ended = CancellationToken::new();
    StreamMuxerBox::new(Ending { muxer, ended: ended.clone(), _ends: ended.drop_guard(), closing: None })
}

struct Ending<M> {
    muxer: M,
    ended: CancellationToken,
    _ends: DropGuard,
    closing: Option<Pin<Box<Sleep>>>,
}

impl<M: StreamMuxer<Error: Into<io::Error>> + Unpin> Ending<M> {
    fn seen<T>(&self, outcome: Result<T, M::Error>) -> Poll<io::Result<T>> {
        Poll::Ready(outcome.map_err(|error| {
            self.ended.cancel();
            error.into()
        }))
    }

    fn stream(&self, stream: M::Substream) -> EndingStream<M::Substream> {
        EndingStream { stream, ended: self.ended.clone(), reading: None, writing: None }
    }
}

impl<M: StreamMuxer<Error: Into<io::Error>> + Unpin> StreamMuxer for Ending<M>
where
    M::Substream: Unpin,
{
    type Substream = EndingStream<M::Substream>;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        let outcome = ready!(Pin::new(&mut self.muxer).poll_inbound(cx));
        self.seen(outcome).map_ok(|stream| self.stream(stream))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        let outcome = ready!(Pin::new(&mut self.muxer).poll_outbound(cx));
        self.seen(outcome).map_ok(|stream| self.stream(stream))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended.cancel();
        if let Poll::Ready(outcome) = Pin::new(&mut self.muxer).poll_close(cx) {
            return self.seen(outcome);
        }
        ready!(self.closing.get_or_insert_with(|| Box::pin(sleep(CLOSE_TIMEOUT))).poll_unpin(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "closed before everything had gone out")))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let outcome = ready!(Pin::new(&mut self.muxer).poll(cx));
        self.seen(outcome)
    }
}

/// The end of a connection, as one direction of a stream waits for it.
type Ended = Option<Pin<Box<WaitForCancellationFutureOwned>>>;

struct EndingStream<S> {
    stream: S,
    ended: CancellationToken,
    reading: Ended,
    writing: Ended,
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection has ended")
}

/// What comes of something that waits, unless the connection ends before.
fn unless_ended<T>(
    polled: Poll<io::Result<T>>,
    token: &CancellationToken,
    ended: &mut Ended,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if polled.is_ready() {
        return polled;
    }
    ready!(ended.get_or_insert_with(|| Box::pin(token.clone().cancelled_owned())).poll_unpin(cx));
    // It would be polled again after its end.
    *ended = None;
    Poll::Ready(Err(aborted()))
}

impl<S: AsyncRead + Unpin> AsyncRead for EndingStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { stream, ended, reading, .. } = self.get_mut();
        match Pin::new(stream).poll_read(cx, buf) {
            // Whether the peer has finished it cannot be told any more.
            Poll::Ready(Ok(0)) if !buf.is_empty() && ended.is_cancelled() => Poll::Ready(Err(aborted())),
            polled => unless_ended(polled, ended, reading, cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EndingStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, ended, writing, .. } = self.get_mut();
        let polled = Pin::new(stream).poll_write(cx, buf);
        unless_ended(polled, ended, writing, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ended, writing, .. } = self.get_mut();
        let polled = Pin::new(stream).poll_flush(cx);
        unless_ended(polled, ended, writing, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ended, writing, .. } = self.get_mut();
        let polled = Pin::new(stream).poll_close(cx);
        unless_ended(polled, ended, writing, cx)
    }
}
