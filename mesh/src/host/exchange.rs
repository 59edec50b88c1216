//! Requests between coordinators on the wire: one message, the end of the stream, one message back.

use std::io;
use std::marker::PhantomData;

use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hedgerow_proto::appointment::{APPOINTMENT_BYTES_MAX, Answer, Appointment};
use hedgerow_proto::peer::{PEER_MESSAGE_BYTES_MAX, PeerRequest, PeerResponse};
use hedgerow_proto::wire::{self, DecodeError};
use libp2p::{StreamProtocol, request_response};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What coordinators ask each other.
pub(super) type PeerCodec = MessageCodec<PeerRequest, PeerResponse>;
/// When and where to punch a hole.
pub(super) type AppointmentCodec = MessageCodec<Appointment, Answer>;

/// Reads and writes them.
#[derive(Debug)]
pub(super) struct MessageCodec<Q, A> {
    bytes_max: usize,
    messages: PhantomData<fn() -> (Q, A)>,
}

impl PeerCodec {
    pub(super) fn peer() -> Self {
        Self { bytes_max: PEER_MESSAGE_BYTES_MAX, messages: PhantomData }
    }
}

impl AppointmentCodec {
    pub(super) fn appointment() -> Self {
        Self { bytes_max: APPOINTMENT_BYTES_MAX, messages: PhantomData }
    }
}

// Not derived: the messages need not be so.
impl<Q, A> Clone for MessageCodec<Q, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q, A> Copy for MessageCodec<Q, A> {}

impl<Q, A> request_response::Codec for MessageCodec<Q, A>
where
    Q: Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    type Protocol = StreamProtocol;
    /// What is none is handed on as such: the behaviour would tell nobody, and whoever sends it is to be known.
    type Request = Result<Q, DecodeError>;
    type Response = A;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Self::Request> {
        Ok(decode(&read(io, self.bytes_max).await?, self.bytes_max))
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<A> {
        decode(&read(io, self.bytes_max).await?, self.bytes_max)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Self::Request,
    ) -> io::Result<()> {
        let request = request.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        io.write_all(&wire::encode(&request)).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: A,
    ) -> io::Result<()> {
        io.write_all(&wire::encode(&response)).await
    }
}

/// Further fields of a newer version are skipped.
fn decode<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, DecodeError> {
    wire::decode_prefix(bytes, bytes_max).map(|(message, _)| message)
}

/// Whatever comes until the end of the stream, up to the limit: what is claimed allocates nothing.
async fn read(io: &mut (impl AsyncRead + Unpin + Send), bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
