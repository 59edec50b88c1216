//! Why a connection is closed, as one end tells the other: HTTP/2 has codes of its own for that and, where a client closes, no words.
//!
//! The code in four bytes, most significant first, then the reason in UTF-8, to the end of the stream.

use crate::link::LinkClosed;

/// Bytes of a reason: a sentence.
const REASON_BYTES_MAX: usize = 512;
/// Bytes of all of it.
pub(super) const WORDS_BYTES_MAX: usize = size_of::<u32>() + REASON_BYTES_MAX;

/// What is said. Nothing where there is no code: then the connection broke.
pub(super) fn encode(closed: &LinkClosed) -> Option<Vec<u8>> {
    let end = closed.reason.floor_char_boundary(REASON_BYTES_MAX);
    Some([closed.code?.to_be_bytes().as_slice(), &closed.reason.as_bytes()[..end]].concat())
}

/// What was said, if it is anything.
pub(super) fn decode(bytes: &[u8]) -> Option<LinkClosed> {
    let (code, reason) = bytes.split_first_chunk()?;
    let reason = &reason[..reason.len().min(REASON_BYTES_MAX)];
    Some(LinkClosed { code: Some(u32::from_be_bytes(*code)), reason: String::from_utf8_lossy(reason).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let closed = LinkClosed { code: Some(2), reason: "not let in".into() };
        let bytes = encode(&closed).unwrap();
        assert_eq!(bytes, b"\0\0\0\x02not let in");
        assert_eq!(decode(&bytes), Some(closed));
        assert_eq!(encode(&LinkClosed { code: None, reason: "broken".into() }), None);
    }

    #[test]
    fn no_bytes_are_too_many_or_too_few() {
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0; 3]), None);
        assert_eq!(decode(&[0xff; 4]).unwrap().code, Some(u32::MAX));
        assert!(decode(&[0xff; 100_000]).unwrap().reason.len() <= 3 * REASON_BYTES_MAX);
        let long = LinkClosed { code: Some(1), reason: "ä".repeat(REASON_BYTES_MAX) };
        assert!(encode(&long).unwrap().len() <= WORDS_BYTES_MAX);
    }
}
