//! The connection as the tunnel sees it. Who drives it is a task of its own ([`super::driver`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::server;
use hedgerow_proto::frame::close;
use hedgerow_proto::id::NodeId;
use http::{Method, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};

use super::driver::{Driver, Engine};
use super::heard::Arrivals;
use super::stream::{H2Stream, Incoming};
use crate::accept::TunnelError;
use crate::link::{BoxFuture, BoxStream, Link, LinkClosed, Transport};
use crate::tuning;

/// Bytes of a head at most: ours have no field.
const HEAD_BYTES_MAX: u32 = 4096;

/// A TLS connection over TCP whose peer has proven its key.
pub struct TcpLink {
    peer: NodeId,
    remote: SocketAddr,
    shared: Arc<Shared>,
    end: End,
}

enum End {
    /// The HTTP/2 client. `room`: for so many more streams at once.
    Opens { requests: SendRequest<Bytes>, room: Arc<Semaphore> },
    /// The HTTP/2 server.
    Accepts(Mutex<mpsc::Receiver<H2Stream>>),
}

/// What the link, its streams and its driver share.
pub(super) struct Shared {
    closed: watch::Sender<Option<LinkClosed>>,
    pub(super) arrivals: Arc<Arrivals>,
    rtt_us: AtomicU64,
}

impl Shared {
    fn new(arrivals: Arc<Arrivals>) -> Arc<Self> {
        Arc::new(Self { closed: watch::Sender::new(None), arrivals, rtt_us: AtomicU64::new(0) })
    }

    /// Closes the connection; the first reason stays.
    pub(super) fn close(&self, closed: LinkClosed) {
        self.closed.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(closed);
            first
        });
    }

    pub(super) fn why_closed(&self) -> Option<LinkClosed> {
        self.closed.borrow().clone()
    }

    /// Ready when it is closed; says why.
    pub(super) async fn closed(&self) -> LinkClosed {
        let mut closed = self.closed.subscribe();
        let reason = closed.wait_for(Option::is_some).await.ok().and_then(|closed| closed.clone());
        // The sender is ours: it cannot have gone.
        reason.unwrap_or_else(|| LinkClosed { code: None, reason: "the connection is gone".into() })
    }

    /// A PING was answered after so long: the mean moves by an eighth (RFC 6298 §2).
    pub(super) fn measured(&self, rtt: Duration) {
        let new = rtt.as_micros() as u64;
        let old = self.rtt_us.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { (old * 7 + new) / 8 };
        self.rtt_us.store(mean, Ordering::Relaxed);
    }
}

impl TcpLink {
    /// The end that opens streams.
    pub(super) async fn opening<S>(
        io: S,
        peer: NodeId,
        remote: SocketAddr,
        arrivals: Arc<Arrivals>,
        closing: watch::Receiver<Option<LinkClosed>>,
    ) -> Result<Self, TunnelError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let streams_max = tuning::STREAMS_PER_CONNECTION_MAX as usize;
        let mut builder = client::Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(streams_max)
            .initial_window_size(tuning::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(tuning::CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buffer_size(tuning::TCP_STREAM_SEND_BYTES)
            .max_concurrent_reset_streams(tuning::TCP_RESETS_REMEMBERED_MAX)
            .reset_stream_duration(tuning::TCP_RESET_MEMORY)
            .max_local_error_reset_streams(Some(tuning::TCP_STRAY_FRAMES_MAX));
        let (mut requests, connection) = builder.handshake(io).await.map_err(broken)?;
        let (answer, send) = requests.send_request(request(), false).map_err(broken)?;
        let shared = Shared::new(arrivals);
        let mut driver = Driver::new(Engine::Client(connection), shared.clone(), Some(closing));
        driver.last_words_go_by(send, Incoming::Head(answer));
        tokio::spawn(driver.run());
        // One place is taken: by the stream of the last words.
        let room = Arc::new(Semaphore::new(streams_max - 1));
        Ok(Self { peer, remote, shared, end: End::Opens { requests, room } })
    }

    /// The end that takes them.
    pub(super) async fn accepting<S>(
        io: S,
        peer: NodeId,
        remote: SocketAddr,
        arrivals: Arc<Arrivals>,
    ) -> Result<Self, TunnelError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let streams_max = tuning::STREAMS_PER_CONNECTION_MAX as usize;
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(tuning::STREAMS_PER_CONNECTION_MAX)
            .initial_window_size(tuning::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(tuning::CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buffer_size(tuning::TCP_STREAM_SEND_BYTES)
            .max_concurrent_reset_streams(tuning::TCP_RESETS_REMEMBERED_MAX)
            .reset_stream_duration(tuning::TCP_RESET_MEMORY)
            // An entry may give up what it has just asked for as often as its clients do.
            .max_pending_accept_reset_streams(streams_max)
            .max_local_error_reset_streams(Some(tuning::TCP_STRAY_FRAMES_MAX));
        let connection = builder.handshake(io).await.map_err(broken)?;
        let shared = Shared::new(arrivals);
        let mut driver = Driver::new(Engine::Server(connection), shared.clone(), None);
        let streams = driver.streams(streams_max);
        tokio::spawn(driver.run());
        Ok(Self { peer, remote, shared, end: End::Accepts(Mutex::new(streams)) })
    }
}

/// What opens a stream.
fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("https://hedgerow/");
    request
}

/// HTTP/2 did not come up, or is gone.
pub(super) fn broken(error: h2::Error) -> LinkClosed {
    LinkClosed { code: None, reason: format!("the connection broke: {error}") }
}

impl Link for TcpLink {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let End::Opens { requests, room } = &self.end else {
                // As over QUIC: it waits for a permission that never comes.
                return Err(self.shared.closed().await);
            };
            let opened = async {
                // The semaphore is never closed, and the permit only counts.
                let place = room.clone().acquire_owned().await.ok();
                let mut requests = requests.clone().ready().await?;
                let (answer, send) = requests.send_request(request(), false)?;
                Ok::<_, h2::Error>(H2Stream::new(send, Incoming::Head(answer), self.shared.clone(), place))
            };
            tokio::select! {
                biased;
                closed = self.shared.closed() => Err(closed),
                opened = opened => match opened {
                    Ok(stream) => Ok(Box::new(stream) as BoxStream),
                    Err(error) => {
                        // It opens no more, and another connection does.
                        self.shared.close(broken(error));
                        Err(self.shared.closed().await)
                    }
                },
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async move {
            let End::Accepts(streams) = &self.end else { return Err(self.shared.closed().await) };
            let mut streams = streams.lock().await;
            tokio::select! {
                biased;
                closed = self.shared.closed() => Err(closed),
                stream = streams.recv() => match stream {
                    Some(stream) => Ok(Box::new(stream) as BoxStream),
                    None => Err(self.shared.closed().await),
                },
            }
        })
    }

    fn close(&self, code: u32, reason: &str) {
        self.shared.close(LinkClosed { code: Some(code), reason: reason.to_owned() });
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(self.shared.closed())
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.borrow().is_some()
    }

    fn peer(&self) -> NodeId {
        self.peer
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(self.remote)
    }

    fn received(&self) -> u64 {
        self.shared.arrivals.count()
    }

    fn rtt(&self) -> Duration {
        Duration::from_micros(self.shared.rtt_us.load(Ordering::Relaxed))
    }

    fn last_words_timeout(&self) -> Duration {
        // Over TCP they are the end of a stream like the others.
        tuning::TCP_LAST_WORDS_TIMEOUT
    }

    fn transport(&self) -> Transport {
        Transport::Tcp
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.close(close::GOING, "dropped");
    }
}
