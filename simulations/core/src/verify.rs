//! Verifies each signature once for all nodes of the simulation: what a key has signed does not depend on who asks.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::Signature;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Record, RecordError, Signed};
use sha2::{Digest, Sha256};

use crate::settings::FEDERATION;

/// Answers that are remembered: a few minutes of what the largest federation says.
const REMEMBERED_MAX: usize = 1 << 18;

thread_local! {
    static ANSWERS: RefCell<BTreeMap<[u8; 32], bool>> = const { RefCell::new(BTreeMap::new()) };
}

/// Whether a signature is this key's over exactly these bytes.
pub(crate) fn verifies(key: &NodeId, bytes: &[u8], signature: &Signature) -> bool {
    let hash = Sha256::new().chain_update(key.0).chain_update(signature).chain_update(bytes).finalize();
    ANSWERS.with_borrow_mut(|answers| {
        if answers.len() >= REMEMBERED_MAX {
            answers.clear();
        }
        *answers.entry(hash.into()).or_insert_with(|| key.verifies(bytes, signature))
    })
}

/// Reads and verifies a record.
pub(crate) fn open(bytes: Bytes, limits: &Limits) -> Result<(Signed, Record), RecordError> {
    Signed::open_by(bytes, FEDERATION, limits, verifies)
}
