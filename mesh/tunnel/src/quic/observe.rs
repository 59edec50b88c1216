//! Tells whoever asks the entry's UDP port for something else than a tunnel from where it has come. A coordinator's libp2p host does, to learn
//! how its own socket is seen from outside: what STUN (RFC 8489) is for, without a port and a protocol more.
//!
//! ```text
//! libp2p's socket ── Initial, ALPN libp2p ──▶ NAT ──▶ the entry's tunnel port
//!                 ◀── CONNECTION_CLOSE, no such protocol; reason: where the Initial came from ──
//! ```
//!
//! The answer goes to where the question came from, inside the handshake that it ends, and is shorter than the question: nobody learns of
//! another's address by it, and nothing is sent to who has not asked for more. It costs no signature, since the TLS library refuses the
//! protocol before it makes one.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

use hedgerow_proto::appointment::seen;
use quinn_proto::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};

/// The TLS alert `no_application_protocol` (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Whether a handshake has ended so.
pub(super) fn was_told(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::TransportError(error) if wants_another_protocol(error))
}

fn wants_another_protocol(error: &TransportError) -> bool {
    error.code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL)
}

/// The configuration for one connection, which comes from this address.
pub(super) struct Observing {
    pub(super) inner: Arc<dyn ServerConfig>,
    pub(super) from: SocketAddr,
}

impl ServerConfig for Observing {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.inner.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.inner.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        Box::new(Observed { inner: self.inner.clone().start_session(version, params), from: self.from })
    }
}

struct Observed {
    inner: Box<dyn Session>,
    from: SocketAddr,
}

impl Session for Observed {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf).map_err(|error| match wants_another_protocol(&error) {
            true => TransportError { reason: seen::say(self.from), ..error },
            false => error,
        })
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}
