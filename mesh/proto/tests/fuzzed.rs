//! What the fuzzer has found with the decoders of this package, again.

#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/counting.rs"]
mod counting;
#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/proto.rs"]
mod proto;
#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/replay.rs"]
mod replay;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/inputs");

#[test]
fn nothing_that_the_fuzzer_found_fails_again() {
    replay::replay(KEPT, "frames", proto::frames);
    replay::replay(KEPT, "records", proto::records);
    replay::replay(KEPT, "synchronisation", proto::synchronisation);
    replay::replay(KEPT, "snapshots", proto::snapshots);
}
