//! How two coordinators that reach each other only by way of an entry agree on punching a hole: each tells the other where its
//! datagrams come from, over the connection that they have, and then both send at once.
//!
//! ```text
//! one                                                other
//!  │── Appointment(where my datagrams come from) ──▶│
//!  │◀───────────── Agreed(where mine come from) ────│   or Refused(why)
//!  │═════ datagrams, both at once: each opens its own NAT for what comes back ═════│
//! ```
//!
//! It is a protocol of its own beside [`crate::peer`]: an older peer does not speak it, and is not asked. An address that is told here
//! stands in no record: it is of use only to whoever is being waited for there.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::scope::Scope;

pub mod seen;

/// One message, in bytes: it is short.
pub const APPOINTMENT_BYTES_MAX: usize = 1024;
/// Addresses that one side names: one of each family, and as many again for who has two lines.
pub const ADDRESSES_MAX: usize = 4;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appointment {
    /// From where datagrams of the one who asks come, as seen from outside.
    pub addresses: Vec<SocketAddr>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Now: whoever answers so begins at once.
    Agreed {
        /// From where its datagrams come, as seen from outside.
        addresses: Vec<SocketAddr>,
    },
    /// Not now, or not at all.
    Refused(Unable),
}

/// Why there is no appointment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unable {
    /// Not now: too many others, or it is not connected by way of an entry only.
    NotNow,
    /// It does not know from where its datagrams come: no entry sees any.
    NoAddress,
    /// Its datagrams come from another port for each destination, so that none that is told would be the right one.
    Symmetric,
}

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotNow => "it would not just then",
            Self::NoAddress => "no datagrams of its come out",
            Self::Symmetric => "it is behind a symmetric NAT",
        })
    }
}

/// Those of the addresses that a peer names to which datagrams may be sent: of a family in which this node has one itself, and reaching as
/// far as that one. From the world nobody can send this node to its neighbour's printer.
pub(crate) fn usable(theirs: &[SocketAddr], ours: &[SocketAddr]) -> Vec<SocketAddr> {
    let fits = |address: &&SocketAddr| {
        let own = ours.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
        let scope = own.filter_map(|own| Scope::of(own.ip())).max();
        address.port() != 0 && scope.is_some_and(|own| Scope::of(address.ip()).is_some_and(|theirs| theirs >= own))
    };
    theirs.iter().take(ADDRESSES_MAX).filter(fits).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{self, DecodeError, encode};

    fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
        wire::decode_prefix(bytes, APPOINTMENT_BYTES_MAX).map(|(message, _)| message)
    }

    fn addresses(of: &[&str]) -> Vec<SocketAddr> {
        of.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn a_message_is_read_as_it_was_written_and_a_newer_versions_fields_are_skipped() {
        let asked = Appointment { addresses: addresses(&["192.0.2.1:4001", "[2001:db8::1]:4001"]) };
        let mut bytes = encode(&asked);
        assert_eq!(decode(&bytes), Ok(asked.clone()));
        bytes.extend_from_slice(b"more");
        assert_eq!(decode(&bytes), Ok(asked));
        for answer in [Answer::Agreed { addresses: addresses(&["192.0.2.1:1"]) }, Answer::Refused(Unable::Symmetric)] {
            assert_eq!(decode(&encode(&answer)), Ok(answer));
        }
        for garbage in [&b""[..], b"GET / HTTP/1.1\r\n", &[1, 253, 255, 255], &[1, 9]] {
            assert!(decode::<Answer>(garbage).is_err(), "{garbage:?}");
        }
        assert!(matches!(decode::<Answer>(&[1; APPOINTMENT_BYTES_MAX + 1]), Err(DecodeError::TooLong { .. })));
    }

    #[test]
    fn nobody_is_sent_nearer_than_from_where_it_is_seen_itself() {
        let world = addresses(&["203.0.113.7:4001"]);
        let named = ["198.51.100.1:5", "192.168.1.1:53", "127.0.0.1:22", "100.64.0.1:5", "0.0.0.0:5", "224.0.0.1:5"];
        assert_eq!(usable(&addresses(&named), &world), addresses(&["198.51.100.1:5"]));
        assert_eq!(usable(&addresses(&["[2001:db8::1]:5"]), &world), [], "another family");
        assert_eq!(usable(&addresses(&["198.51.100.1:0"]), &world), [], "no port");
        let here = addresses(&["127.0.0.1:4001"]);
        assert_eq!(usable(&addresses(&["127.0.0.1:5"]), &here), addresses(&["127.0.0.1:5"]));
        let many: Vec<SocketAddr> = (1..100).map(|port| SocketAddr::from(([198, 51, 100, 1], port))).collect();
        assert_eq!(usable(&many, &world).len(), ADDRESSES_MAX);
    }
}
