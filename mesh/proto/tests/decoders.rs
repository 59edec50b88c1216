//! Whatever a peer sends, or a disk holds: a value or an error, never a panic.

#![allow(clippy::unwrap_used)] // A test that cannot prepare its input has failed.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::appointment::{Answer, Appointment};
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{
    Control, FrameHeader, Hello, Join, MESSAGE_BYTES_MAX, Preface, Refusal, Reject, Release, Welcome,
};
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{GuestDetails, Lease, NodeRecord, Signed};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::snapshot;
use hedgerow_proto::sync::Session;
use hedgerow_proto::wire;
use proptest::prelude::*;

const FEDERATION: FederationId = FederationId([0xfe; 32]);
const NOW: Time = Time::from_origin(Duration::from_secs(1000));

/// Gives the bytes to everything that decodes.
fn decode(bytes: &[u8]) {
    fn all<T: serde::de::DeserializeOwned>(bytes: &[u8]) {
        let _ = wire::decode::<T>(bytes, MESSAGE_BYTES_MAX);
        let _ = wire::decode_prefix::<T>(bytes, MESSAGE_BYTES_MAX);
    }
    all::<Preface>(bytes);
    all::<Refusal>(bytes);
    all::<Release>(bytes);
    all::<Control>(bytes);
    all::<Hello>(bytes);
    all::<Join>(bytes);
    all::<Welcome>(bytes);
    all::<Reject>(bytes);
    all::<NodeRecord>(bytes);
    all::<GuestDetails>(bytes);
    all::<Lease>(bytes);
    all::<Appointment>(bytes);
    all::<Answer>(bytes);
    if let Some(header) = bytes.first_chunk() {
        let _ = FrameHeader::decode(*header);
    }
    let mut registry = Registry::new(FEDERATION, Limits::TINY);
    if let Ok(signed) = Signed::open(Bytes::copy_from_slice(bytes), FEDERATION, &Limits::TINY) {
        let _ = registry.insert(NOW, signed, Source::Passed(Duration::MAX));
    }
    let _ = Session::respond().handle(NOW, &mut registry, bytes);
    let _ = snapshot::restore(bytes.to_vec(), &mut registry, NOW);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (text.parse::<NodeId>(), ServiceName::new(text));
    }
}

/// What is really written, as a start for mutations.
fn written() -> Vec<Vec<u8>> {
    let hex = include_str!("golden.txt").lines().filter_map(|line| line.split_once(": "));
    hex.map(|(_, hex)| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_give_a_value_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        decode(&bytes);
        bytes.insert(0, wire::VERSION);
        decode(&bytes);
    }

    #[test]
    fn mutated_bytes_give_a_value_or_an_error(
        which in any::<prop::sample::Index>(),
        header in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        more in proptest::collection::vec(any::<u8>(), 0..32),
    ) {
        let all = written();
        let mut bytes = which.get(&all).clone();
        if header && bytes.len() > 4 {
            // Without the header of the frame, which is not for these decoders.
            bytes.drain(..4);
        }
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(more);
        decode(&bytes);
    }
}
