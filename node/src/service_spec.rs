//! What the operator says of one service: `NAME=URL[;capacity=N][;health=/path]` on the command line, a table in the file.

use std::fmt;
use std::str::FromStr;

use hedgerow_process::config::nearest;
use hedgerow_proto::id::{IdError, ServiceName};

use crate::entry_url::port_of;

/// How many requests a service takes at once when its operator says nothing: enough for a small site, few enough that a
/// machine at home stays usable.
pub const CAPACITY_DEFAULT: u32 = 16;
/// More at once than any process on a volunteer's machine takes: a slip of the finger.
pub const CAPACITY_MAX: u32 = 65_536;

/// A service on this machine, or near it, that the operator has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its public name.
    pub name: ServiceName,
    /// Where it listens.
    pub address: ServiceAddress,
    /// How many requests it takes at once; at least 1.
    pub capacity: u32,
    /// The path that says whether it is well; without one, taking a connection is enough.
    pub health: Option<HealthPath>,
}

/// Where a service listens: plain HTTP/1.1 at a host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddress {
    /// A name, or an address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A path and perhaps a query, beginning with `/`, that can be written into a request line as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPath(String);

/// Why a service is not one. Every variant is the operator's to put right, and says how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceSpecError {
    /// No `=`.
    #[error("a service is written NAME=URL[;capacity=N][;health=/path], for example notes=http://127.0.0.1:8100")]
    Form,
    /// The name.
    #[error("{name:?}: {error}")]
    Name {
        /// What was given.
        name: String,
        /// What a name is.
        error: IdError,
    },
    /// Not a URL.
    #[error("{0:?} is not the URL of a service; write http://HOST:PORT, for example http://127.0.0.1:8100")]
    Url(String),
    /// TLS to the local service.
    #[error(
        "{0:?}: services over https are not supported yet, the node speaks plain HTTP to them; if the service has a plain \
         port, name that one"
    )]
    Https(String),
    /// A path in the URL.
    #[error(
        "{0:?} has a path, and the node passes requests on as they are, without changing their path; write only \
         http://HOST:PORT, and let clients name the path behind /service/NAME/"
    )]
    Path(String),
    /// `capacity=`.
    #[error("capacity={0:?}: the capacity is how many requests the service takes at once, 1 to {CAPACITY_MAX}")]
    Capacity(String),
    /// `health=`.
    #[error(
        "health={0:?}: the health path begins with / and has no spaces or control characters, for example /healthz"
    )]
    Health(String),
    /// Something else behind a semicolon.
    #[error("unknown option {option:?}{}; known: capacity=N and health=/path", did_you_mean(nearest))]
    Option {
        /// What was given.
        option: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|key| format!(", did you mean `{key}`?")).unwrap_or_default()
}

impl ServiceSpec {
    /// Puts a service together from its parts, checking each.
    pub fn new(name: &str, url: &str, capacity: Option<u32>, health: Option<&str>) -> Result<Self, ServiceSpecError> {
        let name = ServiceName::new(name).map_err(|error| ServiceSpecError::Name { name: name.to_owned(), error })?;
        let capacity = capacity.unwrap_or(CAPACITY_DEFAULT);
        if !(1..=CAPACITY_MAX).contains(&capacity) {
            return Err(ServiceSpecError::Capacity(capacity.to_string()));
        }
        Ok(Self { name, address: url.parse()?, capacity, health: health.map(str::parse).transpose()? })
    }
}

impl FromStr for ServiceSpec {
    type Err = ServiceSpecError;

    fn from_str(text: &str) -> Result<Self, ServiceSpecError> {
        let (name, rest) = text.split_once('=').ok_or(ServiceSpecError::Form)?;
        let mut parts = rest.split(';');
        let url = parts.next().unwrap_or_default();
        let (mut capacity, mut health) = (None, None);
        for option in parts.map(str::trim).filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("capacity", value)) => {
                    capacity = Some(value.parse().map_err(|_| ServiceSpecError::Capacity(value.to_owned()))?);
                }
                Some(("health", value)) => health = Some(value),
                _ => {
                    let key = option.split('=').next().unwrap_or_default();
                    let nearest = nearest(key, ["capacity", "health"]);
                    return Err(ServiceSpecError::Option { option: option.to_owned(), nearest });
                }
            }
        }
        Self::new(name.trim(), url.trim(), capacity, health)
    }
}

impl FromStr for ServiceAddress {
    type Err = ServiceSpecError;

    fn from_str(text: &str) -> Result<Self, ServiceSpecError> {
        let wrong = || ServiceSpecError::Url(text.to_owned());
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(ServiceSpecError::Https(text.to_owned())),
            _ => return Err(wrong()),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port_of(authority).ok_or_else(wrong)?.unwrap_or(80);
        if host.is_empty() {
            return Err(wrong());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(ServiceSpecError::Path(text.to_owned()));
        }
        Ok(Self { host, port })
    }
}

impl ServiceAddress {
    /// Host and port as they stand in a URL and in a `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl HealthPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HealthPath {
    type Err = ServiceSpecError;

    fn from_str(text: &str) -> Result<Self, ServiceSpecError> {
        let fits = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains('#');
        if fits && text.parse::<http::uri::PathAndQuery>().is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(ServiceSpecError::Health(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServiceSpec, ServiceSpecError> {
        text.parse()
    }

    #[test]
    fn a_service_is_a_name_a_url_and_options() {
        let spec = parse("notes=http://127.0.0.1:8100").unwrap();
        assert_eq!((spec.name.as_str(), spec.capacity, &spec.health), ("notes", CAPACITY_DEFAULT, &None));
        assert_eq!(spec.address.authority(), "127.0.0.1:8100");
        let spec = parse("llm=http://[::1]:1/;capacity=2;health=/healthz?deep=1").unwrap();
        assert_eq!((spec.capacity, spec.address.authority().as_str()), (2, "[::1]:1"));
        assert_eq!(spec.health.unwrap().as_str(), "/healthz?deep=1");
        assert_eq!(parse("a=http://box").unwrap().address.authority(), "box:80");
    }

    #[test]
    fn what_is_no_service_is_said_by_its_part() {
        use ServiceSpecError as E;
        assert_eq!(parse("notes"), Err(E::Form));
        assert!(matches!(parse("../x=http://a:1"), Err(E::Name { .. })));
        for url in ["", "127.0.0.1:80", "tcp://a:1", "http://", "http://a:0", "http://a:x", "http://me@a:1"] {
            assert!(matches!(parse(&format!("x={url}")), Err(E::Url(_))), "{url:?}: {:?}", parse(&format!("x={url}")));
        }
        assert!(matches!(parse("x=https://a:1"), Err(E::Https(_))));
        assert!(matches!(parse("x=http://a:1/base"), Err(E::Path(_))));
        assert!(matches!(parse("x=http://a:1?q=1"), Err(E::Path(_))));
        for capacity in ["0", "-1", "many", "70000", ""] {
            assert!(matches!(parse(&format!("x=http://a:1;capacity={capacity}")), Err(E::Capacity(_))), "{capacity:?}");
        }
        for health in ["", "healthz", "/a b", "/a\r\nHost: evil", "/a#b"] {
            assert!(matches!(parse(&format!("x=http://a:1;health={health}")), Err(E::Health(_))), "{health:?}");
        }
    }

    #[test]
    fn a_mistyped_option_is_told_what_was_meant() {
        let error = parse("x=http://a:1;capasity=2").unwrap_err().to_string();
        assert!(error.contains("did you mean `capacity`?"), "{error}");
    }
}
