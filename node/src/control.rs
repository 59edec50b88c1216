//! The control socket: HTTP over a Unix domain socket in the data directory, open to the node's own user alone. `status` and
//! `leave` of the same binary speak to it, and so may any script: `curl --unix-socket DIR/control.sock http://node/status`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | a [`Status`] |
//! | `POST /leave` | lines of [`LeaveProgress`], until the process ends |

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use hedgerow_process::exit::Failure;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tracing::debug;

use crate::status::{LeaveProgress, Status};

/// The socket's name in the data directory.
pub const SOCKET: &str = "control.sock";
/// A running node answers `status` from memory; one that does not within this is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A node with 32 services and a few entries says less than this.
const STATUS_BYTES_MAX: usize = 1024 * 1024;

/// What the socket can ask of the node.
pub trait Node: Send + Sync + 'static {
    /// What it is doing.
    fn status(&self) -> Status;
    /// Asks it to leave; the progress until its end.
    fn leave(&self) -> BoxStream<'static, LeaveProgress>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the control socket {}: {error}", path.display())]
pub struct ControlError {
    /// Where it should be.
    pub path: PathBuf,
    /// What the system says.
    pub error: io::Error,
}

/// The bound socket. Dropped, it removes its file.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Binds the socket. The caller holds the lock of the data directory, so a socket that is there already is left over from a
    /// process that was killed.
    pub fn bind(data_dir: &Path) -> Result<Self, ControlError> {
        let path = data_dir.join(SOCKET);
        let bind = || {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            // The directory is closed to others already; this says it again for whoever opens the directory up.
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            Ok(listener)
        };
        bind().map(|listener| Self { listener, path: path.clone() }).map_err(|error| ControlError { path, error })
    }

    /// Answers until dropped.
    pub async fn serve(&self, node: Arc<dyn Node>) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "the control socket takes no connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let node = node.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let response = answer(&*node, &request);
                    async { Ok::<_, Infallible>(response) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(ANSWER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    debug!(%error, "a connection of the control socket broke");
                }
            });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // If it cannot be removed, the next process does.
        let _ = std::fs::remove_file(&self.path);
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn answer(node: &dyn Node, request: &Request<Incoming>) -> Response<Body> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => with_type("application/json", Full::new(line(&node.status())).boxed_unsync()),
        (&Method::POST, "/leave") => {
            let lines = node.leave().map(|progress| Ok(Frame::data(line(&progress))));
            with_type("application/x-ndjson", StreamBody::new(lines).boxed_unsync())
        }
        (_, "/status" | "/leave") => problem(StatusCode::METHOD_NOT_ALLOWED, "GET /status or POST /leave"),
        _ => problem(StatusCode::NOT_FOUND, "only /status and /leave are here"),
    }
}

fn with_type(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    let body = serde_json::json!({ "status": status.as_u16(), "title": status.canonical_reason(), "detail": detail });
    let mut response = with_type("application/problem+json", Full::new(line(&body)).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn line<T: serde::Serialize>(value: &T) -> Bytes {
    // Our own types of numbers, texts and lists: there is nothing to fail.
    let mut text = serde_json::to_vec(value).expect("plain data always serialises");
    text.push(b'\n');
    text.into()
}

/// Why a running node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens: no node runs with this data directory.
    #[error("no node is running with the data directory {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error("the node with the data directory {} belongs to another user", .0.display())]
    NotYours(PathBuf),
    /// It runs and does not answer as it should.
    #[error("the node with the data directory {} does not answer: {reason}", path.display())]
    Broken {
        /// The data directory.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let failure = Self::runtime(&error);
        match error {
            AskError::NotRunning(_) => {
                failure.advice("start one with `hedgerow-node join`, or name the right directory with --data-dir")
            }
            AskError::NotYours(_) => {
                failure.advice("run this command as the user that runs the node, for example with sudo -u")
            }
            AskError::Broken { .. } => {
                failure.advice("look at the log of the node; if it is stuck, stop it with a signal and start it again")
            }
        }
    }
}

/// Asks a running node what it is doing.
pub async fn ask_status(data_dir: &Path) -> Result<Status, AskError> {
    let broken = |reason: String| AskError::Broken { path: data_dir.to_owned(), reason };
    let body = timeout(ANSWER_TIMEOUT, async {
        let body = request(data_dir, Method::GET, "/status").await?;
        Limited::new(body, STATUS_BYTES_MAX).collect().await.map_err(|error| broken(error.to_string()))
    })
    .await
    .map_err(|_| broken(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))??;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| broken(error.to_string()))
}

/// Asks a running node to leave and waits until its process has let go of the socket; `on_progress` hears of each step.
pub async fn ask_leave(data_dir: &Path, mut on_progress: impl FnMut(LeaveProgress)) -> Result<(), AskError> {
    let broken = |reason: String| AskError::Broken { path: data_dir.to_owned(), reason };
    let mut body = timeout(ANSWER_TIMEOUT, request(data_dir, Method::POST, "/leave"))
        .await
        .map_err(|_| broken(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))??;
    let (mut text, mut ended) = (Vec::new(), false);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { break };
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let progress = serde_json::from_slice(&line).map_err(|error| broken(error.to_string()))?;
            ended |= matches!(progress, LeaveProgress::Left | LeaveProgress::Cut { .. });
            on_progress(progress);
        }
    }
    if ended { Ok(()) } else { Err(broken("it ended before it had left".into())) }
}

async fn request(data_dir: &Path, method: Method, path: &'static str) -> Result<Incoming, AskError> {
    let broken = |reason: String| AskError::Broken { path: data_dir.to_owned(), reason };
    let stream = UnixStream::connect(data_dir.join(SOCKET)).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning(data_dir.to_owned()),
        io::ErrorKind::PermissionDenied => AskError::NotYours(data_dir.to_owned()),
        _ => broken(error.to_string()),
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "the connection to the node ended");
        }
    });
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("node"));
    let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        status => Err(broken(format!("it answered {status}; is it of another version?"))),
    }
}
