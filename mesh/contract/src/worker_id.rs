//! What an agent calls itself.

use std::fmt;
use std::str::FromStr;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::registry::Registry;

/// The id of a worker, as agents choose it or have it chosen: 1 to [`WorkerId::BYTES_MAX`] characters that need no
/// escaping in the path `/worker/{id}/…`, since that is where clients write it.
///
/// Agents make theirs from a host name, often with a word in front. Host names of machines at home and of containers are
/// one label (at most 63 characters), those of cloud machines have about 50. A fully qualified name can have 253, and such
/// an agent is refused with the limit in the error rather than shortened behind its back: it calls itself by what it sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(String);

/// A text that no worker can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a worker id is 1 to {} characters of a-z, A-Z, 0-9 and -._~:@ (set WORKER_ID to a shorter or plainer one)",
    WorkerId::BYTES_MAX
)]
pub struct WorkerIdError;

impl WorkerId {
    /// The longest id, in bytes: what the signed record of a guest has room for (`guest_id_bytes_max`).
    pub const BYTES_MAX: usize = 64;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node of ours that is known by this id, if there is one.
    pub fn native(&self, registry: &Registry) -> Option<NodeId> {
        self.0.parse().ok().filter(|id| registry.node(id).is_some())
    }
}

impl FromStr for WorkerId {
    type Err = WorkerIdError;
    fn from_str(text: &str) -> Result<Self, WorkerIdError> {
        // As `hedgerow_proto::route` takes it in a path.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:@".contains(&b);
        let fits = (1..=Self::BYTES_MAX).contains(&text.len()) && text.bytes().all(plain);
        if fits && !matches!(text, "." | "..") { Ok(Self(text.to_owned())) } else { Err(WorkerIdError) }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for WorkerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::limits::Limits;
    use hedgerow_proto::route;

    use super::*;

    #[test]
    fn what_is_a_worker_id_can_stand_in_a_path_and_in_a_record() {
        assert_eq!(WorkerId::BYTES_MAX, Limits::PRODUCTION.guest_id_bytes_max);
        for good in ["a", "gpu-box_7.lan", "me@home", "a:b~c", "...", &"x".repeat(64)] {
            let id: WorkerId = good.parse().unwrap();
            let path = format!("/worker/{id}/llm/v1");
            let route = route::parse(&path).unwrap().unwrap();
            assert_eq!(route.target, route::Target::Worker { worker: good, service: "llm" });
        }
        for bad in ["", ".", "..", "a/b", "a b", "a%20b", "ä", "a\n", &"x".repeat(65)] {
            assert_eq!(bad.parse::<WorkerId>(), Err(WorkerIdError), "{bad:?}");
        }
    }
}
