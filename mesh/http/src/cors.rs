//! Cross-origin resource sharing (the Fetch standard): ours for every service, in the place of their own.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName,
    ORIGIN, VARY,
};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::body::ResponseBody;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS");
const HEADERS: HeaderValue = HeaderValue::from_static("Content-Type, Authorization");
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, x-hedgerow-served-by, x-hedgerow-attempts");
const ANY: HeaderValue = HeaderValue::from_static("*");
const VARY_ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// Which pages may read answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowOrigin {
    /// Those of every origin, as existing clients need it. Without credentials: browsers send none to `*`.
    #[default]
    Any,
    /// Those of these origins, each as a browser writes it: `https://example.org`.
    These(Vec<HeaderValue>),
}

/// What browsers of other origins may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// Whose pages.
    pub allow_origin: AllowOrigin,
}

impl Cors {
    /// The answer to a preflight, if this request is one.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response<ResponseBody>> {
        let asks = method == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        asks.then(|| {
            let mut response = Response::new(ResponseBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            let out = response.headers_mut();
            self.apply(headers.get(ORIGIN), out);
            out.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            out.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
            out.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
            response
        })
    }

    /// Puts our headers into an answer, and takes out what it said itself. `origin` is the request's.
    pub fn apply(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        remove_own(answer);
        let allowed = match &self.allow_origin {
            AllowOrigin::Any => Some(ANY),
            AllowOrigin::These(list) => {
                answer.append(VARY, VARY_ORIGIN);
                origin.filter(|origin| list.contains(origin)).cloned()
            }
        };
        if let Some(allowed) = allowed {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

fn remove_own(answer: &mut HeaderMap) {
    let own: Vec<HeaderName> =
        answer.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in own {
        answer.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static(origin));
        headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
        headers
    }

    #[test]
    fn a_preflight_is_answered_as_existing_clients_need_it() {
        let answer = Cors::default().preflight(&Method::OPTIONS, &asking("https://a.example")).expect("a preflight");
        assert_eq!(answer.status(), 204);
        let expected = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS"),
            ("access-control-allow-headers", "Content-Type, Authorization"),
            ("access-control-max-age", "86400"),
        ];
        for (name, value) in expected {
            assert_eq!(answer.headers()[name], value);
        }
    }

    #[test]
    fn options_that_is_no_preflight_goes_to_the_service() {
        assert!(Cors::default().preflight(&Method::OPTIONS, &HeaderMap::new()).is_none());
        assert!(Cors::default().preflight(&Method::GET, &asking("https://a.example")).is_none());
    }

    #[test]
    fn a_services_own_rules_are_replaced_by_ours() {
        let mut answer = HeaderMap::new();
        answer.insert("access-control-allow-origin", HeaderValue::from_static("https://evil.example"));
        answer.insert("access-control-allow-credentials", HeaderValue::from_static("true"));
        answer.insert("access-control-allow-private-network", HeaderValue::from_static("true"));
        let ours = "https://a.example";
        let cors = Cors { allow_origin: AllowOrigin::These(vec![HeaderValue::from_static(ours)]) };
        cors.apply(Some(&HeaderValue::from_static(ours)), &mut answer);
        assert_eq!(answer["access-control-allow-origin"], ours);
        assert_eq!(answer["vary"], "origin");
        assert!(!answer.contains_key("access-control-allow-credentials"));
        assert!(!answer.contains_key("access-control-allow-private-network"));
        cors.apply(Some(&HeaderValue::from_static("https://other.example")), &mut answer);
        assert!(!answer.contains_key("access-control-allow-origin"));
    }
}
