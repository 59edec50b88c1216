//! What is changed in heads on their way: what is between two hops stays there, what a client claims about its way is
//! not believed, and what a volunteer's service says about the whole origin is not passed on.

use hedgerow_proto::id::RequestId;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRANSFER_ENCODING, UPGRADE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderValue, Method, Uri};

use crate::config::Peer;
use crate::texts::Texts;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// The header in which a request's id travels both ways.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_SERVED_BY: HeaderName = HeaderName::from_static("x-hedgerow-served-by");
pub(crate) const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-hedgerow-attempts");

/// Headers that are between two hops whether or not `Connection` names them (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// What speaks for the whole origin, which all services share: a volunteer must not send its clients elsewhere
/// (`Alt-Svc`), throw away their data, or have them report.
const ORIGIN_WIDE: [HeaderName; 8] = [
    HeaderName::from_static("alt-svc"),
    HeaderName::from_static("clear-site-data"),
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("public-key-pins"),
];

/// What a page of a service may do: run, ask, open windows; but as an origin of its own, so that it reaches neither
/// the other services' cookies and storage nor the entry's endpoints in its reader's name.
const SANDBOX: HeaderValue = HeaderValue::from_static(
    "sandbox allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-scripts",
);

/// Whether a `Connection` header names this option.
pub(crate) fn connection_names(headers: &HeaderMap, option: &str) -> bool {
    options(headers, &CONNECTION).any(|named| named.eq_ignore_ascii_case(option))
}

fn options<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|option| !option.is_empty())
}

/// Takes out what is between two hops: the fixed ones, and whatever `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let standard = ["close", "keep-alive", "upgrade", "te"];
        let named: Vec<HeaderName> = options(headers, &CONNECTION)
            .filter(|option| !standard.iter().any(|known| option.eq_ignore_ascii_case(known)))
            .filter_map(|option| option.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The protocol that an HTTP/1.1 request asks to change to.
pub(crate) fn upgrade_asked(parts: &Parts) -> Option<HeaderValue> {
    let asked = parts.version == http::Version::HTTP_11 && connection_names(&parts.headers, "upgrade");
    asked.then(|| parts.headers.get(UPGRADE).cloned()).flatten()
}

/// Whether a request brings a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brings {
    Nothing,
    Body,
}

/// The head as the service shall see it, but for `Host`, which depends on the node. `uri` is the target for the service,
/// `prefix` what was taken off the path.
pub(crate) fn to_service(parts: &mut Parts, uri: Uri, prefix: &str, peer: &Peer, brings: Brings, texts: &mut Texts) {
    let asked_host = asked_host(parts);
    let trailers = options(&parts.headers, &TE).any(|option| option.eq_ignore_ascii_case("trailers"));
    let headers = &mut parts.headers;
    remove_hop_by_hop(headers);
    headers.remove(TE);
    if trailers {
        // It promises that the client takes trailers, and this proxy passes them on.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    // Answered by the server here, as soon as the body is wanted.
    headers.remove(EXPECT);
    forwarded(headers, asked_host.as_ref(), prefix, peer, texts);
    headers.remove(HOST);
    if !headers.contains_key(CONTENT_LENGTH) {
        match brings {
            // For every method: hyper's client would leave the body of a GET out.
            Brings::Body => {
                headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            // HTTP/2 says "no body" without a length; many HTTP/1.1 services want to read it (RFC 9110 §8.6).
            Brings::Nothing if wants_length(&parts.method) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Brings::Nothing => {}
        }
    }
    parts.uri = uri;
    parts.version = http::Version::HTTP_11;
    parts.extensions = http::Extensions::new();
}

fn wants_length(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

fn asked_host(parts: &Parts) -> Option<HeaderValue> {
    match parts.headers.get(HOST) {
        Some(host) => Some(host.clone()),
        None => parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()),
    }
}

/// `Forwarded` (RFC 7239) and its older kin. Only a trusted proxy's are continued; all others' are thrown away.
fn forwarded(headers: &mut HeaderMap, host: Option<&HeaderValue>, prefix: &str, peer: &Peer, texts: &mut Texts) {
    if !peer.trusted {
        let claimed = |name: &&HeaderName| name.as_str().starts_with("x-forwarded-");
        let claims: Vec<HeaderName> = headers.keys().filter(claimed).cloned().collect();
        for name in claims {
            headers.remove(name);
        }
        headers.remove(FORWARDED);
        headers.remove(X_REAL_IP);
    }
    continued(headers, X_FORWARDED_FOR, peer.address.clone());
    if let Some(element) = forwarded_element(host, peer, texts) {
        continued(headers, FORWARDED, element);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(peer.scheme.as_str()));
    }
    if let Some(host) = host
        && !headers.contains_key(X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
    let before = headers.get(X_FORWARDED_PREFIX).and_then(|before| before.to_str().ok());
    let before = before.map_or("", |before| before.trim_end_matches('/'));
    if let Some(whole) = texts.value(&[before, prefix]) {
        headers.insert(X_FORWARDED_PREFIX, whole);
    }
}

fn continued(headers: &mut HeaderMap, name: HeaderName, element: HeaderValue) {
    let before: Vec<&[u8]> = headers.get_all(&name).into_iter().map(HeaderValue::as_bytes).collect();
    let value = if before.is_empty() {
        element
    } else {
        let joined = [before.join(&b", "[..]), element.as_bytes().to_vec()].join(&b", "[..]);
        HeaderValue::from_bytes(&joined).unwrap_or(element)
    };
    headers.insert(name, value);
}

fn forwarded_element(host: Option<&HeaderValue>, peer: &Peer, texts: &mut Texts) -> Option<HeaderValue> {
    let (node, proto) = (peer.node.as_str(), peer.scheme.as_str());
    // What cannot be a host is left out: it could end the quoted string.
    let plain = |host: &&str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    match host.and_then(|host| host.to_str().ok()).filter(plain) {
        Some(host) => texts.value(&["for=", node, ";host=\"", host, "\";proto=", proto]),
        None => texts.value(&["for=", node, ";proto=", proto]),
    }
}

/// The request's id: the client's own where it is fit for logs and headers, otherwise a fresh one. As text for
/// headers, and as what goes down the tunnel: the client's where it is 128 bits in hexadecimal (a UUID or a trace id).
pub fn request_id(headers: &HeaderMap, random: &mut fastrand::Rng) -> (HeaderValue, RequestId) {
    request_id_in(headers, random, &mut Texts::with_capacity(32))
}

/// The same, with the text in a buffer that there is already.
pub(crate) fn request_id_in(
    headers: &HeaderMap,
    random: &mut fastrand::Rng,
    texts: &mut Texts,
) -> (HeaderValue, RequestId) {
    const BYTES_MAX: usize = 128;
    let fit = |b: u8| b.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&b);
    if let Some(id) = headers.get(X_REQUEST_ID)
        && (1..=BYTES_MAX).contains(&id.len())
        && id.as_bytes().iter().copied().all(fit)
    {
        let number = id.to_str().ok().and_then(number).unwrap_or_else(|| random.u128(..));
        return (id.clone(), RequestId(number));
    }
    let id = RequestId(random.u128(..));
    (texts.display(id).expect("hexadecimal digits"), id)
}

fn number(text: &str) -> Option<u128> {
    match text.len() {
        32 if text.bytes().all(|b| b.is_ascii_hexdigit()) => u128::from_str_radix(text, 16).ok(),
        36 => number(&text.replace('-', "")),
        _ => None,
    }
}

/// A small number as a header's value.
pub(crate) fn count(number: usize) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    DIGITS.get(number).map_or_else(|| HeaderValue::from(number), |digit| HeaderValue::from_static(digit))
}

/// Whether a service will use its connection again after this answer.
pub(crate) fn keeps_connection(version: http::Version, headers: &HeaderMap) -> bool {
    version == http::Version::HTTP_11 && !connection_names(headers, "close")
}

/// The head of a service's answer as the client shall see it.
pub(crate) fn from_service(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    for name in &ORIGIN_WIDE {
        headers.remove(name);
    }
    drop_domain_cookies(headers);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if may_run_as_page(headers) {
        // Beside the service's own policy, if any: a browser obeys both.
        headers.append(CONTENT_SECURITY_POLICY, SANDBOX);
    }
}

/// Whether a browser would show this as a page of our origin, with scripts: HTML, and XML of any kind (XHTML, SVG).
fn may_run_as_page(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let Ok(text) = value.to_str() else { return true };
    let essence = text.split(';').next().unwrap_or_default().trim();
    let ends = |suffix: &str| {
        let at = essence.len().checked_sub(suffix.len());
        at.and_then(|at| essence.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    };
    ends("html") || ends("xml") || headers.get_all(CONTENT_TYPE).iter().count() > 1 || text.contains(',')
}

/// A cookie with a `Domain` goes to all hosts below it, and so to other people's services.
fn drop_domain_cookies(headers: &mut HeaderMap) {
    let has_domain = |cookie: &HeaderValue| {
        let attributes = cookie.as_bytes().split(|b| *b == b';').skip(1);
        attributes.map(<[u8]>::trim_ascii).any(|attribute| {
            let name = attribute.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii_end();
            name.eq_ignore_ascii_case(b"domain")
        })
    };
    if !headers.get_all(SET_COOKIE).iter().any(has_domain) {
        return;
    }
    let kept: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().filter(|c| !has_domain(c)).cloned().collect();
    headers.remove(SET_COOKIE);
    for cookie in kept {
        headers.append(SET_COOKIE, cookie);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Scheme;

    fn sent(request: http::request::Builder, peer: &Peer) -> HeaderMap {
        let (mut parts, ()) = request.uri("/service/web/x").body(()).expect("a request").into_parts();
        to_service(
            &mut parts,
            Uri::from_static("/x"),
            "/service/web",
            peer,
            Brings::Nothing,
            &mut Texts::with_capacity(0),
        );
        assert_eq!(parts.uri, "/x");
        parts.headers
    }

    fn client() -> Peer {
        Peer::client(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), Scheme::Https)
    }

    #[test]
    fn what_is_between_two_hops_stays_there() {
        let headers = sent(
            Request::get("/")
                .header("connection", "keep-alive, X-Secret-Hop")
                .header("x-secret-hop", "1")
                .header("keep-alive", "timeout=5")
                .header("te", "gzip, trailers")
                .header("transfer-encoding", "chunked")
                .header("upgrade", "h2c")
                .header("proxy-authorization", "Basic x")
                .header("x-end-to-end", "yes"),
            &client(),
        );
        for gone in ["x-secret-hop", "keep-alive", "transfer-encoding", "upgrade", "proxy-authorization"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!((&headers["te"], &headers["connection"]), (&"trailers".parse().unwrap(), &"te".parse().unwrap()));
        assert_eq!(headers["x-end-to-end"], "yes");
    }

    #[test]
    fn what_a_client_claims_about_its_way_is_not_believed() {
        let claims = || {
            Request::get("/")
                .header("host", "fed.example")
                .header("x-forwarded-for", "10.0.0.1")
                .header("x-forwarded-proto", "gopher")
                .header("x-forwarded-port", "1")
                .header("x-real-ip", "10.0.0.1")
                .header("forwarded", "for=10.0.0.1")
        };
        let headers = sent(claims(), &client());
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "fed.example");
        assert_eq!(headers["x-forwarded-prefix"], "/service/web");
        assert_eq!(headers["forwarded"], "for=192.0.2.7;host=\"fed.example\";proto=https");
        assert!(!headers.contains_key("host"), "the service's own is put in when the node is known");
        assert!(!headers.contains_key("x-real-ip") && !headers.contains_key("x-forwarded-port"));

        let proxy = Peer::trusted_proxy(IpAddr::V6(Ipv6Addr::LOCALHOST), Scheme::Http);
        let headers = sent(claims(), &proxy);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, ::1");
        assert_eq!(headers["x-forwarded-proto"], "gopher");
        assert_eq!(headers["forwarded"], "for=10.0.0.1, for=\"[::1]\";host=\"fed.example\";proto=http");
    }

    #[test]
    fn a_body_without_length_that_ought_to_have_one_gets_it() {
        assert_eq!(sent(Request::post("/"), &client())["content-length"], "0");
        assert!(!sent(Request::get("/"), &client()).contains_key("content-length"));
        let (mut parts, ()) = Request::get("/").body(()).expect("a request").into_parts();
        to_service(&mut parts, Uri::from_static("/"), "", &client(), Brings::Body, &mut Texts::with_capacity(0));
        assert_eq!(parts.headers["transfer-encoding"], "chunked");
    }

    #[test]
    fn a_request_id_is_taken_where_it_is_fit_and_minted_otherwise() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut headers = HeaderMap::new();
        let (minted, number) = request_id(&headers, &mut random);
        assert_eq!(minted.to_str().unwrap(), number.to_string());
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("0123456789abcdef0123456789abcdef"));
        assert_eq!(request_id(&headers, &mut random).1, RequestId(0x0123456789abcdef0123456789abcdef));
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("order-17"));
        assert_eq!(request_id(&headers, &mut random).0, "order-17");
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("two words"));
        assert_ne!(request_id(&headers, &mut random).0, "two words");
    }

    #[test]
    fn a_volunteers_service_speaks_for_itself_and_not_for_the_origin() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "Text/HTML; charset=utf-8"),
            ("alt-svc", "h3=\":443\"; ma=1"),
            ("clear-site-data", "\"*\""),
            ("strict-transport-security", "max-age=0"),
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "b=domain; dOmain = example.org"),
            ("set-cookie", "c=domain=x"),
            ("content-security-policy", "default-src 'self'"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        from_service(&mut headers);
        for gone in ["alt-svc", "clear-site-data", "strict-transport-security"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        let cookies: Vec<_> = headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1; Path=/", "c=domain=x"]);
        let policies: Vec<_> = headers.get_all("content-security-policy").iter().collect();
        assert_eq!(policies.len(), 2);
        assert!(policies[1].to_str().unwrap().starts_with("sandbox"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }

    #[test]
    fn pages_are_sandboxed_and_data_is_not() {
        for (kind, page) in [
            ("text/html", true),
            ("application/xhtml+xml", true),
            ("image/svg+xml", true),
            ("text/xml", true),
            ("application/json", false),
            ("text/event-stream", false),
            ("application/json, text/html", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            from_service(&mut headers);
            assert_eq!(headers.contains_key(CONTENT_SECURITY_POLICY), page, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn no_claim_of_a_client_reaches_a_service(name in "x-forwarded-[a-z]{1,8}", value in "[ -~]{0,40}", host in "[ -~]{0,40}") {
            let Ok(secret) = HeaderValue::from_str(&format!("claimed{value}")) else { return Ok(()) };
            let Ok(host) = HeaderValue::from_str(&host) else { return Ok(()) };
            let headers = sent(Request::get("/").header(name.as_str(), secret.clone()).header("host", host), &client());
            prop_assert!(headers.values().all(|seen| seen != secret));
        }
    }
}
