//! Randomness by name: each use has a generator of its own, so that drawing one number more in one place does not change what
//! happens everywhere else.

use sha2::{Digest, Sha256};

/// The generator for `what` (and the `index`-th of its kind) in the run of this seed.
pub fn stream(seed: u64, what: &str, index: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(number(seed, what, index))
}

/// One number, for seeds that are handed on.
pub fn number(seed: u64, what: &str, index: u64) -> u64 {
    let bytes = bytes(seed, what, index);
    u64::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
}

/// 32 bytes, for keys.
pub fn bytes(seed: u64, what: &str, index: u64) -> [u8; 32] {
    let hash = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(index.to_be_bytes());
    hash.chain_update(what.as_bytes()).finalize().into()
}

/// A draw from the normal distribution with mean 0 and deviation 1 (Box and Muller, "A note on the generation of random normal
/// deviates", 1958).
pub fn normal(random: &mut fastrand::Rng) -> f64 {
    let (one, other) = (1.0 - random.f64(), random.f64());
    (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
}

/// A draw from the exponential distribution of this mean: the time to the next of many independent events.
pub fn exponential(random: &mut fastrand::Rng, mean: f64) -> f64 {
    -(1.0 - random.f64()).ln() * mean
}
