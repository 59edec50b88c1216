//! HTTP/1.1 as a client speaks it: one request ([`ask`]), or a [`load`] of them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HOST, HeaderValue};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

pub mod load;

/// Longer than anything that is asked for takes, so that only what hangs meets it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a request sends.
pub type Sent = Full<Bytes>;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Status and body on one line, for a person.
    pub fn summary(&self) -> String {
        let text = self.text();
        let short: String = text.trim().chars().take(200).collect();
        format!("{} {short}", self.status.as_u16())
    }
}

/// Opens a connection.
pub async fn connect(to: SocketAddr) -> Result<SendRequest<Sent>> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("no connection to {to}"))?;
    stream.set_nodelay(true)?;
    speak_over(stream).await
}

/// Speaks HTTP over a connection that there is.
pub(crate) async fn speak_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<SendRequest<Sent>> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Whoever waits for an answer is told as well.
            tracing::debug!(%error, "a client's connection ended badly");
        }
    });
    Ok(sender)
}

/// A request without a body.
pub fn get(target: &str) -> Request<Sent> {
    request("GET", target, Bytes::new())
}

/// A request with a body.
pub fn post(target: &str, body: impl Into<Bytes>) -> Request<Sent> {
    request("POST", target, body.into())
}

/// A request with this method; its `Host` is filled in when it is sent.
///
/// # Panics
/// If method or target are none: they are written in this program.
pub fn request(method: &str, target: &str, body: Bytes) -> Request<Sent> {
    Request::builder().method(method).uri(target).body(Full::new(body)).expect("method and target are literals")
}

/// Sends one request on a connection of its own and takes the whole answer.
pub async fn ask(to: SocketAddr, request: Request<Sent>) -> Result<Answer> {
    let mut sender = connect(to).await?;
    tokio::time::timeout(PATIENCE, ask_on(&mut sender, to, request)).await.map_err(|_| anyhow!("no answer in time"))?
}

/// The same over a Unix domain socket: a node's control socket.
pub async fn ask_socket(path: &Path, mut request: Request<Sent>) -> Result<Answer> {
    let stream = UnixStream::connect(path).await.with_context(|| format!("no connection to {}", path.display()))?;
    let mut sender = speak_over(stream).await?;
    request.headers_mut().entry(HOST).or_insert(HeaderValue::from_static("node"));
    tokio::time::timeout(PATIENCE, whole_answer(&mut sender, request))
        .await
        .map_err(|_| anyhow!("no answer in time"))?
}

/// Sends one request and returns once the head of the answer is there.
pub async fn begin(to: SocketAddr, mut request: Request<Sent>) -> Result<Response<hyper::body::Incoming>> {
    let mut sender = connect(to).await?;
    name_host(&mut request, to)?;
    tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .map_err(|_| anyhow!("no answer in time"))?
        .context("no answer")
}

/// Sends one request on a kept connection and takes the whole answer.
pub async fn ask_on(sender: &mut SendRequest<Sent>, to: SocketAddr, mut request: Request<Sent>) -> Result<Answer> {
    name_host(&mut request, to)?;
    whole_answer(sender, request).await
}

async fn whole_answer(sender: &mut SendRequest<Sent>, request: Request<Sent>) -> Result<Answer> {
    let response = sender.send_request(request).await.context("no answer")?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("the answer broke off")?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

fn name_host(request: &mut Request<Sent>, to: SocketAddr) -> Result<()> {
    if !request.headers().contains_key(HOST) {
        let host = HeaderValue::try_from(to.to_string()).context("an address is a header's value")?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// Asks again and again until the answer is as wanted; how long that took.
pub async fn until(
    to: SocketAddr,
    target: &str,
    within: Duration,
    wanted: impl Fn(&Answer) -> bool,
) -> Result<(Duration, Answer)> {
    let begin = Instant::now();
    let mut last = "nothing was asked yet".to_owned();
    while begin.elapsed() < within {
        match ask(to, get(target)).await {
            Ok(answer) if wanted(&answer) => return Ok((begin.elapsed(), answer)),
            Ok(answer) => last = answer.summary(),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(anyhow!("{target} did not answer as wanted within {within:?}; last: {last}"))
}
