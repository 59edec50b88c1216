//! Bytes that are copied as a whole. Serde reads and writes a `Vec<u8>` one byte after the other, each through every layer of the
//! decoder, which made up a third of the work of a synchronisation in an unoptimised build. On the wire both are the same: a length, and the
//! bytes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes as one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob<T>(pub(crate) T);

impl<T: AsRef<[u8]>> Serialize for Blob<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_ref())
    }
}

impl<'de, T: From<Vec<u8>>> Deserialize<'de> for Blob<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole<T>(PhantomData<T>);
        impl<T: From<Vec<u8>>> Visitor<'_> for Whole<T> {
            type Value = Blob<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, given: &[u8]) -> Result<Blob<T>, E> {
                Ok(Blob(T::from(given.to_vec())))
            }
        }
        deserializer.deserialize_byte_buf(Whole(PhantomData))
    }
}

/// For `#[serde(with = "…")]` of a `Vec<u8>`.
pub(crate) mod one {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        Blob(bytes).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Blob::deserialize(deserializer).map(|blob| blob.0)
    }
}

/// For `#[serde(with = "…")]` of a `Vec<Vec<u8>>`.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(Blob))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let blobs = Vec::<Blob<Vec<u8>>>::deserialize(deserializer)?;
        Ok(blobs.into_iter().map(|blob| blob.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Plain {
        bytes: Vec<u8>,
        list: Vec<Vec<u8>>,
    }

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Whole {
        #[serde(with = "one")]
        bytes: Vec<u8>,
        #[serde(with = "list")]
        list: Vec<Vec<u8>>,
    }

    #[test]
    fn on_the_wire_it_is_what_a_vector_of_bytes_is() {
        let (bytes, list) = (vec![7; 300], vec![vec![], vec![1, 250, 251, 255], vec![0; 70_000]]);
        let plain = wire::encode(&Plain { bytes: bytes.clone(), list: list.clone() });
        let whole = Whole { bytes, list };
        assert_eq!(wire::encode(&whole), plain);
        assert_eq!(wire::decode(&plain, plain.len()), Ok(whole));
        for cut in [1, 2, 200, plain.len() - 1] {
            assert!(wire::decode::<Whole>(&plain[..cut], plain.len()).is_err(), "cut to {cut} bytes");
        }
    }
}
