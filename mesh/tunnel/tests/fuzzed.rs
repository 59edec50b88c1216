//! What the fuzzer has found with the decoders of this package, again.

#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/replay.rs"]
mod replay;
#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../fuzz/src/streams.rs"]
mod streams;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/inputs");

#[test]
fn nothing_that_the_fuzzer_found_fails_again() {
    replay::replay(KEPT, "streams", streams::streams);
}
