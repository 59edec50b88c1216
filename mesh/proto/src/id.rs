//! Names of things: nodes, federations, services, requests. Each is a type of its own, checked when it is made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ed25519 public key (RFC 8032), 32 bytes: the identity of a node or of an entry. Written as 64 lower-case
/// hexadecimal digits. The bytes need not be a valid curve point: [`crate::key`] checks that when it verifies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The first eight hexadecimal digits: enough for a person to tell nodes apart, never for the code to.
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..4])
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 64 hexadecimal digits.
    #[error("expected 64 hexadecimal digits, the form that `hedgerow-node status` prints")]
    Hex,
    /// Not a service name.
    #[error(
        "a service name is 1 to {} characters of a-z, A-Z, 0-9, '-', '_' and '.', and begins with a letter or a digit",
        ServiceName::BYTES_MAX
    )]
    ServiceName,
}

fn hex32(text: &str) -> Result<[u8; 32], IdError> {
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(IdError::Hex)
}

impl FromStr for NodeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        hex32(text).map(Self)
    }
}

/// Which federation: the SHA-256 of the public key that the operator configures at the entries. 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FederationId(pub [u8; 32]);

impl fmt::Display for FederationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for FederationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FederationId({})", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

impl FromStr for FederationId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        hex32(text).map(Self)
    }
}

/// The name of a service: 1 to 64 of `a-z A-Z 0-9 - _ .`, beginning with a letter or a digit. So it needs no
/// escaping in a URL, a file name, a log or a metric label, and `..`, `%2f` and `~…` can never be one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct ServiceName(std::sync::Arc<str>);

impl Serialize for ServiceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl ServiceName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, IdError> {
        if Self::is_valid(name) { Ok(Self(name.into())) } else { Err(IdError::ServiceName) }
    }

    /// Whether this text is a service name.
    pub fn is_valid(name: &str) -> bool {
        let first = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        first && rest && name.len() <= Self::BYTES_MAX
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl TryFrom<String> for ServiceName {
    type Error = IdError;
    fn try_from(name: String) -> Result<Self, IdError> {
        Self::new(&name)
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl FromStr for ServiceName {
    type Err = IdError;
    fn from_str(name: &str) -> Result<Self, IdError> {
        Self::new(name)
    }
}

impl std::borrow::Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One request, as the client or the entry named it: it goes into logs, into `x-request-id`, and down the tunnel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_needs_no_escaping() {
        for good in ["a", "llm-inference", "v1.2_x", "0"] {
            assert_eq!(ServiceName::new(good).expect(good).as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "~me", "a/b", "a%2fb", "ä", "a b", &"x".repeat(65)] {
            assert_eq!(ServiceName::new(bad), Err(IdError::ServiceName), "{bad:?}");
        }
    }

    #[test]
    fn an_id_survives_its_text_form() {
        let id = NodeId(std::array::from_fn(|i| i as u8));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("zz".parse::<NodeId>(), Err(IdError::Hex));
        assert_eq!("ab".parse::<NodeId>(), Err(IdError::Hex));
    }
}
