//! Text with a check under it: small files of lines, in which whatever has changed since they were written is noticed.
//!
//! ```text
//! hedgerow epoch v1
//! epoch 7
//! check 64 hexadecimal digits, the SHA-256 of everything above
//! ```

use hedgerow_proto::id::NodeId;
use sha2::{Digest, Sha256};

/// What stands before the hash.
const CHECK: &str = "check ";

/// Why such a file is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damaged {
    /// The check is missing or does not fit.
    #[error("its check does not fit: it was torn or changed")]
    Check,
    /// The check fits, and above it stands something else: another program wrote it, or another version.
    #[error("it holds something else than this program writes there")]
    Content,
}

/// The text, whole lines, with its check.
pub(super) fn seal(text: &str) -> String {
    format!("{text}{CHECK}{}\n", hash(text))
}

/// The text of a file that [`seal`] made.
pub(super) fn open(content: &[u8]) -> Result<&str, Damaged> {
    let whole = std::str::from_utf8(content).map_err(|_| Damaged::Check)?;
    let (text, said) = whole.rsplit_once(CHECK).ok_or(Damaged::Check)?;
    match said.strip_suffix('\n') {
        Some(said) if said == hash(text) => Ok(text),
        _ => Err(Damaged::Check),
    }
}

/// In the form of an id, which is 32 bytes as well.
fn hash(text: &str) -> String {
    NodeId(Sha256::digest(text).into()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_cut_or_flipped_anywhere_is_noticed() {
        for text in ["", "hedgerow epoch v1\nepoch 7\n", "check \n"] {
            let sealed = seal(text).into_bytes();
            assert_eq!(open(&sealed), Ok(text));
            for end in 0..sealed.len() {
                assert_eq!(open(&sealed[..end]), Err(Damaged::Check), "{text:?} cut at {end}");
            }
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&flipped), Err(Damaged::Check), "{text:?} flipped at bit {bit}");
            }
            assert_eq!(open(&[sealed.as_slice(), b"\n"].concat()), Err(Damaged::Check));
        }
    }
}
