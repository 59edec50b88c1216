//! Which call a request is. Requests to services (`/service/…`, `/api/service/…`, `/worker/…`) are none of these:
//! `hedgerow_proto::route` has them.

use hedgerow_proto::id::ServiceName;

use crate::error::{ContractError, excerpt};
use crate::worker_id::WorkerId;

/// A call of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// GET `/health`.
    Health,
    /// POST `/api/worker/register`.
    Register,
    /// POST `/api/worker/heartbeat`.
    Heartbeat,
    /// DELETE `/api/worker/unregister/{id}`.
    Unregister(WorkerId),
    /// POST `/api/edge/register`.
    EdgeRegister,
    /// POST `/api/edge/heartbeat`.
    EdgeHeartbeat,
    /// GET `/api/dht/bootstrap`.
    DhtBootstrap,
    /// GET `/api/services/discover/{service}`: a service's name or an alias.
    Discover(ServiceName),
    /// GET `/api/worker/find/{service}`: a service's name or an alias.
    Find(ServiceName),
    /// GET `/api/services/list`.
    ServicesList,
    /// GET `/api/admin/workers`.
    AdminWorkers,
    /// GET `/api/admin/coordinators`.
    AdminCoordinators,
    /// GET `/api/admin/stats`.
    AdminStats,
    /// GET `/api/dht/topology`.
    DhtTopology,
    /// GET `/api/dht/stats`.
    DhtStats,
}

impl Call {
    /// Whether the call changes what the federation knows: it is for a coordinator. Others can be answered by whoever has
    /// the registry.
    pub fn writes(&self) -> bool {
        use Call::{EdgeHeartbeat, EdgeRegister, Heartbeat, Register, Unregister};
        matches!(self, Register | Heartbeat | Unregister(_) | EdgeRegister | EdgeHeartbeat)
    }
}

impl Call {
    /// The method and the path, to pass it on to somebody else who answers it.
    pub fn line(&self) -> (&'static str, String) {
        let (method, path) = match self {
            Self::Health => ("GET", "/health"),
            Self::Register => ("POST", "/api/worker/register"),
            Self::Heartbeat => ("POST", "/api/worker/heartbeat"),
            // Neither an id nor a name has anything in it that would have to be escaped.
            Self::Unregister(worker_id) => return ("DELETE", format!("/api/worker/unregister/{worker_id}")),
            Self::EdgeRegister => ("POST", "/api/edge/register"),
            Self::EdgeHeartbeat => ("POST", "/api/edge/heartbeat"),
            Self::DhtBootstrap => ("GET", "/api/dht/bootstrap"),
            Self::Discover(service) => return ("GET", format!("/api/services/discover/{service}")),
            Self::Find(service) => return ("GET", format!("/api/worker/find/{service}")),
            Self::ServicesList => ("GET", "/api/services/list"),
            Self::AdminWorkers => ("GET", "/api/admin/workers"),
            Self::AdminCoordinators => ("GET", "/api/admin/coordinators"),
            Self::AdminStats => ("GET", "/api/admin/stats"),
            Self::DhtTopology => ("GET", "/api/dht/topology"),
            Self::DhtStats => ("GET", "/api/dht/stats"),
        };
        (method, path.to_owned())
    }
}

const GET: &str = "GET, HEAD, OPTIONS";
const POST: &str = "POST, OPTIONS";
const DELETE: &str = "DELETE, OPTIONS";

/// Recognises a call by its method and its path, which is the request target's as it came: percent-encoded, without the
/// query. `None` for paths that are none of the contract's; an error for a method that the path does not have, or a name
/// in the path that can be none. HEAD counts as GET. One slash at the end means nothing.
pub fn endpoint(method: &str, path: &str) -> Option<Result<Call, ContractError>> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let (call, allow) = recognise(path)?;
    let method_fits = match allow {
        GET => matches!(method, "GET" | "HEAD"),
        POST => method == "POST",
        _ => method == "DELETE",
    };
    if method_fits { Some(call) } else { Some(Err(ContractError::MethodNotAllowed { method: excerpt(method), allow })) }
}

fn recognise(path: &str) -> Option<(Result<Call, ContractError>, &'static str)> {
    let (call, allow) = match path {
        "/health" => (Call::Health, GET),
        "/api/worker/register" => (Call::Register, POST),
        "/api/worker/heartbeat" => (Call::Heartbeat, POST),
        "/api/edge/register" => (Call::EdgeRegister, POST),
        "/api/edge/heartbeat" => (Call::EdgeHeartbeat, POST),
        "/api/dht/bootstrap" => (Call::DhtBootstrap, GET),
        "/api/services/list" => (Call::ServicesList, GET),
        "/api/admin/workers" => (Call::AdminWorkers, GET),
        "/api/admin/coordinators" => (Call::AdminCoordinators, GET),
        "/api/admin/stats" => (Call::AdminStats, GET),
        "/api/dht/topology" => (Call::DhtTopology, GET),
        "/api/dht/stats" => (Call::DhtStats, GET),
        _ => return with_name(path),
    };
    Some((Ok(call), allow))
}

/// The paths with a name at their end: one segment, whatever is in it.
fn with_name(path: &str) -> Option<(Result<Call, ContractError>, &'static str)> {
    let (parent, name) = path.rsplit_once('/')?;
    let service = || parameter::<ServiceName>("service", name);
    Some(match parent {
        "/api/worker/unregister" => (parameter("worker", name).map(Call::Unregister), DELETE),
        "/api/worker/find" => (service().map(Call::Find), GET),
        "/api/services/discover" => (service().map(Call::Discover), GET),
        _ => return None,
    })
}

fn parameter<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &'static str,
    encoded: &str,
) -> Result<T, ContractError> {
    let path = |why: String| ContractError::Path { what, why };
    let text = percent_decoded(encoded)
        .ok_or_else(|| path(format!("{} is not percent-encoded text (RFC 3986, section 2.1)", excerpt(encoded))))?;
    text.parse().map_err(|error| path(format!("{error}")))
}

/// `None` where a `%` is not followed by two hexadecimal digits, or where the bytes are no text.
fn percent_decoded(encoded: &str) -> Option<String> {
    let mut bytes = encoded.bytes();
    let mut decoded = Vec::with_capacity(encoded.len());
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call(method: &str, path: &str) -> Call {
        endpoint(method, path).expect(path).expect(path)
    }

    #[test]
    fn every_path_of_the_contract_is_recognised_with_its_method_and_no_other() {
        let (id, service) = ("gpu-box@home".parse().unwrap(), ServiceName::new("llm-inference").unwrap());
        let calls = [
            ("GET", "/health", Call::Health),
            ("POST", "/api/worker/register", Call::Register),
            ("POST", "/api/worker/heartbeat", Call::Heartbeat),
            ("DELETE", "/api/worker/unregister/gpu-box%40home", Call::Unregister(id)),
            ("POST", "/api/edge/register", Call::EdgeRegister),
            ("POST", "/api/edge/heartbeat", Call::EdgeHeartbeat),
            ("GET", "/api/dht/bootstrap", Call::DhtBootstrap),
            ("GET", "/api/services/discover/llm%2Dinference", Call::Discover(service.clone())),
            ("GET", "/api/worker/find/llm-inference", Call::Find(service)),
            ("GET", "/api/services/list", Call::ServicesList),
            ("GET", "/api/admin/workers", Call::AdminWorkers),
            ("GET", "/api/admin/coordinators", Call::AdminCoordinators),
            ("GET", "/api/admin/stats", Call::AdminStats),
            ("GET", "/api/dht/topology", Call::DhtTopology),
            ("GET", "/api/dht/stats", Call::DhtStats),
        ];
        for (method, path, expected) in calls {
            assert_eq!(call(method, path), expected);
            let (method_again, path_again) = expected.line();
            assert_eq!(call(method_again, &path_again), expected);
            assert_eq!(call(method, &format!("{path}/")), expected);
            assert_eq!(expected.writes(), method != "GET", "{path}");
            for other in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get"] {
                let fits = other == method || (other, method) == ("HEAD", "GET");
                let result = endpoint(other, path).unwrap();
                assert_eq!(result.is_ok(), fits, "{other} {path}");
                if let Err(error) = result {
                    assert_eq!(error.status(), 405);
                    assert!(error.allow().unwrap().contains(method));
                }
            }
        }
    }

    #[test]
    fn requests_to_services_and_paths_of_others_are_none_of_these() {
        for path in [
            "",
            "/",
            "/service/llm/v1",
            "/api/service/llm/v1",
            "/worker/w/llm/",
            "/api/worker",
            "/api/worker/unregister/a/b",
            "/api/worker/register//",
            "/Health",
            "/health/x",
            "health",
        ] {
            assert_eq!(endpoint("GET", path), None, "{path}");
        }
    }

    #[test]
    fn a_name_in_the_path_that_can_be_none_is_refused() {
        for path in [
            "/api/worker/unregister/a%2Fb",
            "/api/worker/unregister/%2e%2e",
            "/api/worker/unregister/a%",
            "/api/worker/unregister/a%zz",
            "/api/worker/unregister/%ff",
            "/api/worker/unregister/%00",
            "/api/worker/unregister//",
        ] {
            let error = endpoint("DELETE", path).unwrap().unwrap_err();
            assert_eq!((error.status(), error.code()), (400, "bad-path"), "{path}");
        }
        assert!(endpoint("GET", "/api/worker/find/~x").unwrap().is_err());
    }

    proptest! {
        #[test]
        fn no_path_panics(method in "\\PC{0,8}", path in "(/api/worker/(find|unregister)/)?[%a-f0-9/.é]{0,24}") {
            let _ = endpoint(&method, &path);
        }
    }
}
