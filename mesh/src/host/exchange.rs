//! Requests between coordinators on the wire: one [`PeerRequest`], the end of the stream, one [`PeerResponse`].

use std::io;

use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hedgerow_proto::peer::{self, PEER_MESSAGE_BYTES_MAX, PeerRequest, PeerResponse};
use hedgerow_proto::wire::DecodeError;
use libp2p::{StreamProtocol, request_response};

/// Reads and writes them.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerCodec;

impl request_response::Codec for PeerCodec {
    type Protocol = StreamProtocol;
    /// What is none is handed on as such: the behaviour would tell nobody, and whoever sends it is to be known.
    type Request = Result<PeerRequest, DecodeError>;
    type Response = PeerResponse;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Self::Request> {
        Ok(peer::decode(&read(io).await?))
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<PeerResponse> {
        peer::decode(&read(io).await?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Self::Request,
    ) -> io::Result<()> {
        let request = request.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        io.write_all(&peer::encode(&request)).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: PeerResponse,
    ) -> io::Result<()> {
        io.write_all(&peer::encode(&response)).await
    }
}

/// Whatever comes until the end of the stream, up to the limit: what is claimed allocates nothing.
async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(PEER_MESSAGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
