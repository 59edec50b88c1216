//! `/mesh/peer/{node-id}`: the way to a coordinator that nobody can dial. The entry splices a WebSocket to a stream of that
//! coordinator's tunnel, at whose end a listener of libp2p stands.
//!
//! ```text
//! peer                                entry                                coordinator
//!  │── GET /mesh/peer/{id}, Upgrade ──▶│  a place? ── OPEN(mesh peer) ─────▶│
//!  │                                   │◀───────────────────────── ACCEPT ──│
//!  │                                   │── GET, Upgrade: websocket ────────▶│  the listener's own handshake
//!  │◀─────────────────────────── 101 ──│◀──────────────────────────── 101 ──│
//!  │◀═══════ noise, yamux, … ═════════ bytes, at a pace ═══════════════════▶│
//! ```
//!
//! The entry sees ciphertext and looks at none of it. `/mesh/peer/any`, and `/` for libp2p implementations that dial no paths,
//! lead to any coordinator. It is no relay for whoever wants one: only live coordinators are reached, of them only this
//! listener, and each connection is bounded ([`places`], [`pace`]).

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_http::{Problem, ResponseBody, request_id};
use hedgerow_proto::frame::{Refusal, StreamKind};
use hedgerow_proto::id::{NodeId, RequestId};
use hedgerow_tunnel::Tunnel;
use hedgerow_tunnel::link::LinkClosed;
use hedgerow_tunnel::streams::{self, NotOpened};
use http::header::{ALLOW, CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::cidr::Cidr;
use crate::routes::{Answer, Client};
use crate::shard::Shard;

mod pace;
mod places;

use pace::splice;
pub(crate) use places::Places;
use places::{Full, Place};

/// How long it may take from the request to the coordinator's 101: two round trips, of which a slow line needs a second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the client's side may take to switch over after that.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);
/// When to come again where all places are taken: they are free when a peer has gone, which nobody can foretell.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A coordinator that is known and has no tunnel here now is mostly on its way: a tunnel is back within two seconds.
const BACK_AFTER: Duration = Duration::from_secs(2);
/// The version of the WebSocket protocol (RFC 6455 §4.1).
const WEBSOCKET_VERSION: &str = "13";
/// A nonce of 16 bytes in base64 (RFC 6455 §4.1), and a digest of 20 (§4.2.2).
const KEY_CHARS: usize = 24;
const ACCEPT_CHARS: usize = 28;
const PREFIX: &str = "/mesh/peer/";
const ANY: &str = "any";
const METHODS: &str = "GET, OPTIONS";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    One(NodeId),
}

/// Whether a request is for here: the paths of peers; and `/`, where it asks for a WebSocket.
pub(crate) fn is_meant<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    path.starts_with(PREFIX) || (path == "/" && wants_websocket(request.headers()))
}

/// Answers a request that is for here. After 101 the two ends talk to each other.
pub(crate) async fn answer(shard: &Rc<Shard>, client: &Client, request: &mut Request<Incoming>) -> Answer {
    match *request.method() {
        Method::GET => {}
        Method::OPTIONS => return Ok(options()),
        _ => {
            let detail =
                format!("{} means nothing here; a peer asks with GET and Upgrade: websocket", request.method());
            let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "Method not allowed", detail);
            return Err(problem.allow(METHODS).into());
        }
    }
    let answered = connect(shard, client, request).await;
    let counters = &shard.counters;
    match answered {
        Ok(response) => {
            counters.mesh_peers_accepted.add(1);
            Ok(response)
        }
        Err(refused) => {
            counters.mesh_peers_refused.add(1);
            debug!(%refused, "a mesh peer is not let through");
            Err(problem(&refused).into())
        }
    }
}

/// Why a peer is not let through.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// Client: no such path.
    #[error("no coordinator has this name")]
    Name,
    /// Client: no WebSocket is asked for, or not as RFC 6455 has it.
    #[error("no WebSocket: {0}")]
    NoWebSocket(&'static str),
    /// Nobody of that id is a coordinator that anybody knows.
    #[error("no coordinator of this id is known")]
    Unknown,
    /// It is known, and has no live tunnel here.
    #[error("the coordinator has no live tunnel here")]
    Away,
    /// No coordinator has a live tunnel here.
    #[error("no coordinator has a live tunnel here")]
    Nobody,
    /// A bound is reached.
    #[error(transparent)]
    Full(#[from] Full),
    /// The coordinator takes no peers, or none now.
    #[error("the coordinator refuses: {}", .0.as_str())]
    Refusal(Refusal),
    /// The coordinator went away, or broke the rules.
    #[error("the coordinator: {0}")]
    Broke(String),
    /// The coordinator is silent.
    #[error("the coordinator does not answer")]
    Silent,
}

impl From<NotOpened> for Refused {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::Refused(refusal) => Self::Refusal(refusal),
            other => Self::Broke(other.to_string()),
        }
    }
}

impl From<LinkClosed> for Refused {
    fn from(closed: LinkClosed) -> Self {
        Self::Broke(closed.to_string())
    }
}

fn problem(refused: &Refused) -> Problem {
    let new = |status, code, title, detail: &str| Problem::new(status, code, title, detail);
    match refused {
        Refused::Name => new(
            StatusCode::NOT_FOUND,
            "bad-node-id",
            "No node id",
            "a peer is at /mesh/peer/{node-id}, where the id has 64 hexadecimal digits, or at /mesh/peer/any",
        ),
        Refused::NoWebSocket(why) => {
            let detail = format!(
                "this is a libp2p peer behind a WebSocket ({why}); dial it with libp2p, at .../x-parity-wss/%2Fmesh%2Fpeer%2F..."
            );
            Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket-required", "A WebSocket is required", detail)
        }
        Refused::Unknown => new(
            StatusCode::NOT_FOUND,
            "unknown-peer",
            "Unknown peer",
            "no coordinator of this id is known here; GET /mesh/bootstrap names some that are",
        ),
        Refused::Away => new(
            StatusCode::SERVICE_UNAVAILABLE,
            "peer-away",
            "The peer is away",
            "this coordinator has no live tunnel to this entry now: try again soon, or at another of its addresses",
        )
        .retry_after(BACK_AFTER),
        Refused::Nobody => new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-coordinator",
            "No coordinator",
            "no coordinator has a live tunnel to this entry now: try again soon",
        )
        .retry_after(BACK_AFTER),
        Refused::Full(full @ Full::Source) => {
            new(StatusCode::TOO_MANY_REQUESTS, "too-many-peers", "Too many connections", &full.to_string())
                .retry_after(RETRY_AFTER)
        }
        Refused::Full(full @ (Full::Target | Full::Entry)) => {
            new(StatusCode::SERVICE_UNAVAILABLE, "peers-full", "No room", &full.to_string()).retry_after(RETRY_AFTER)
        }
        Refused::Refusal(Refusal::Draining) => new(
            StatusCode::SERVICE_UNAVAILABLE,
            "peer-away",
            "The peer is away",
            "this coordinator is leaving: dial another one",
        ),
        Refused::Refusal(_) => new(
            StatusCode::BAD_GATEWAY,
            "peer-refused",
            "The peer refused",
            "this coordinator takes no peers by way of an entry, or has no room for one now; dial another one",
        )
        .retry_after(RETRY_AFTER),
        Refused::Broke(_) => new(
            StatusCode::BAD_GATEWAY,
            "peer-broke",
            "The peer broke off",
            "the coordinator's tunnel broke, or it did not answer as a WebSocket does; try again, or dial another one",
        ),
        Refused::Silent => new(
            StatusCode::GATEWAY_TIMEOUT,
            "peer-silent",
            "The peer is silent",
            "the coordinator did not answer in time; try again, or dial another one",
        ),
    }
}

fn options() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    response
}

async fn connect(
    shard: &Rc<Shard>,
    client: &Client,
    request: &mut Request<Incoming>,
) -> Result<Response<ResponseBody>, Refused> {
    let wanted = wanted(request.uri().path()).ok_or(Refused::Name)?;
    let key = websocket_key(request)?;
    // Nodes and peers of this very machine are the operator's own: no quota by address for them.
    let source = source(shard, client, request.headers());
    let source = (!source.to_canonical().is_loopback()).then_some(source);
    let (tunnel, place) = find(shard, wanted, source.map(Cidr::source))?;
    let (_, id) = request_id(request.headers(), &mut shard.random.borrow_mut());
    // The tunnel is watched meanwhile: one that has died is silent within a second.
    let running = tunnel.in_flight();
    let shaken = tokio::select! {
        shaken = shake_hands(&tunnel, id, key, request.headers().get(HOST)) => shaken,
        () = tunnel.suspected() => Err(Refused::Silent),
        () = sleep(HANDSHAKE_TIMEOUT) => Err(Refused::Silent),
    };
    drop(running);
    let Shaken { accept, coordinator } = shaken?;
    spawn_local(pass(hyper::upgrade::on(request), coordinator, place));
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn wanted(path: &str) -> Option<Wanted> {
    match path.strip_prefix(PREFIX) {
        None | Some(ANY) => Some(Wanted::Any),
        Some(id) => id.parse().ok().map(Wanted::One),
    }
}

fn wants_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The nonce of a request that asks for a WebSocket as it should.
fn websocket_key<B>(request: &Request<B>) -> Result<HeaderValue, Refused> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err(Refused::NoWebSocket("over HTTP/1.1 only"));
    }
    if !wants_websocket(headers) {
        return Err(Refused::NoWebSocket("there is no Upgrade: websocket"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != WEBSOCKET_VERSION) {
        return Err(Refused::NoWebSocket("there is no Sec-WebSocket-Version: 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY_CHARS);
    key.cloned().ok_or(Refused::NoWebSocket("there is no Sec-WebSocket-Key of 16 bytes"))
}

/// Where a request comes from. A proxy of the operator's own says it in `X-Forwarded-For`: the last address there that is none of
/// such proxies; what stands before it anybody may have written.
fn source(shard: &Shard, client: &Client, headers: &HeaderMap) -> IpAddr {
    if !client.peer.is_trusted_proxy() {
        return client.address;
    }
    let trusted = &shard.common.settings.trusted_proxies;
    let is_trusted = |address: &IpAddr| trusted.iter().any(|range| range.contains(*address));
    let lines = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
    let said: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let mut last = said.iter().rev().map(|text| text.parse::<IpAddr>().ok());
    // What is no address is some client of that proxy all the same: it counts as the proxy's.
    last.find(|address| address.is_none_or(|address| !is_trusted(&address))).flatten().unwrap_or(client.address)
}

/// A live tunnel of whoever is wanted, and a place on it.
fn find(shard: &Shard, wanted: Wanted, source: Option<Cidr>) -> Result<(Tunnel, Place), Refused> {
    let federation = &shard.common.federation;
    let mut live = federation.live_coordinators();
    match wanted {
        Wanted::One(node) => {
            live.retain(|tunnel| tunnel.node() == node);
            if live.is_empty() {
                let known = federation.snapshot().coordinators.iter().any(|coordinator| coordinator.id == node);
                return Err(if known { Refused::Away } else { Refused::Unknown });
            }
        }
        Wanted::Any => shard.random.borrow_mut().shuffle(&mut live),
    }
    let mut full = None;
    for tunnel in live {
        match Places::take(&shard.common.mesh_peers, source, tunnel.node()) {
            Ok(place) => return Ok((tunnel, place)),
            Err(why) => full = Some(why),
        }
    }
    Err(full.map_or(Refused::Nobody, Refused::Full))
}

/// A coordinator's listener that has answered.
struct Shaken {
    accept: HeaderValue,
    coordinator: OnUpgrade,
}

async fn shake_hands(
    tunnel: &Tunnel,
    id: RequestId,
    key: HeaderValue,
    host: Option<&HeaderValue>,
) -> Result<Shaken, Refused> {
    let broke = |error: hyper::Error| Refused::Broke(error.to_string());
    let stream = streams::open(tunnel, StreamKind::MeshPeer, None, id).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    // It ends with the switch, with the stream, or when nobody waits for an answer any more.
    spawn_local(async move { drop(connection.with_upgrades().await) });
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = format!("{PREFIX}{}", tunnel.node()).parse().unwrap_or_default();
    let headers = request.headers_mut();
    // Extensions and subprotocols are left out: what is agreed upon is bytes, and nothing else.
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(WEBSOCKET_VERSION));
    headers.insert(SEC_WEBSOCKET_KEY, key);
    if let Some(host) = host {
        headers.insert(HOST, host.clone());
    }
    let mut response = sender.send_request(request).await.map_err(broke)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refused::Broke(format!("it answers a WebSocket with {}", response.status())));
    }
    let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT).filter(|accept| accept.len() == ACCEPT_CHARS).cloned();
    let accept = accept.ok_or_else(|| Refused::Broke("it answers without Sec-WebSocket-Accept".into()))?;
    Ok(Shaken { accept, coordinator: hyper::upgrade::on(&mut response) })
}

/// Passes bytes between the two ends for as long as both are there.
async fn pass(client: OnUpgrade, coordinator: OnUpgrade, mut place: Place) {
    let switched = timeout(SWITCH_TIMEOUT, async { tokio::try_join!(client, coordinator) });
    match switched.await {
        Ok(Ok((client, coordinator))) => {
            let ended = splice(TokioIo::new(client), TokioIo::new(coordinator), &mut place.bucket).await;
            debug!(target = %place.target().short(), %ended, "a mesh peer's connection ended");
        }
        Ok(Err(error)) => debug!(%error, "a mesh peer went away before the switch"),
        Err(_) => debug!("a mesh peer did not switch in time"),
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    const UPGRADE: (&str, &str) = ("upgrade", "WebSocket");

    #[test]
    fn a_page_stays_a_page_and_a_websocket_at_the_root_is_for_any_coordinator() {
        assert!(!is_meant(&asked("/", &[])));
        assert!(!is_meant(&asked("/", &[("upgrade", "h2c")])));
        assert!(is_meant(&asked("/", &[UPGRADE])));
        assert!(is_meant(&asked("/mesh/peer/any", &[])));
        assert!(!is_meant(&asked("/mesh/registry", &[UPGRADE])));
        assert_eq!(wanted("/"), Some(Wanted::Any));
        assert_eq!(wanted("/mesh/peer/any"), Some(Wanted::Any));
        let id = NodeId([7; 32]);
        assert_eq!(wanted(&format!("/mesh/peer/{id}")), Some(Wanted::One(id)));
        for bad in ["", "Any", "7", "../any", &format!("{id}/"), &format!("{id}0")] {
            assert_eq!(wanted(&format!("/mesh/peer/{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_websocket_is_told_what_is_missing() {
        let (version, key) = (("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(websocket_key(&asked("/", &[UPGRADE, version, key])).is_ok());
        for part in [
            &[version, key][..],
            &[UPGRADE, key],
            &[UPGRADE, ("sec-websocket-version", "8"), key],
            &[UPGRADE, version],
            &[UPGRADE, version, ("sec-websocket-key", "short")],
        ] {
            let refused = websocket_key(&asked("/", part)).unwrap_err();
            assert_eq!(problem(&refused).status(), StatusCode::UPGRADE_REQUIRED, "{part:?}");
        }
        let mut old = asked("/", &[UPGRADE, version, key]);
        *old.version_mut() = Version::HTTP_2;
        assert!(websocket_key(&old).is_err());
    }
}
