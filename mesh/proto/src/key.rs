//! Ed25519 keys (RFC 8032): a node's identity, and the signatures under what it says.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::id::{FederationId, NodeId};

/// The length of a signature in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// An Ed25519 signature.
pub type Signature = [u8; SIGNATURE_BYTES];

/// A secret key. Prints nothing of itself, and is wiped when it is dropped.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of a 32-byte seed (RFC 8032 §5.1.5), which must come from a cryptographic source of randomness.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The seed, for the key file and for TLS.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// Signs these bytes. The caller puts a domain in front of them, so that no signature serves two purposes.
    pub fn sign(&self, bytes: &[u8]) -> Signature {
        self.0.sign(bytes).to_bytes()
    }

    /// A 32-byte secret for one `purpose`, derived from the seed by SHA-256: reset keys and the like, which must be the
    /// same after a restart and must not reveal the seed.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        hash.update(b"hedgerow-derive-v1\0");
        hash.update((purpose.len() as u64).to_be_bytes());
        hash.update(purpose.as_bytes());
        hash.update(self.seed());
        hash.finalize().into()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {:?})", self.id())
    }
}

impl NodeId {
    /// Whether `signature` is this key's over exactly `bytes` (strict: no small-order keys, RFC 8032 §8.4 cofactorless).
    pub fn verifies(&self, bytes: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(bytes, &ed25519_dalek::Signature::from_bytes(signature)).is_ok())
    }
}

impl FederationId {
    /// The federation of this public key.
    pub fn of_key(key: &NodeId) -> Self {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        hash.update(b"hedgerow-federation-v1\0");
        hash.update(key.0);
        Self(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_exactly_these_bytes_and_this_key() {
        let key = SecretKey::from_seed([7; 32]);
        let signature = key.sign(b"hello");
        assert!(key.id().verifies(b"hello", &signature));
        assert!(!key.id().verifies(b"hellp", &signature));
        assert!(!SecretKey::from_seed([8; 32]).id().verifies(b"hello", &signature));
        assert!(!NodeId([0; 32]).verifies(b"hello", &signature));
    }

    #[test]
    fn secrets_do_not_print_and_purposes_do_not_mix() {
        let key = SecretKey::from_seed([7; 32]);
        assert!(!format!("{key:?}").contains("070707"));
        assert_ne!(key.derive("a"), key.derive("b"));
        assert_ne!(key.derive("a"), key.seed());
    }
}
