//! The rules that a record keeps, whoever signed it. A writer is held to them before it signs, a reader before it
//! believes.

use super::{Attachment, Body, Guest, Lease, NodeRecord, Unknown};
use crate::id::{NodeId, ServiceName};
use crate::limits::Limits;

/// Why a record is refused though its signature may hold: its writer's fault, by name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The subject in the envelope is not what the kind has there.
    #[error("the record's subject is not one of its kind")]
    Subject,
    /// More of something than is allowed.
    #[error("{got} {what}, over the limit of {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        got: usize,
        /// How many at most.
        max: usize,
    },
    /// A text over its limit.
    #[error("{what} of {got_bytes} bytes, over the limit of {max_bytes}")]
    TextTooLong {
        /// Which text.
        what: &'static str,
        /// Its length in bytes.
        got_bytes: usize,
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// A text with characters that have no business in it.
    #[error("{0} holds a control character")]
    TextControl(&'static str),
    /// A text that must say something.
    #[error("{0} is empty")]
    TextEmpty(&'static str),
    /// Not a multiaddr.
    #[error("a multiaddr is ASCII text without blanks that begins with '/'")]
    Multiaddr,
    /// Services out of order, or one twice.
    #[error("services are not in order of name, each once")]
    ServiceOrder,
    /// A service without room for a request.
    #[error("service {0} has a capacity of 0: it takes at least 1 request at once")]
    Capacity(ServiceName),
    /// A node that only coordinates, with services or a home.
    #[error("a coordinator that offers services, or has a home, must say that it is a worker too")]
    NotAWorker,
    /// A node that says that it is its own home, or attached to itself.
    #[error("a node is not its own home")]
    OwnHome,
    /// A lease outside its limits.
    #[error("a lease of {got_ms} ms, which is not between {min_ms} and {max_ms} ms")]
    Lease {
        /// Its time to live in milliseconds.
        got_ms: u128,
        /// At least this.
        min_ms: u128,
        /// At most this.
        max_ms: u128,
    },
}

/// Whether `writer` may say `body`.
pub(super) fn body(writer: &NodeId, body: &Body, limits: &Limits) -> Result<(), Invalid> {
    match body {
        Body::Node(record) => node(writer, record, limits),
        Body::Lease(record) => lease(record, limits),
        Body::Attachment(record) => attachment(writer, record),
        Body::Guest(record) => guest(record, limits),
        Body::Leave => Ok(()),
        Body::Unknown(record) => unknown(record),
    }
}

fn node(writer: &NodeId, record: &NodeRecord, limits: &Limits) -> Result<(), Invalid> {
    text("the location", &record.location, limits.location_bytes_max)?;
    text("the version", &record.version, limits.version_bytes_max)?;
    count("services", record.services.len(), limits.services_per_node_max)?;
    ordered(record.services.iter().map(|offer| &offer.name))?;
    if let Some(offer) = record.services.iter().find(|offer| offer.capacity == 0) {
        return Err(Invalid::Capacity(offer.name.clone()));
    }
    count("multiaddrs", record.multiaddrs.len(), limits.multiaddrs_per_node_max)?;
    for multiaddr in &record.multiaddrs {
        text("a multiaddr", multiaddr, limits.multiaddr_bytes_max)?;
        if !multiaddr.starts_with('/') || !multiaddr.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Invalid::Multiaddr);
        }
    }
    if let Some(gpu) = &record.hardware.gpu {
        text("the GPU's name", &gpu.name, limits.gpu_name_bytes_max)?;
    }
    if !record.roles.works() && (!record.services.is_empty() || record.home.is_some()) {
        return Err(Invalid::NotAWorker);
    }
    match record.home {
        Some(home) if home.coordinator == *writer => Err(Invalid::OwnHome),
        _ => Ok(()),
    }
}

fn lease(record: &Lease, limits: &Limits) -> Result<(), Invalid> {
    let (min, max) = (limits.lease_ttl_min, limits.lease_ttl_max);
    if (min..=max).contains(&record.ttl) {
        return Ok(());
    }
    Err(Invalid::Lease { got_ms: record.ttl.as_millis(), min_ms: min.as_millis(), max_ms: max.as_millis() })
}

fn attachment(writer: &NodeId, record: &Attachment) -> Result<(), Invalid> {
    if record.worker == *writer { Err(Invalid::OwnHome) } else { Ok(()) }
}

fn guest(record: &Guest, limits: &Limits) -> Result<(), Invalid> {
    if record.worker_id.is_empty() {
        return Err(Invalid::TextEmpty("the worker id"));
    }
    let details = &record.details;
    text("the worker id", &record.worker_id, limits.guest_id_bytes_max)?;
    text("the worker type", &details.worker_type, limits.guest_type_bytes_max)?;
    text("the tunnel URL", &details.tunnel_url, limits.guest_url_bytes_max)?;
    text("the location", &details.location, limits.location_bytes_max)?;
    text("the capabilities", &details.capabilities, limits.guest_capabilities_bytes_max)?;
    count("services", details.services.len(), limits.services_per_node_max)?;
    ordered(details.services.iter())
}

/// A newer program's record: its envelope has been read, and no more is known. A kind of ours in a version of ours is
/// not unknown, and cannot be passed off as it.
fn unknown(record: &Unknown) -> Result<(), Invalid> {
    let ours = (super::Kind::NODE..=super::Kind::LEAVE).contains(&record.kind);
    let our_version = record.content.first().is_none_or(|&version| version == crate::wire::VERSION);
    if ours && our_version { Err(Invalid::Subject) } else { Ok(()) }
}

fn count(what: &'static str, got: usize, max: usize) -> Result<(), Invalid> {
    if got > max { Err(Invalid::TooMany { what, got, max }) } else { Ok(()) }
}

fn ordered<'a>(names: impl Iterator<Item = &'a ServiceName>) -> Result<(), Invalid> {
    if names.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(Invalid::ServiceOrder) }
}

fn text(what: &'static str, text: &str, max_bytes: usize) -> Result<(), Invalid> {
    if text.len() > max_bytes {
        return Err(Invalid::TextTooLong { what, got_bytes: text.len(), max_bytes });
    }
    // These texts end in people's terminals and pages: nothing in them may move the cursor or turn the writing round.
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    if text.chars().any(|c| c.is_control() || turns(c)) { Err(Invalid::TextControl(what)) } else { Ok(()) }
}
