//! Streams that end with their connection, as those of QUIC do.
//!
//! With yamux 0.14 they do not where the connection is closed from this side: whoever waits to read a stream, or for room to write,
//! is never woken (`yamux::connection::Active::close`). And where the connection breaks they end as if the peer had finished them, so
//! that half of what was said looks whole. A close is not over before everything has gone out, either, which it never has where the
//! path is dead, and as long as it is not over the peer counts as connected.
//!
//! A stream that the peer resets still looks finished: yamux does not tell. What is said over streams says its own end
//! ([`FrameType::End`](hedgerow_proto::frame::FrameType::End)).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerEvent};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long what still waits to go out may hold up a close: some round trips around the world. What has not gone out by then is lost, as
/// with QUIC.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection's streams, boxed; to read and to write each of them is an error from when the connection is closed or broken.
pub fn ending<M>(muxer: M) -> StreamMuxerBox
where
    M: StreamMuxer<Error: Into<io::Error>, Substream: Send + Unpin + 'static> + Send + Unpin + 'static,
{
    StreamMuxerBox::new(Ending { muxer, end: Arc::default(), closing: None })
}

/// The end of a connection.
#[derive(Default)]
struct End {
    seen: CancellationToken,
    /// Held while the muxer is polled: it ends its streams before it says that the connection is broken.
    turn: Mutex<()>,
}

impl End {
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was the connection's end that a stream has ended with.
    fn was_seen(&self) -> bool {
        // Whoever ended the stream is done with his turn.
        drop(self.turn());
        self.seen.is_cancelled()
    }
}

struct Ending<M> {
    muxer: M,
    end: Arc<End>,
    closing: Option<Pin<Box<Sleep>>>,
}

impl<M> Drop for Ending<M> {
    fn drop(&mut self) {
        // Before the muxer, which ends its streams when it is dropped.
        self.end.seen.cancel();
    }
}

impl<M: StreamMuxer<Error: Into<io::Error>> + Unpin> Ending<M> {
    fn turn<T>(&mut self, poll: impl FnOnce(Pin<&mut M>) -> Poll<Result<T, M::Error>>) -> Poll<io::Result<T>> {
        let _turn = self.end.turn();
        let outcome = ready!(poll(Pin::new(&mut self.muxer)));
        Poll::Ready(outcome.map_err(|error| {
            self.end.seen.cancel();
            error.into()
        }))
    }

    fn stream(&self, stream: M::Substream) -> EndingStream<M::Substream> {
        EndingStream { stream, end: self.end.clone(), finished: false, reading: None, writing: None }
    }
}

impl<M: StreamMuxer<Error: Into<io::Error>> + Unpin> StreamMuxer for Ending<M>
where
    M::Substream: Unpin,
{
    type Substream = EndingStream<M::Substream>;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        self.turn(|muxer| muxer.poll_inbound(cx)).map_ok(|stream| self.stream(stream))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        self.turn(|muxer| muxer.poll_outbound(cx)).map_ok(|stream| self.stream(stream))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.seen.cancel();
        if let closed @ Poll::Ready(_) = self.turn(|muxer| muxer.poll_close(cx)) {
            return closed;
        }
        ready!(self.closing.get_or_insert_with(|| Box::pin(sleep(CLOSE_TIMEOUT))).poll_unpin(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "closed before everything had gone out")))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        self.turn(|muxer| muxer.poll(cx))
    }
}

/// The end of a connection, as one direction of a stream waits for it.
type Waits = Option<Pin<Box<WaitForCancellationFutureOwned>>>;

struct EndingStream<S> {
    stream: S,
    end: Arc<End>,
    /// The peer has said all.
    finished: bool,
    reading: Waits,
    writing: Waits,
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection has ended")
}

/// What comes of something that waits, unless the connection ends before.
fn unless_ended<T>(
    polled: Poll<io::Result<T>>,
    end: &End,
    waits: &mut Waits,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if polled.is_ready() {
        return polled;
    }
    ready!(waits.get_or_insert_with(|| Box::pin(end.seen.clone().cancelled_owned())).poll_unpin(cx));
    // It would be polled again after its end.
    *waits = None;
    Poll::Ready(Err(aborted()))
}

impl<S: AsyncRead + Unpin> AsyncRead for EndingStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { stream, end, finished, reading, .. } = self.get_mut();
        if *finished {
            return Poll::Ready(Ok(0));
        }
        match Pin::new(stream).poll_read(cx, buf) {
            Poll::Ready(Ok(0)) if !buf.is_empty() => {
                // Whether the peer had finished it before cannot be told.
                *finished = !end.was_seen();
                Poll::Ready(if *finished { Ok(0) } else { Err(aborted()) })
            }
            polled => unless_ended(polled, end, reading, cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EndingStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, end, writing, .. } = self.get_mut();
        let polled = Pin::new(stream).poll_write(cx, buf);
        unless_ended(polled, end, writing, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, end, writing, .. } = self.get_mut();
        let polled = Pin::new(stream).poll_flush(cx);
        unless_ended(polled, end, writing, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, end, writing, .. } = self.get_mut();
        let polled = Pin::new(stream).poll_close(cx);
        unless_ended(polled, end, writing, cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use futures_util::task::noop_waker_ref;

    use super::*;

    /// Its peer has finished it, or its connection has ended it: it does not tell.
    struct Stream(Arc<AtomicBool>);

    impl AsyncRead for Stream {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            if self.0.load(Ordering::SeqCst) { Poll::Ready(Ok(0)) } else { Poll::Pending }
        }
    }

    impl AsyncWrite for Stream {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// A connection with one stream. When it is polled, or dropped, it breaks: it ends the stream, says so to another thread, and goes on
    /// when that one is about to read.
    struct Breaks {
        ended: Arc<AtomicBool>,
        stream: Option<Stream>,
        begins: mpsc::Sender<()>,
        reads: mpsc::Receiver<()>,
    }

    impl StreamMuxer for Breaks {
        type Substream = Stream;
        type Error = io::Error;

        fn poll_inbound(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Stream>> {
            self.stream.take().map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
        }
        fn poll_outbound(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Stream>> {
            Poll::Pending
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
            self.breaks();
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    impl Breaks {
        fn breaks(&self) {
            self.ended.store(true, Ordering::SeqCst);
            if self.begins.send(()).is_ok() {
                // An error: it has read already.
                let _ = self.reads.recv();
            }
        }
    }

    impl Drop for Breaks {
        fn drop(&mut self) {
            self.breaks();
        }
    }

    fn connection() -> (Ending<Breaks>, Arc<AtomicBool>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let ended = Arc::new(AtomicBool::new(false));
        let ((begins, begun), (read, reads)) = (mpsc::channel(), mpsc::channel());
        let muxer = Breaks { ended: ended.clone(), stream: Some(Stream(ended.clone())), begins, reads };
        (Ending { muxer, end: Arc::default(), closing: None }, ended, begun, read)
    }

    fn accept(connection: &mut Ending<Breaks>) -> EndingStream<Stream> {
        let polled = Pin::new(connection).poll_inbound(&mut Context::from_waker(noop_waker_ref()));
        let Poll::Ready(Ok(stream)) = polled else { panic!("no stream") };
        stream
    }

    fn read(stream: &mut EndingStream<Stream>) -> Poll<io::Result<usize>> {
        Pin::new(stream).poll_read(&mut Context::from_waker(noop_waker_ref()), &mut [0])
    }

    /// What comes of a stream that is read as soon as its connection has ended it.
    fn read_while(breaks: impl FnOnce(Ending<Breaks>)) {
        let (mut connection, _, begun, reads) = connection();
        let mut stream = accept(&mut connection);
        assert!(read(&mut stream).is_pending());
        let reader = std::thread::spawn(move || {
            begun.recv().unwrap();
            reads.send(()).unwrap();
            read(&mut stream)
        });
        breaks(connection);
        let Poll::Ready(Err(error)) = reader.join().unwrap() else { panic!("it looks finished") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn a_stream_that_ends_with_its_connection_is_an_error_however_soon_it_is_read() {
        for _ in 0..1000 {
            read_while(|mut connection| {
                let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(noop_waker_ref()));
                assert!(matches!(polled, Poll::Ready(Err(_))));
            });
            read_while(drop);
        }
    }

    #[test]
    fn a_stream_that_was_finished_before_stays_finished() {
        let (mut connection, ended, ..) = connection();
        let mut stream = accept(&mut connection);
        ended.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            assert!(matches!(read(&mut stream), Poll::Ready(Ok(0))));
            // The second time it is read after the connection's end.
            connection.end.seen.cancel();
        }
    }
}
