//! What must hold of a replica whenever somebody looks at it, at whichever level: nothing is forged, nothing goes back, nothing comes
//! back from the dead, nothing gets lost, nobody seems to be there long after he was.

use std::cmp::Reverse;
use std::time::Duration;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::{Kind, RecordHash, Signed};
use hedgerow_proto::registry::Registry;

/// How long beside its lease a coordinator may seem to be there that is not: what was under way, and a second lease for one that
/// was learned of in bulk.
const LEASE_SLACK: Duration = Duration::from_secs(90);

/// A rule (a stable word), and how it was broken.
pub type Broken = (&'static str, String);

/// What a replica holds of an honest writer and this one never said. `has_said` knows all that honest nodes have said.
pub fn forged(writer: NodeId, now: &[Signed], has_said: impl Fn(RecordHash) -> bool) -> Vec<Broken> {
    let never_said = now.iter().filter(|signed| !has_said(signed.hash()));
    let what = |signed: &Signed| {
        let (kind, version) = (signed.kind(), signed.version());
        format!("{kind:?} of {} at {version:?} is here, and its writer never said it", writer.short())
    };
    never_said.map(|signed| ("forged", what(signed))).collect()
}

/// What is wrong between two looks at what a replica holds of one writer. `keeps` says whether only a Leave may remove something: not
/// with tiny limits, nor of a writer that is not honest.
pub fn went_on(writer: NodeId, before: &[Signed], now: &[Signed], keeps: bool) -> Vec<Broken> {
    let mut wrong = Vec::new();
    let left = now.iter().find(|signed| signed.kind() == Kind::LEAVE).map(Signed::version);
    let same_key = |one: &Signed, other: &Signed| (one.kind(), one.subject()) == (other.kind(), other.subject());
    for signed in now {
        let (kind, version, hash) = (signed.kind(), signed.version(), signed.hash());
        let name = || format!("{kind:?} of {} at {version:?}", writer.short());
        if kind != Kind::LEAVE && left.is_some_and(|left| version <= left) {
            wrong.push(("resurrected", format!("{} is here, and its writer has left at {left:?}", name())));
        }
        if let Some(old) = before.iter().find(|old| same_key(old, signed))
            && (version, Reverse(hash)) < (old.version(), Reverse(old.hash()))
        {
            wrong.push(("went-back", format!("{} is here, and {:?} was", name(), old.version())));
        }
    }
    // What was here and is not any more: only a Leave explains that, in runs that are shorter than what marks are kept for.
    for old in before.iter().filter(|old| keeps && !now.iter().any(|signed| same_key(old, signed))) {
        if left.is_none_or(|left| old.version() > left) {
            let what = format!("{:?} of {} at {:?} was here, and is not", old.kind(), writer.short(), old.version());
            wrong.push(("vanished", what));
        }
    }
    wrong
}

/// For so long a coordinator may seem to be there after it was there last.
pub fn seems_there_max(registry: &Registry) -> Duration {
    registry.limits().lease_ttl(registry.coordinators_known().max(1)) * 2 + LEASE_SLACK
}

/// Whether all must come to know what a node says of this kind. Whoever coordinates no longer has nobody to tell of those who were with
/// it, nor that it is there, and is not asked; a Leave is heard by whoever is there to hear it.
pub fn is_for_all(kind: Kind, coordinates: bool) -> bool {
    match kind {
        Kind::ATTACHMENT | Kind::LEASE => coordinates,
        kind => kind != Kind::LEAVE,
    }
}

/// Whether no more is held than the limits say.
pub fn bounded(registry: &Registry) -> Option<Broken> {
    let limits = registry.limits();
    let workers = registry.nodes().filter(|record| record.node().is_some_and(|node| node.roles.works())).count();
    let coordinators = registry.coordinators_known();
    // A node that is both counts as a coordinator.
    let over = coordinators > limits.coordinators_max || workers > limits.workers_max + limits.coordinators_max;
    over.then(|| ("over-a-limit", format!("{coordinators} coordinators and {workers} workers are held")))
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::id::FederationId;
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::record::{Body, Lease, Version};

    use super::*;

    fn said(seq: u64, body: &Body) -> Signed {
        let (key, version) = (SecretKey::from_seed([1; 32]), Version { epoch: 1, seq });
        Signed::sign(&key, FederationId([2; 32]), 1, version, body).unwrap()
    }

    #[test]
    fn each_rule_is_broken_by_what_it_forbids_and_by_nothing_else() {
        let lease = |seq| said(seq, &Body::Lease(Lease { ttl: Duration::from_secs(60) }));
        let (old, new, left) = (lease(1), lease(2), said(3, &Body::Leave));
        let writer = old.record().writer;
        let broken = |before: &[&Signed], now: &[&Signed]| {
            let owned = |of: &[&Signed]| of.iter().map(|signed| (*signed).clone()).collect::<Vec<_>>();
            let wrong = went_on(writer, &owned(before), &owned(now), true);
            wrong.into_iter().map(|(rule, _)| rule).collect::<Vec<_>>()
        };
        assert!(broken(&[], &[&old]).is_empty() && broken(&[&old], &[&new]).is_empty());
        assert!(broken(&[&new], &[&left]).is_empty());
        assert_eq!(broken(&[&new], &[&old]), ["went-back"]);
        assert_eq!(broken(&[&left], &[&left, &new]), ["resurrected"]);
        assert_eq!(broken(&[&new], &[]), ["vanished"]);
        let lenient = went_on(writer, std::slice::from_ref(&new), &[], false);
        assert!(lenient.is_empty(), "{lenient:?}");
        let said = old.hash();
        let forged = forged(writer, &[old, new], |hash| hash == said);
        assert!(matches!(&forged[..], [("forged", what)] if what.contains("seq: 2")), "{forged:?}");
    }
}
