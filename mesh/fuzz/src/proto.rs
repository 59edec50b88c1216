//! What `hedgerow-proto` reads: frames, records, synchronisations, snapshots, messages between coordinators.
//!
//! No signature counts here: a fuzzer cannot make one, and would not get past it.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::appointment::{Answer, Appointment};
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{
    Control, FrameHeader, Hello, Join, MESSAGE_BYTES_MAX, Preface, Refusal, Reject, Release, Welcome,
};
use hedgerow_proto::id::{FederationId, NodeId, ServiceName};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::peer::{PeerRequest, PeerResponse};
use hedgerow_proto::record::{GuestDetails, Lease, NodeRecord, RecordError, Signed};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::sync::Session;
use hedgerow_proto::{snapshot, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::counting::peak_of;

const FEDERATION: FederationId = FederationId([0xfe; 32]);
const NOW: Time = Time::from_origin(Duration::from_secs(1000));
/// Of a snapshot, behind everything else.
const HASH_BYTES: usize = 32;

fn registry() -> Registry {
    Registry::opened_by(FEDERATION, Limits::TINY, open)
}

/// Whoever signed it.
fn open(bytes: Bytes, federation: FederationId, limits: &Limits) -> Result<Signed, RecordError> {
    Signed::open_by(bytes, federation, limits, |_, _, _| true)
}

fn allowed(bytes: &[u8]) -> usize {
    wire::ALLOCATION_PER_BYTE * bytes.len() + wire::ALLOCATION_BASE
}

/// Decodes within bounds; what was decoded is written as it is read.
fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let name = std::any::type_name::<T>();
    let (decoded, peak) = peak_of(|| wire::decode_prefix::<T>(bytes, MESSAGE_BYTES_MAX));
    assert!(peak <= allowed(bytes), "{name} took {peak} bytes for {}", bytes.len());
    let Ok((value, _)) = decoded else { return };
    let written = wire::encode(&value);
    let again: T = wire::decode(&written, written.len()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(wire::encode(&again), written, "{name}");
}

/// The messages of a tunnel and those between coordinators. The first byte says which.
pub fn frames(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk()
        && let Ok(header) = FrameHeader::decode(*header)
    {
        assert_eq!(FrameHeader::decode(header.encode()), Ok(header));
    }
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 15 {
        0 => message::<Preface>(bytes),
        1 => message::<Refusal>(bytes),
        2 => message::<Release>(bytes),
        3 => message::<Control>(bytes),
        4 => message::<Hello>(bytes),
        5 => message::<Join>(bytes),
        6 => message::<Welcome>(bytes),
        7 => message::<Reject>(bytes),
        8 => message::<NodeRecord>(bytes),
        9 => message::<GuestDetails>(bytes),
        10 => message::<Lease>(bytes),
        11 => message::<PeerRequest>(bytes),
        12 => message::<PeerResponse>(bytes),
        13 => message::<Appointment>(bytes),
        _ => message::<Answer>(bytes),
    }
}

/// Records of anybody, one behind the other, each with its length in two bytes: into one registry.
pub fn records(bytes: &[u8]) {
    let mut registry = registry();
    for bytes in parts(bytes) {
        let input = Bytes::copy_from_slice(bytes);
        let (opened, peak) = peak_of(|| registry.open(input));
        assert!(peak <= allowed(bytes), "a record took {peak} bytes for {}", bytes.len());
        let Ok(signed) = opened else { continue };
        assert_eq!(signed.bytes(), bytes, "the bytes that were signed are kept");
        let read =
            open(signed.bytes().clone(), FEDERATION, &Limits::TINY).expect("what was read once can be read again");
        assert_eq!(read.hash(), signed.hash());
        // Its outcome is the registry's business; that it was there before changes nothing.
        let _ = registry.insert(NOW, signed.clone(), Source::Passed(Duration::MAX));
        let digest = registry.digest();
        let _ = registry.insert(NOW, signed, Source::Passed(Duration::MAX));
        assert_eq!(registry.digest(), digest, "joining twice is joining once");
    }
    registry.handle_timeout(NOW + Duration::from_secs(3600));
}

/// What a neighbour says in a synchronisation, message by message. The first byte says who began.
pub fn synchronisation(bytes: &[u8]) {
    let Some((who, bytes)) = bytes.split_first() else { return };
    let mut registry = registry();
    let mut session = if who % 2 == 0 { Session::respond() } else { Session::initiate() };
    for message in parts(bytes) {
        while session.poll_transmit(NOW, &registry).is_some() {}
        if session.handle(NOW, &mut registry, message).is_err() {
            return;
        }
    }
    while session.poll_transmit(NOW, &registry).is_some() {}
}

/// A snapshot whose hash is right: a disk can be full of nonsense.
pub fn snapshots(bytes: &[u8]) {
    let mut registry = registry();
    let mut all = snapshot::encode(&registry, NOW);
    all.truncate(all.len() - HASH_BYTES);
    all.extend_from_slice(bytes);
    all.extend_from_slice(&hash(&all));
    if snapshot::restore(all, &mut registry, NOW).is_ok() {
        let written = snapshot::encode(&registry, NOW);
        let mut again = self::registry();
        snapshot::restore(written, &mut again, NOW).expect("what was written can be read");
        assert_eq!(again.digest(), registry.digest());
    }
    // As it is on a disk, without our help.
    let _ = snapshot::restore(bytes.to_vec(), &mut registry, NOW);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (text.parse::<NodeId>(), text.parse::<FederationId>(), ServiceName::new(text));
    }
}

fn hash(bytes: &[u8]) -> [u8; HASH_BYTES] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// Parts with their lengths in two bytes in front; the last one may be cut short.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (part, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
        bytes = rest;
        Some(part)
    })
}
