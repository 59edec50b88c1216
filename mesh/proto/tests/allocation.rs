//! No input makes a decoder allocate more than 4 × its length + 64 KiB. Counted, by an allocator that counts what this
//! thread holds.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{Control, Join, MESSAGE_BYTES_MAX, Preface, Welcome};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::peer::{PeerRequest, PeerResponse};
use hedgerow_proto::record::{GuestDetails, NodeRecord, Signed};
use hedgerow_proto::registry::Registry;
use hedgerow_proto::sync::Session;
use hedgerow_proto::wire;

#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/counting.rs"]
mod counting;

use counting::peak_of;

const FEDERATION: FederationId = FederationId([0xfe; 32]);

fn decode_all(bytes: &[u8]) {
    fn one<T: serde::de::DeserializeOwned>(bytes: &[u8]) {
        let allowed = wire::ALLOCATION_PER_BYTE * bytes.len() + wire::ALLOCATION_BASE;
        let ((), peak) = peak_of(|| drop(wire::decode_prefix::<T>(bytes, MESSAGE_BYTES_MAX)));
        assert!(peak <= allowed, "{} took {peak} bytes for {} bytes", std::any::type_name::<T>(), bytes.len());
    }
    one::<Control>(bytes);
    one::<Preface>(bytes);
    one::<Join>(bytes);
    one::<Welcome>(bytes);
    one::<NodeRecord>(bytes);
    one::<GuestDetails>(bytes);
    one::<PeerRequest>(bytes);
    one::<PeerResponse>(bytes);
    // What could be nested in something of a later version.
    one::<Vec<Vec<u8>>>(bytes);
    one::<Vec<String>>(bytes);
    one::<Vec<[u64; 16]>>(bytes);
    one::<Vec<()>>(bytes);
    one::<std::collections::BTreeMap<u8, Vec<u64>>>(bytes);

    let allowed = wire::ALLOCATION_PER_BYTE * bytes.len() + wire::ALLOCATION_BASE;
    let input = Bytes::copy_from_slice(bytes);
    let ((), peak) = peak_of(|| drop(Signed::open(input, FEDERATION, &Limits::PRODUCTION)));
    assert!(peak <= allowed, "a record took {peak} bytes");
    let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
    let now = Time::from_origin(Duration::from_secs(1));
    let mut session = Session::respond();
    let ((), peak) = peak_of(|| drop(session.handle(now, &mut registry, bytes)));
    assert!(peak <= allowed, "a message of the synchronisation took {peak} bytes for {}", bytes.len());
}

#[test]
fn no_input_takes_more_than_four_times_its_length_and_64_kib() {
    let lengths: [&[u8]; 6] = [
        &[0],
        &[250],
        &[251, 0xff, 0xff],
        &[252, 0xff, 0xff, 0xff, 0x7f],
        &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[1],
    ];
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..3000 {
        let size = [8, 64, 1000, 48 * 1024, MESSAGE_BYTES_MAX - 1][round % 5];
        let mut bytes = vec![wire::VERSION];
        // Variants first, then lengths that promise much, then zeros, which are the shortest elements there are.
        bytes.extend((0..random.usize(..4)).map(|_| random.u8(..10)));
        while bytes.len() < size {
            match random.u8(..4) {
                0 => bytes.extend_from_slice(lengths[random.usize(..lengths.len())]),
                1 => bytes.extend(std::iter::repeat_n(0, random.usize(..size))),
                2 => bytes.extend((0..random.usize(..40)).map(|_| random.u8(..))),
                _ => bytes.push(random.u8(..)),
            }
        }
        bytes.truncate(size);
        decode_all(&bytes);
    }
    // A text of most of the length, and behind it as many empty ones as make their sequence grow just once more: old and new
    // stand beside the text for a moment.
    for doublings in 10..16 {
        let empty = 1 << doublings;
        let sequence = 3 * size_of::<String>() * empty;
        for slack in [1, 500, 2000] {
            let len = sequence.saturating_sub(wire::ALLOCATION_BASE) / wire::ALLOCATION_PER_BYTE + slack;
            let Some(text) = len.checked_sub(empty + 16).filter(|_| len < MESSAGE_BYTES_MAX) else { continue };
            let mut list = vec![String::new(); empty + 1];
            list[0] = "x".repeat(text);
            decode_all(&wire::encode(&list));
        }
    }
    // Each length in front of nothing, and of zeros, at each of the first places.
    for length in lengths {
        for place in 1..12 {
            for rest in [0, MESSAGE_BYTES_MAX - 64] {
                let mut bytes = vec![0; place];
                bytes[0] = wire::VERSION;
                bytes.extend_from_slice(length);
                bytes.extend(std::iter::repeat_n(0, rest));
                decode_all(&bytes);
            }
        }
    }
}
