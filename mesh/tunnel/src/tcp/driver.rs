//! The task that drives one connection: its frames, its PINGs, its silence, and its end.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use h2::server::SendResponse;
use h2::{Ping, PingPong, RecvStream, SendStream, client, server};
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::link::{Shared, broken};
use super::stream::{H2Stream, Incoming};
use super::words::{self, WORDS_BYTES_MAX};
use crate::link::{BoxFuture, LinkClosed};
use crate::tuning;

/// HTTP/2, in either role.
pub(super) enum Engine<S> {
    Client(client::Connection<S, Bytes>),
    Server(server::Connection<S, Bytes>),
}

/// What has come of driving it.
enum Turn {
    Stream(RecvStream, SendResponse<Bytes>),
    End(Result<(), h2::Error>),
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Engine<S> {
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        Poll::Ready(match self {
            Self::Client(connection) => Turn::End(ready!(connection.poll_unpin(cx))),
            Self::Server(connection) => match ready!(connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => Turn::Stream(request.into_body(), respond),
                Some(Err(error)) => Turn::End(Err(error)),
                None => Turn::End(Ok(())),
            },
        })
    }

    async fn turn(&mut self) -> Turn {
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    fn ping_pong(&mut self) -> Option<PingPong> {
        match self {
            Self::Client(connection) => connection.ping_pong(),
            Self::Server(connection) => connection.ping_pong(),
        }
    }
}

/// Drives one connection. When it is dropped the connection is gone.
pub(super) struct Driver<S> {
    engine: Engine<S>,
    shared: Arc<Shared>,
    beat: Beat,
    /// Where the streams go that the other end opens.
    streams: Option<mpsc::Sender<H2Stream>>,
    last_words: Option<SendStream<Bytes>>,
    /// The other end's last words.
    hearing: BoxFuture<'static, LinkClosed>,
    closing: Option<watch::Receiver<Option<LinkClosed>>>,
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.shared.close(LinkClosed { code: None, reason: "the connection was let go of".into() });
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Driver<S> {
    /// `closing` becomes something when this and other connections are to close.
    pub(super) fn new(
        mut engine: Engine<S>,
        shared: Arc<Shared>,
        closing: Option<watch::Receiver<Option<LinkClosed>>>,
    ) -> Self {
        let beat = Beat { ping_pong: engine.ping_pong(), asked: None, ask_at: Instant::now() };
        let hearing = Box::pin(std::future::pending());
        Self { engine, shared, beat, streams: None, last_words: None, hearing, closing }
    }

    /// Where the streams come out that the other end opens: at most so many wait.
    pub(super) fn streams(&mut self, max: usize) -> mpsc::Receiver<H2Stream> {
        let (give, take) = mpsc::channel(max);
        self.streams = Some(give);
        take
    }

    /// The first stream, on which either end says why it closes the connection.
    pub(super) fn last_words_go_by(&mut self, send: SendStream<Bytes>, incoming: Incoming) {
        self.last_words = Some(send);
        self.hearing = Box::pin(hear(incoming));
    }

    /// Drives the connection to its end.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                turn = self.engine.turn() => match turn {
                    Turn::Stream(body, respond) => self.take_in(body, respond),
                    Turn::End(outcome) => return self.ended(outcome),
                },
                said = &mut self.hearing => return shared.close(said),
                closed = shared.closed() => return self.close(&closed).await,
                closed = asked_to_close(&mut self.closing) => shared.close(closed),
                due = self.beat.next(&shared) => if due.is_err() {
                    return shared.close(LinkClosed { code: None, reason: "nothing came from the other end".into() });
                },
            }
        }
    }

    fn take_in(&mut self, body: RecvStream, mut respond: SendResponse<Bytes>) {
        let send = match respond.send_response(Response::new(()), false) {
            Ok(send) => send,
            // It was reset in the meantime.
            Err(error) => return debug!(%error, "a stream is gone before it was taken"),
        };
        let incoming = Incoming::Body(body);
        if self.last_words.is_none() {
            return self.last_words_go_by(send, incoming);
        }
        let Some(streams) = &self.streams else { return };
        let stream = H2Stream::new(send, incoming, self.shared.clone(), None);
        if streams.try_send(stream).is_err() {
            debug!("a stream more than may wait: it is reset");
        }
    }

    /// The connection is gone; its last words may have come just before.
    fn ended(mut self, outcome: Result<(), h2::Error>) {
        let said = (&mut self.hearing).now_or_never();
        self.shared.close(said.unwrap_or_else(|| match outcome {
            Ok(()) => LinkClosed { code: None, reason: "the other end has gone without a word".into() },
            Err(error) => broken(error),
        }));
    }

    /// Says why, and waits for the other end to hang up: a socket that is closed with something unread in it takes back what it had
    /// sent.
    async fn close(mut self, closed: &LinkClosed) {
        if let (Some(words), Some(send)) = (words::encode(closed), &mut self.last_words) {
            // An error says that the other end has given the stream up, and will not hear it.
            let _ = send.send_data(words.into(), true);
        }
        let gone = async { while !matches!(self.engine.turn().await, Turn::End(_)) {} };
        // It is closed either way.
        let _ = timeout(tuning::TCP_LAST_WORDS_TIMEOUT, gone).await;
    }
}

async fn asked_to_close(closing: &mut Option<watch::Receiver<Option<LinkClosed>>>) -> LinkClosed {
    if let Some(receiver) = closing
        && let Ok(closed) = receiver.wait_for(Option::is_some).await.map(|closed| closed.clone())
        && let Some(closed) = closed
    {
        return closed;
    }
    // Nobody can ask any more.
    std::future::pending().await
}

/// Reads to the end of the first stream. Never ready where it breaks: the connection's end will tell.
async fn hear(mut incoming: Incoming) -> LinkClosed {
    let mut said = BytesMut::new();
    while let Ok(Some(bytes)) = poll_fn(|cx| incoming.poll_bytes(cx)).await {
        incoming.taken(bytes.len());
        let room = WORDS_BYTES_MAX - said.len();
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    match words::decode(&said) {
        Some(closed) => closed,
        None => std::future::pending().await,
    }
}

/// PINGs and their answers.
struct Beat {
    ping_pong: Option<PingPong>,
    asked: Option<Instant>,
    ask_at: Instant,
}

/// Nothing has come for too long.
struct Silent;

impl Beat {
    /// Waits for the next thing to do, and does it. Cancel-safe.
    async fn next(&mut self, shared: &Shared) -> Result<(), Silent> {
        let silent_at = shared.arrivals.last() + tuning::IDLE_TIMEOUT;
        let Some(ping_pong) = &mut self.ping_pong else { return std::future::pending().await };
        let due = if self.asked.is_some() { silent_at } else { silent_at.min(self.ask_at) };
        tokio::select! {
            answered = poll_fn(|cx| ping_pong.poll_pong(cx)), if self.asked.is_some() => {
                if let (Ok(_), Some(asked)) = (answered, self.asked.take()) {
                    shared.measured(asked.elapsed());
                }
                self.ask_at = Instant::now() + tuning::TCP_PING_INTERVAL;
            }
            () = sleep_until(due) => {
                if Instant::now() >= shared.arrivals.last() + tuning::IDLE_TIMEOUT {
                    return Err(Silent);
                }
                if self.asked.is_none() && Instant::now() >= self.ask_at {
                    // Refused only while another one is on the way, or at the connection's end.
                    self.asked = ping_pong.send_ping(Ping::opaque()).is_ok().then(Instant::now);
                    self.ask_at = Instant::now() + tuning::TCP_PING_INTERVAL;
                }
            }
        }
        Ok(())
    }
}
