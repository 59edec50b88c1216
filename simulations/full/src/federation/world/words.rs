//! What honest nodes have said, each heard from its own replica at the moment that it says it: nobody may hold anything else of theirs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hedgerow_mesh::replica::Replica;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{RecordHash, Signed};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Words {
    said: BTreeSet<RecordHash>,
    /// The process of each node.
    listening: BTreeMap<u32, Listening>,
    /// Who has said more at once than there was room for.
    missed: BTreeSet<NodeId>,
}

/// What a process says. No more than this is held of it: one that is killed must be gone.
#[derive(Debug)]
struct Listening {
    writer: NodeId,
    federation: FederationId,
    says: Receiver<Bytes>,
}

impl Words {
    /// The process of this node has just started.
    pub(super) fn listen(&mut self, node: u32, replica: &Replica) {
        // The last words of the one before.
        self.catch_up();
        let (writer, says) = (replica.node(), replica.hurry());
        let federation = replica.read(|registry| {
            self.said.extend(registry.records_of(&writer).map(Signed::hash));
            registry.federation()
        });
        self.listening.insert(node, Listening { writer, federation, says });
    }

    /// Hears what has been said since.
    pub(super) fn catch_up(&mut self) {
        for Listening { writer, federation, says } in self.listening.values_mut() {
            loop {
                match says.try_recv() {
                    Ok(bytes) => {
                        // Workers' words are among those of their home.
                        let signed = Signed::open(bytes, *federation, &Limits::PRODUCTION);
                        let own = signed.ok().filter(|signed| signed.writer() == *writer);
                        self.said.extend(own.map(|signed| signed.hash()));
                    }
                    Err(TryRecvError::Lagged(_)) => _ = self.missed.insert(*writer),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
        }
    }

    /// Whether all that this node has said has been heard.
    pub(super) fn are_all_of(&self, writer: &NodeId) -> bool {
        !self.missed.contains(writer)
    }

    /// Whether this has been said.
    pub(super) fn have(&self, hash: RecordHash) -> bool {
        self.said.contains(&hash)
    }
}
