//! One client's connection: TLS, the version of HTTP, and the limits of each.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hedgerow_http::{Peer, Scheme};
use hedgerow_tunnel::tcp::asks_for_tunnel;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};
use tracing::debug;

use crate::front_door::FrontDoor;
use crate::head_guard::HeadGuard;
use crate::metrics::Counters;
use crate::routes::{self, Client};
use crate::shard::Shard;
use crate::{admin, settings::Settings};

/// A TLS handshake takes two round trips; whoever needs longer is not going to finish.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that wait in one connection for a reader that is slow. It is also the most that hyper reads ahead.
const BUFFER_BYTES: usize = 128 * 1024;
/// Streams of one HTTP/2 connection at once: browsers ask for about a hundred.
const H2_STREAMS_MAX: u32 = 128;
/// Bytes of one HTTP/2 request's body, and of all those of a connection, that may be on the way unread.
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Streams that a client may open and reset faster than they are handled (CVE-2023-44487), and cause us to reset
/// (CVE-2025-8671), before its connection is closed.
const H2_RESETS_MAX: usize = 64;
/// An HTTP/2 client that answers no ping for this long is gone.
const H2_PING_INTERVAL: Duration = Duration::from_secs(20);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How an HTTP/2 connection begins in the clear (RFC 9113 §3.4). No HTTP/1 method begins like it.
const H2_PREFACE: &[u8] = b"PRI ";
/// How often the first bytes are looked at again, while they are fewer than tell.
const PREFACE_PAUSE: Duration = Duration::from_millis(20);

/// How a TLS handshake begins (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

enum Speaks {
    Http1,
    Http2,
    Tls,
}

/// Serves a client until either side is done, or the entry drains and the running requests have ended.
pub(crate) async fn public(shard: Rc<Shard>, stream: TcpStream, from: SocketAddr, door: Rc<FrontDoor>) {
    let scheme = if door.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let address = from.ip();
    let trusted = shard.common.settings.trusted_proxies.iter().any(|range| range.contains(address));
    let peer = if trusted { Peer::trusted_proxy(address, scheme) } else { Peer::client(address, scheme) };
    let client = Rc::new(Client { peer, scheme, address });
    let outcome = match &door.tls {
        None => match timeout(shard.common.settings.header_timeout, speaks(&stream)).await {
            Ok(Ok(Some(Speaks::Http2))) => http2(&shard, client, shard.counted(stream)).await,
            Ok(Ok(Some(Speaks::Http1))) => http1(&shard, client, shard.counted(stream)).await,
            // In the clear nothing but a tunnel begins with TLS.
            Ok(Ok(Some(Speaks::Tls))) => tls(&shard, stream, from, &door).await.map(drop),
            Ok(Ok(None)) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
        },
        Some(_) => match tls(&shard, stream, from, &door).await {
            Ok(Some(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                http2(&shard, client, stream).await
            }
            // A client without ALPN means HTTP/1.1.
            Ok(Some(stream)) => http1(&shard, client, stream).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        },
    };
    if let Err(error) = outcome {
        debug!(client = %from, %error, "a client's connection ended early");
    }
}

/// Does TLS with a client. None: it is a node that wants a tunnel, which has gone on to the gatehouse, or nobody whom we can serve.
async fn tls(
    shard: &Shard,
    stream: TcpStream,
    from: SocketAddr,
    door: &FrontDoor,
) -> Result<Option<TlsStream<Counted>>, AnyError> {
    let deadline = Instant::now() + TLS_TIMEOUT;
    let hello = timeout_at(deadline, LazyConfigAcceptor::new(Default::default(), shard.counted(stream))).await;
    let outcome = match (hello, &door.tls) {
        (Ok(Ok(start)), _) if asks_for_tunnel(&start.client_hello()) => {
            let StartHandshake { accepted, io, .. } = start;
            door.take_in(StartHandshake::from_parts(accepted, io.stream), from.ip());
            return Ok(None);
        }
        (Ok(Ok(start)), Some(config)) => timeout_at(deadline, start.into_stream(config.clone())).await,
        (Ok(Ok(_)), None) => return Err("https to a port that serves in the clear".into()),
        (Ok(Err(error)), _) => Ok(Err(error)),
        (Err(late), _) => Err(late),
    };
    match outcome {
        Ok(Ok(stream)) => Ok(Some(stream)),
        Ok(Err(error)) => {
            shard.counters.tls_failed.add(1);
            Err(error.into())
        }
        Err(_) => {
            shard.counters.tls_failed.add(1);
            Ok(None)
        }
    }
}

/// Serves a client whose bytes do not come from a socket: HTTP/1.1 in the clear.
pub(crate) async fn embedded<S>(shard: Rc<Shard>, stream: S, from: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (address, scheme) = (from.ip(), Scheme::Http);
    let client = Client { peer: Peer::client(address, scheme), scheme, address };
    if let Err(error) = http1(&shard, Rc::new(client), Counted::new(stream, shard.counters.clone())).await {
        debug!(client = %from, %error, "a client's connection ended early");
    }
}

/// Serves the operator's listener.
pub(crate) async fn operator(shard: Rc<Shard>, stream: TcpStream) {
    let service = service_fn(|request| {
        let response = admin::answer(&shard, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let settings = &shard.common.settings;
    let connection = http1_builder(settings).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "a connection to the admin listener ended early");
    }
}

type AnyError = Box<dyn std::error::Error>;

/// Looks at a connection's first bytes without taking them. None: it ended before them.
async fn speaks(stream: &TcpStream) -> io::Result<Option<Speaks>> {
    let mut first = [0; H2_PREFACE.len()];
    loop {
        let length = stream.peek(&mut first).await?;
        return Ok(Some(match &first[..length] {
            [] => return Ok(None),
            [TLS_HANDSHAKE, ..] => Speaks::Tls,
            bytes if bytes == H2_PREFACE => Speaks::Http2,
            bytes if H2_PREFACE.starts_with(bytes) => {
                // The socket stays readable, so waiting for it would spin.
                sleep(PREFACE_PAUSE).await;
                continue;
            }
            _ => Speaks::Http1,
        }));
    }
}

fn http1_builder(settings: &Settings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_header_size(settings.header_bytes_max)
        .max_buf_size(BUFFER_BYTES.max(settings.header_bytes_max))
        // A client that has closed its side is gone: its request is cancelled.
        .half_close(false);
    builder
}

async fn http1<S>(shard: &Rc<Shard>, client: Rc<Client>, io: S) -> Result<(), AnyError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings = &shard.common.settings;
    let (io, heads) = HeadGuard::new(io, settings.header_bytes_max);
    let service = service_fn(|request| {
        let (shard, client, framing) = (shard.clone(), client.clone(), heads.next());
        async move { Ok::<_, Infallible>(routes::answer(&shard, &client, framing, request).await) }
    });
    let connection = http1_builder(settings).serve_connection(TokioIo::new(io), service).with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        outcome = connection.as_mut() => return Ok(outcome?),
        () = shard.common.shutdown.draining() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

async fn http2<S>(shard: &Rc<Shard>, client: Rc<Client>, io: S) -> Result<(), AnyError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request| {
        let (shard, client) = (shard.clone(), client.clone());
        async move {
            let framing = crate::head_guard::Framing::Clear;
            Ok::<_, Infallible>(routes::answer(&shard, &client, framing, request).await)
        }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES)
        .max_header_list_size(u32::try_from(shard.common.settings.header_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_RESETS_MAX)
        .max_local_error_reset_streams(H2_RESETS_MAX)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        outcome = connection.as_mut() => return Ok(outcome?),
        () = shard.common.shutdown.draining() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// Runs the streams of an HTTP/2 connection on this thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// A client's socket, with its bytes counted.
pub(crate) struct Counted<S = TcpStream> {
    stream: S,
    counters: Arc<Counters>,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, counters: Arc<Counters>) -> Self {
        Self { stream, counters }
    }

    fn sent(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.counters.bytes_sent.add(*bytes as u64);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.counters.bytes_received.add((buf.filled().len() - before) as u64);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.sent(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
