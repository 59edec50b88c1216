//! Reads and verifies each record once for all nodes of a run, which then share it: what a key has signed does not depend on who
//! asks, and a thousand replicas of it need not be kept.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{RecordError, RecordHash, Signed};
use sha2::{Digest, Sha256};

use crate::settings::FEDERATION;

/// Answers that are remembered at least: a few minutes of what the largest federation says. Twice as many at most.
const REMEMBERED_MIN: usize = 1 << 15;

/// The answers by the hash of the bytes. Within a run all ask with the same federation and limits.
#[derive(Debug, Default)]
struct Answers {
    young: BTreeMap<RecordHash, Result<Signed, RecordError>>,
    /// What was young before: whatever is asked for again is young again, and the rest goes.
    old: BTreeMap<RecordHash, Result<Signed, RecordError>>,
}

impl Answers {
    fn to(
        &mut self,
        bytes: Bytes,
        open: impl FnOnce(Bytes) -> Result<Signed, RecordError>,
    ) -> Result<Signed, RecordError> {
        let hash = RecordHash(Sha256::digest(&bytes).into());
        if let Some(answer) = self.young.get(&hash) {
            return answer.clone();
        }
        let answer = self.old.remove(&hash).unwrap_or_else(|| open(bytes));
        if self.young.len() >= REMEMBERED_MIN {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, answer.clone());
        answer
    }
}

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::default();
}

/// [`Signed::open`] for all replicas of a run.
pub(crate) fn open_once(bytes: Bytes, federation: FederationId, limits: &Limits) -> Result<Signed, RecordError> {
    ANSWERS.with_borrow_mut(|answers| answers.to(bytes, |bytes| Signed::open(bytes, federation, limits)))
}

/// Reads and verifies a record.
pub(crate) fn open(bytes: Bytes, limits: &Limits) -> Result<Signed, RecordError> {
    open_once(bytes, FEDERATION, limits)
}

/// A run begins or is over. Another one may have other limits.
pub(crate) fn forget() {
    ANSWERS.take();
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::record::{Body, Version};

    use super::*;

    fn said(seq: u64) -> Bytes {
        let (key, version) = (SecretKey::from_seed([1; 32]), Version { epoch: 1, seq });
        Signed::sign(&key, FEDERATION, 1, version, &Body::Leave).unwrap().bytes().clone()
    }

    #[test]
    fn what_is_asked_for_again_and_again_is_read_once_and_what_is_not_is_forgotten() {
        let (mut answers, mut read) = (Answers::default(), 0);
        let mut ask = |bytes: Bytes| {
            answers.to(bytes, |bytes| {
                read += 1;
                Signed::open(bytes, FEDERATION, &Limits::PRODUCTION)
            })
        };
        let (often, forged) = (said(1), Bytes::from_static(b"no record"));
        for n in 0..3 * REMEMBERED_MIN {
            ask(Bytes::from(n.to_be_bytes().to_vec())).unwrap_err();
            assert_eq!(ask(often.clone()).unwrap().bytes(), &often);
            ask(forged.clone()).unwrap_err();
        }
        assert_eq!(read, 3 * REMEMBERED_MIN + 2);
        assert!(answers.young.len() <= REMEMBERED_MIN && answers.old.len() <= REMEMBERED_MIN);
    }
}
