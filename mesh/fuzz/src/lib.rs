//! What the fuzzer gives its bytes to. `.ci/fuzz` runs it; what it starts from and what it has found is in `inputs/`, by target, and
//! ordinary tests of the packages give it to these functions again.

pub mod contract;
pub mod counting;
pub mod proto;
pub mod streams;
