//! What the fuzzer gives its bytes to. `.ci/fuzz` runs it; what it starts from and what it has found is in `inputs/`, and an ordinary test
//! of the entry gives it to this function again.

pub mod request_head;
