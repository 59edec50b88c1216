//! What a node may say: the kinds of records, and the signed envelope that they travel in.

use serde::{Deserialize, Serialize};

use crate::id::{FederationId, NodeId, ServiceName};
use crate::key::SecretKey;
use crate::limits::Limits;

/// What a node does. At least one is set in a valid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Roles {
    /// Offers services.
    Worker,
    /// Holds the registry.
    Coordinator,
    /// Both.
    Both,
}

impl Roles {
    /// Whether the node holds the registry.
    pub fn coordinates(self) -> bool {
        matches!(self, Self::Coordinator | Self::Both)
    }
    /// Whether the node offers services.
    pub fn works(self) -> bool {
        matches!(self, Self::Worker | Self::Both)
    }
}

/// One service that a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOffer {
    /// Its name.
    pub name: ServiceName,
    /// How many requests it takes at once; at least 1.
    pub capacity: u32,
    /// Whether its probe succeeds: an offer that is down is known but gets no requests.
    pub health: ServiceHealth,
}

/// What a node's own probe says of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceHealth {
    /// It takes connections.
    Up,
    /// It does not.
    Down,
}

/// A worker's home: the coordinator that it is attached to, and the how-manieth move this was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The coordinator.
    pub coordinator: NodeId,
    /// Counts the moves: the attachment that quotes the highest one counts.
    pub home_seq: u64,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What it does.
    pub roles: Roles,
    /// Where it says it is: free text for people.
    pub location: String,
    /// The version of its software.
    pub version: String,
    /// The services that its operator named, in order of name, each once.
    pub services: Vec<ServiceOffer>,
    /// libp2p multiaddrs that it can be dialled at; empty when there are none.
    pub multiaddrs: Vec<String>,
    /// The coordinator that it is attached to, if any.
    pub home: Option<Home>,
}

/// Newest first: the counter that the node keeps on its disk, then how often it has spoken since it was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Raised on disk before a process uses it: never a clock.
    pub epoch: u64,
    /// Counts what was said in this epoch.
    pub seq: u64,
}

/// A record with its signature, as its exact bytes: what was signed is what travels, what is stored and what is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    bytes: bytes::Bytes,
}
/// tmp
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// n
    Node(NodeRecord),
    /// l
    Leave,
}
/// tmp
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// x
    pub federation: FederationId,
    /// x
    pub writer: NodeId,
    /// x
    pub incarnation: u64,
    /// x
    pub version: Version,
    /// x
    pub body: Body,
}
impl Signed {
    /// tmp
    pub fn sign(
        key: &SecretKey,
        federation: FederationId,
        incarnation: u64,
        version: Version,
        body: &Body,
    ) -> Result<Signed, String> {
        let mut b =
            crate::wire::encode(&Record { federation, writer: key.id(), incarnation, version, body: body.clone() });
        let s = key.sign(&b);
        b.extend_from_slice(&s);
        Ok(Signed { bytes: b.into() })
    }
    /// tmp
    pub fn bytes(&self) -> &bytes::Bytes {
        &self.bytes
    }
    /// tmp
    pub fn open(bytes: bytes::Bytes, _f: FederationId, _l: &Limits) -> Result<(Signed, Record), String> {
        let (b, s) = bytes.split_at(bytes.len().checked_sub(64).ok_or("too short")?);
        let r: Record = crate::wire::decode(b, 4096).map_err(|e| e.to_string())?;
        if !s.try_into().is_ok_and(|s| r.writer.verifies(b, s)) {
            return Err("bad signature".into());
        }
        Ok((Signed { bytes: bytes.clone() }, r))
    }
}
