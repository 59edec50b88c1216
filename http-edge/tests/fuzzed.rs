//! What the fuzzer has found with the heads of requests, again.

#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../../mesh/fuzz/src/replay.rs"]
mod replay;
#[allow(unreachable_pub, reason = "it is the fuzzer's file")]
#[path = "../fuzz/src/request_head.rs"]
mod request_head;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/inputs");

#[test]
fn nothing_that_the_fuzzer_found_fails_again() {
    replay::replay(KEPT, "request_head", request_head::request_head);
}
