//! What a node says of its part on the mesh of a federation.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{plural, table};

/// Its part in one federation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// The federation, 64 hexadecimal digits.
    pub federation: String,
    /// What the node is there now: `worker`, `coordinator` or `both`.
    pub role: String,
    /// The coordinator that has taken a worker in.
    pub home: Option<String>,
    /// Coordinators that are connected.
    pub coordinators: usize,
    /// Workers that are at home here.
    pub workers: usize,
    /// Agents of the existing contract for which it speaks.
    pub agents: usize,
    /// The digest of a coordinator's registry: equal digests mean equal registries.
    pub digest: Option<String>,
    /// Who is connected by libp2p, in order of id; older versions do not say.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
}

/// A node that is connected by libp2p.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its key, 64 hexadecimal digits.
    pub node_id: String,
    /// Whether it is a `coordinator`, or a `worker` that is at home here.
    pub part: String,
    /// By which way it is connected: `direct-quic`, `direct-tcp`, `hole-punched` (over QUIC), or `entry`.
    pub path: String,
    /// Why by this one, and what has become of better ones, for people.
    pub why: String,
}

impl MeshStatus {
    /// Who is connected, and how, for people: a line each.
    pub(super) fn peers_table(&self) -> String {
        let rows = self.peers.iter().map(|peer| {
            vec![peer.node_id.chars().take(8).collect(), peer.part.clone(), peer.path.clone(), peer.why.clone()]
        });
        table(&["PEER", "PART", "PATH", "WHY"], rows)
    }
}

impl fmt::Display for MeshStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &str| id.chars().take(8).collect::<String>();
        match (&self.digest, &self.home) {
            (Some(digest), _) => write!(
                f,
                "connected to {}, home to {}, speaks for {}, registry {}",
                plural(self.coordinators as u64, "other coordinator"),
                plural(self.workers as u64, "worker"),
                plural(self.agents as u64, "agent"),
                short(digest)
            ),
            (None, Some(home)) => write!(f, "at home with coordinator {}", short(home)),
            (None, None) => f.write_str("at home with no coordinator yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_a_node_stands() {
        let worker = MeshStatus {
            federation: "ab".repeat(32),
            role: "worker".into(),
            home: Some("cd".repeat(32)),
            coordinators: 0,
            workers: 0,
            agents: 0,
            digest: None,
            peers: vec![],
        };
        assert_eq!(worker.to_string(), "at home with coordinator cdcdcdcd");
        let alone = MeshStatus { home: None, ..worker.clone() };
        assert_eq!(alone.to_string(), "at home with no coordinator yet");
        let digest = Some("ef".repeat(32));
        let coordinator = MeshStatus { home: None, coordinators: 2, workers: 1, digest, ..worker };
        assert_eq!(
            coordinator.to_string(),
            "connected to 2 other coordinators, home to 1 worker, speaks for 0 agents, registry efefefef"
        );
    }

    #[test]
    fn each_peer_has_a_line_that_says_which_way_it_is_connected_and_why() {
        let peer = |id: &str, path: &str, why: &str| PeerStatus {
            node_id: id.repeat(32),
            part: "coordinator".into(),
            path: path.into(),
            why: why.into(),
        };
        let status = MeshStatus {
            federation: "ab".repeat(32),
            role: "coordinator".into(),
            home: None,
            coordinators: 2,
            workers: 0,
            agents: 0,
            digest: None,
            peers: vec![
                peer("cd", "direct-quic", "this node dialled it there"),
                peer("ef", "entry", "it names no address of its own"),
            ],
        };
        assert_eq!(
            status.peers_table(),
            "PEER      PART         PATH         WHY\n\
             cdcdcdcd  coordinator  direct-quic  this node dialled it there\n\
             efefefef  coordinator  entry        it names no address of its own\n"
        );
    }
}
