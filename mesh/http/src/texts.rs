//! The texts that a request's heads get on its way, written into one buffer: one allocation for all of them, and clones of
//! them (one for each attempt) that cost none.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;

/// The buffer of one request.
pub(crate) struct Texts(BytesMut);

impl Texts {
    /// With room for so many bytes; it grows if that is too little.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// Writes one text.
    pub(crate) fn concat(&mut self, parts: &[&str]) -> Bytes {
        for part in parts {
            self.0.put_slice(part.as_bytes());
        }
        self.0.split().freeze()
    }

    /// Writes one header's value, if it can be one.
    pub(crate) fn value(&mut self, parts: &[&str]) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(self.concat(parts)).ok()
    }

    /// Writes what something says of itself.
    pub(crate) fn display(&mut self, what: impl fmt::Display) -> Option<HeaderValue> {
        let mut out = &mut self.0;
        fmt::Write::write_fmt(&mut out, format_args!("{what}")).ok()?;
        HeaderValue::from_maybe_shared(self.0.split().freeze()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_do_not_run_into_each_other_also_when_the_buffer_grows() {
        let mut texts = Texts::with_capacity(4);
        let (a, b) = (texts.concat(&["a", "b"]), texts.value(&["longer", " than the buffer"]));
        let c = texts.display(17);
        assert_eq!((&a[..], b, c), (&b"ab"[..], HeaderValue::from_str("longer than the buffer").ok(), Some(17.into())));
        assert_eq!(texts.value(&["no\nvalue"]), None);
    }
}
