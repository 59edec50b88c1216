//! The control stream: whole messages, each in a frame.

use std::io;

use bytes::{Buf, BytesMut};
use hedgerow_proto::frame::{Control, FrameError, FrameHeader, FrameType, HEADER_BYTES, message};
use hedgerow_proto::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::link::BoxStream;

/// A control stream, and what has been read of it and not yet taken.
pub(crate) struct ControlStream {
    stream: BoxStream,
    input: BytesMut,
}

impl ControlStream {
    pub(crate) fn new(stream: BoxStream) -> Self {
        Self { stream, input: BytesMut::new() }
    }

    /// The next message, or `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Control>> {
        loop {
            if let Some(control) = self.parse().map_err(protocol)? {
                return Ok(Some(control));
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return if self.input.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Control>, FrameError> {
        let Some(header) = self.input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = FrameHeader::decode(*header)?;
        if header.frame_type != FrameType::Control {
            return Err(FrameError::OutOfPlace(header.frame_type));
        }
        if self.input.len() < HEADER_BYTES + header.payload_bytes {
            return Ok(None);
        }
        self.input.advance(HEADER_BYTES);
        let payload = self.input.split_to(header.payload_bytes);
        Ok(Some(wire::decode(&payload, payload.len())?))
    }

    /// Sends a message. Not cancel-safe: a write that was cut short ends the stream's use.
    pub(crate) async fn write(&mut self, control: &Control) -> io::Result<()> {
        self.stream.write_all(&message(FrameType::Control, control)).await?;
        self.stream.flush().await
    }
}

pub(crate) fn protocol(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
