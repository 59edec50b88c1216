//! Which request goes where: to a service, to a coordinator's libp2p, or to what the entry answers itself.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use hedgerow_contract::{Call, endpoint};
use hedgerow_http::{
    Peer, Problem, RequestBody, ResponseBody, Scheme, X_REQUEST_ID, check_form, is_routed, request_id,
};
use hedgerow_tunnel::Transport;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use serde::Serialize;

use crate::contract;
use crate::head_guard::Framing;
use crate::mesh_peer;
use crate::shard::Shard;
use crate::views::{self, TunnelAddress};

/// What our own endpoints answer to.
const READ_ONLY: &str = "GET, HEAD, OPTIONS";

/// A client's connection, for each of its requests.
pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) scheme: Scheme,
    /// Where it comes from; a proxy may stand there.
    pub(crate) address: IpAddr,
}

/// An answer of our own, or what is wrong with the request.
pub(crate) type Answer = Result<Response<ResponseBody>, Box<Problem>>;

/// Answers one request. Never fails: errors are answers too.
pub(crate) async fn answer(
    shard: &Rc<Shard>,
    client: &Client,
    framing: Framing,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    if !is_routed(request.uri().path()) {
        name_host(&mut request);
    }
    let response = match refuse(&request, framing) {
        Some(problem) => closing(request.version(), finish(shard, &request, Err(problem.into()))),
        None if is_routed(request.uri().path()) => {
            shard.forwarder.forward(request.map(RequestBody::from), &client.peer).await
        }
        None if mesh_peer::is_meant(&request) => {
            let answer = mesh_peer::answer(shard, client, &mut request).await;
            finish(shard, &request, answer)
        }
        None => match endpoint(request.method().as_str(), request.uri().path()) {
            // What the entry says of itself is more than the contract asks for.
            None | Some(Ok(Call::Health)) => finish(shard, &request, own(shard, client, &request)),
            Some(call) => {
                let (mut parts, body) = request.into_parts();
                // One name for the coordinator's log, the answer, and the client.
                let (id, _) = request_id(&parts.headers, &mut shard.random.borrow_mut());
                parts.headers.insert(X_REQUEST_ID, id.clone());
                let here = here(shard, client, &parts.headers);
                let answer = contract::answer(shard, call, &parts.method, &here, &id, body).await;
                finish(shard, &Request::from_parts(parts, ()), answer)
            }
        },
    };
    shard.counters.answered(response.status());
    response
}

/// What HTTP/2 says in `:authority` stands in `Host`, where it is looked for.
fn name_host(request: &mut Request<Incoming>) {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority.filter(|_| !request.headers().contains_key(HOST)) {
        request.headers_mut().insert(HOST, authority);
    }
}

/// What no request may be, whomever it is for.
fn refuse(request: &Request<Incoming>, framing: Framing) -> Option<Problem> {
    if framing == Framing::Ambiguous {
        return Some(Problem::new(
            StatusCode::BAD_REQUEST,
            "ambiguous-length",
            "Two lengths",
            "the request has both Content-Length and Transfer-Encoding, so that two servers could take it for two different \
             requests; nothing was done, and the connection is closed",
        ));
    }
    if request.version() == Version::HTTP_11 && request.headers().get_all(HOST).iter().count() != 1 {
        return Some(Problem::new(
            StatusCode::BAD_REQUEST,
            "host",
            "Not one Host",
            "a request of HTTP/1.1 has exactly one Host field",
        ));
    }
    let form = check_form(request.method(), request.version(), request.uri());
    form.err().map(|error| error.problem())
}

/// The entry's own endpoints.
fn own(shard: &Shard, client: &Client, request: &Request<Incoming>) -> Answer {
    let (common, path) = (&shard.common, request.uri().path());
    let answer: fn(&Shard, &Client, &HeaderMap) -> Response<ResponseBody> = match path {
        "/" => |shard, client, headers| {
            let here = here(shard, client, headers);
            json(&views::welcome(&shard.common.federation, &here))
        },
        "/health" => |shard, _, _| json(&views::health(&shard.common.federation.snapshot())),
        "/mesh/bootstrap" => |shard, client, headers| {
            let tunnels = tunnels(shard, client, headers);
            json(&views::bootstrap(&shard.common.federation, tunnels, &mut shard.random.borrow_mut()))
        },
        "/mesh/registry" => |shard, _, _| registry(shard),
        _ => return Err(not_found(path, common.federation.snapshot().up == 0).into()),
    };
    reading(request.method(), || answer(shard, client, request.headers()))
}

/// Answers GET and HEAD, and says so to other methods.
pub(crate) fn reading(method: &Method, answer: impl FnOnce() -> Response<ResponseBody>) -> Answer {
    match *method {
        // hyper leaves the body of an answer to HEAD away.
        Method::GET | Method::HEAD => Ok(answer()),
        Method::OPTIONS => {
            let mut response = Response::new(ResponseBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(READ_ONLY));
            Ok(response)
        }
        _ => {
            let detail = format!("{method} means nothing here; this can be read with GET");
            let status = StatusCode::METHOD_NOT_ALLOWED;
            Err(Problem::new(status, "method", "Method not allowed", detail).allow(READ_ONLY).into())
        }
    }
}

fn not_found(path: &str, nobody: bool) -> Problem {
    let detail = if path.starts_with("/api/") {
        "this entry has no such endpoint, and passes none of /api/ on but /api/service/{name}/{path}".to_owned()
    } else if nobody {
        "nothing is here; services are under /service/{name}/, and no node has a tunnel to this entry".to_owned()
    } else {
        "nothing is here; services are under /service/{name}/, and GET /mesh/registry says which there are".to_owned()
    };
    Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
}

/// The URL under which the client can call again.
fn here(shard: &Shard, client: &Client, headers: &HeaderMap) -> String {
    if let Some(url) = &shard.common.settings.public_url {
        return url.to_string();
    }
    let plain = |host: &&str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).filter(plain);
    host.map_or_else(String::new, |host| format!("{}://{host}", client.scheme.as_str()))
}

/// Where nodes' tunnels come in.
fn tunnels(shard: &Shard, client: &Client, headers: &HeaderMap) -> impl Iterator<Item = TunnelAddress> {
    let (bound, settings) = (&shard.common.bound, &shard.common.settings);
    let over_quic = TunnelAddress::at(Transport::Quic, settings.tunnel_public.as_ref(), bound.tunnel.port());
    let public = settings.tunnel_tcp_public.as_ref();
    // What ends the TLS of a client in front of us would end a node's too, and cannot prove our key.
    let over_tcp = (public.is_some() || !client.peer.is_trusted_proxy())
        .then(|| TunnelAddress::at(Transport::Tcp, public, port_of(headers, client.scheme)));
    [over_quic].into_iter().chain(over_tcp)
}

/// The port at which the client says that it has reached us: a router may have given it another number than ours.
fn port_of(headers: &HeaderMap, scheme: Scheme) -> u16 {
    let authority = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    authority.and_then(|authority| authority.port_u16()).unwrap_or(match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    })
}

/// The registry, which is written once for each snapshot: it can be long, and anybody may ask.
pub(crate) fn registry(shard: &Shard) -> Response<ResponseBody> {
    let snapshot = shard.common.federation.snapshot();
    match snapshot.registry_page.get() {
        Some(page) => json_text(page.clone()),
        None => match to_json(&views::registry(&snapshot)) {
            Ok(page) => json_text(snapshot.registry_page.get_or_init(|| page).clone()),
            Err(problem) => problem.into_response(),
        },
    }
}

/// An answer of ours in JSON, that nobody keeps.
pub(crate) fn json(value: &impl Serialize) -> Response<ResponseBody> {
    to_json(value).map_or_else(|problem| problem.into_response(), json_text)
}

fn to_json(value: &impl Serialize) -> Result<Bytes, Box<Problem>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| {
        let broken = format!("the answer could not be written as JSON, which is a fault of the entry: {error}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", broken)
    })?;
    text.push(b'\n');
    Ok(text.into())
}

pub(crate) fn json_text(text: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What follows the request on its connection cannot be trusted: it ends here. Streams of HTTP/2 are apart anyway.
fn closing(version: Version, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What every answer of ours carries.
fn finish<B>(shard: &Shard, request: &Request<B>, answer: Answer) -> Response<ResponseBody> {
    let (asked, cors) = (request.headers(), &shard.common.settings.cors);
    let (id, _) = request_id(asked, &mut shard.random.borrow_mut());
    let mut response = match (answer, cors.preflight(request.method(), asked)) {
        (Ok(_), Some(preflight)) => preflight,
        (answer, _) => {
            let named =
                |problem: Box<Problem>| problem.request_id(String::from_utf8_lossy(id.as_bytes())).into_response();
            let mut response = answer.unwrap_or_else(named);
            cors.apply(asked.get(ORIGIN), response.headers_mut());
            response
        }
    };
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}
