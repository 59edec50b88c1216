//! The request target as HTTP knows it (RFC 9112 §3.2): which forms are taken, and what the service is sent.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};

use crate::problem::ForwardError;
use crate::texts::Texts;

/// Whether a path is for a service: `/service/…`, `/api/service/…`, `/worker/…`. A name that cannot be is an error of
/// [`Forwarder::forward`](crate::Forwarder::forward), not a reason to look elsewhere.
pub fn is_routed(path: &str) -> bool {
    hedgerow_proto::route::parse(path).is_some()
}

/// Refuses what only a forward proxy or a tunnel would take: `CONNECT`, `TRACE`, and in HTTP/1 the absolute and the
/// asterisk form. For the caller's own endpoints too.
pub fn check_form(method: &Method, version: Version, uri: &Uri) -> Result<(), ForwardError> {
    if *method == Method::CONNECT {
        return Err(ForwardError::Connect);
    }
    if *method == Method::TRACE {
        return Err(ForwardError::Trace);
    }
    // In HTTP/2 every target has a scheme and an authority of its own.
    if version < Version::HTTP_2 && (uri.scheme().is_some() || uri.authority().is_some()) {
        return Err(ForwardError::AbsoluteForm);
    }
    if !uri.path().starts_with('/') {
        return Err(ForwardError::NoPath);
    }
    Ok(())
}

/// The target that the service sees: the rest of the path and the query, byte for byte.
pub(crate) fn for_service(rest: &str, query: Option<&str>, texts: &mut Texts) -> Result<Uri, ForwardError> {
    let target = match query {
        Some(query) => texts.concat(&[rest, "?", query]),
        None => texts.concat(&[rest]),
    };
    // Its parts have been parsed before; only a different `http` could disagree with itself.
    PathAndQuery::from_maybe_shared(target).map(Uri::from).map_err(|_| ForwardError::NoPath)
}

/// The same target, where the service's paths all stand under `base`.
pub(crate) fn under(base: &str, target: &Uri) -> Result<Uri, ForwardError> {
    let whole = format!("{base}{}", target.path_and_query().map_or("/", PathAndQuery::as_str));
    // `base` has been a path before, so that only the length can be wrong.
    PathAndQuery::from_maybe_shared(Bytes::from(whole)).map(Uri::from).map_err(|_| ForwardError::TargetTooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_are_for_forward_proxies_are_refused() {
        let check = |method, version, uri: &str| check_form(&method, version, &uri.parse().expect(uri));
        assert!(check(Method::GET, Version::HTTP_11, "/service/a").is_ok());
        assert!(check(Method::GET, Version::HTTP_2, "https://example.org/service/a").is_ok());
        let absolute = check(Method::GET, Version::HTTP_11, "http://example.org/service/a");
        assert!(matches!(absolute, Err(ForwardError::AbsoluteForm)));
        assert!(matches!(check(Method::CONNECT, Version::HTTP_11, "example.org:443"), Err(ForwardError::Connect)));
        assert!(matches!(check(Method::OPTIONS, Version::HTTP_11, "*"), Err(ForwardError::NoPath)));
        assert!(matches!(check(Method::TRACE, Version::HTTP_11, "/"), Err(ForwardError::Trace)));
    }

    #[test]
    fn the_query_goes_on_untouched() {
        for (rest, query, whole) in [
            ("/", Some("a=%20&b=%C3%A9"), "/?a=%20&b=%C3%A9"),
            ("//x/../%2e", None, "//x/../%2e"),
            ("/x", Some(""), "/x?"),
            ("/a:b@c", Some("x?y=http://z"), "/a:b@c?x?y=http://z"),
        ] {
            let uri = for_service(rest, query, &mut Texts::with_capacity(0)).expect(whole);
            assert_eq!(uri.path_and_query().map(PathAndQuery::as_str), Some(whole));
            assert!(uri.authority().is_none());
        }
    }

    #[test]
    fn a_base_stands_in_front_of_the_target() {
        let moved = |target: &str| under("/a/b", &target.parse().expect(target)).map(|uri| uri.to_string()).ok();
        assert_eq!(moved("/").as_deref(), Some("/a/b/"));
        assert_eq!(moved("//x/%2e?y=/z").as_deref(), Some("/a/b//x/%2e?y=/z"));
        let long = format!("/{}", "x".repeat(usize::from(u16::MAX) - 3));
        assert!(matches!(under("/a/b", &long.parse().expect("a path")), Err(ForwardError::TargetTooLong)));
    }
}
