//! What one coordinator asks of another, and what it answers: one request, one response, each encoded by [`crate::wire`].
//!
//! ```text
//! Push(records)    ──▶ Taken        the sender's own words, in a hurry and with an acknowledgement
//! Sync(turn)       ──▶ Sync(turn)   one turn of a [`crate::sync::Session`] each way, until both have nothing to say
//! Guest(worker id) ──▶ Guest(…)     who knows of this agent? Asked of all before anybody is told that nobody does
//! Call(…)          ──▶ Called(…)    a call of the existing contract, for the coordinator that holds the agent
//! ```

use serde::{Deserialize, Serialize};

use crate::wire::{self, DecodeError, blob};

/// One request or response, in bytes: a whole turn of a synchronisation fits ([`crate::limits::Limits::sync_message_bytes_max`]
/// times the messages of a turn).
pub const PEER_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Signed records that the peer says itself, or that those say whose home it is: fresh ones.
    Push(#[serde(with = "blob::list")] Vec<Vec<u8>>),
    /// A turn of a synchronisation; `session` is new for each, so that what is left of an earlier one does not matter.
    Sync {
        /// Which session, among those of this peer.
        session: u64,
        /// The messages of the turn, in order.
        #[serde(with = "blob::list")]
        messages: Vec<Vec<u8>>,
    },
    /// What is known of an agent without a key of ours?
    Guest(String),
    /// A call of the existing contract about an agent that the peer believes to be held here.
    Call(Call),
}

/// A call of the existing contract, passed on once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The method, in capitals.
    pub method: String,
    /// The path.
    pub path: String,
    /// The body, as it came.
    #[serde(with = "blob::one")]
    pub body: Vec<u8>,
    /// How often it has been passed on, this time included.
    pub hops: u8,
    /// Whether the peer is to speak for the agent from now on, whoever does so now: the one that does is about to leave.
    pub take_over: bool,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerResponse {
    /// How many of the pushed records are held now.
    Taken(u32),
    /// The other side's turn.
    Sync(#[serde(with = "blob::list")] Vec<Vec<u8>>),
    /// Signed records about the agent, each with its age in milliseconds; none if it is not known.
    Guest(Vec<(u64, Vec<u8>)>),
    /// The answer to the call.
    Called {
        /// The status of HTTP.
        status: u16,
        /// The body.
        #[serde(with = "blob::one")]
        body: Vec<u8>,
        /// What the peer has signed about the agent, so that whoever asked finds it at once.
        #[serde(with = "blob::list")]
        records: Vec<Vec<u8>>,
    },
    /// Not now, or not from this peer.
    Refused,
}

/// Encodes a request or a response.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    wire::encode(message)
}

/// Decodes a request or a response; further fields of a newer version are skipped.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    wire::decode_prefix(bytes, PEER_MESSAGE_BYTES_MAX).map(|(message, _)| message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn a_whole_turn_of_a_synchronisation_fits() {
        let limits = Limits::PRODUCTION;
        let messages = vec![vec![0xff; limits.sync_message_bytes_max]; crate::sync::MESSAGES_PER_TURN];
        let request = PeerRequest::Sync { session: u64::MAX, messages };
        let bytes = encode(&request);
        assert!(bytes.len() <= PEER_MESSAGE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(decode::<PeerRequest>(&bytes), Ok(request));
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\n", &[1, 9, 9, 9], &[1, 1, 253, 1]] {
            assert!(decode::<PeerRequest>(bytes).is_err(), "{bytes:?}");
        }
        assert!(matches!(
            decode::<PeerRequest>(&vec![1; PEER_MESSAGE_BYTES_MAX + 1]),
            Err(DecodeError::TooLong { .. })
        ));
    }
}
