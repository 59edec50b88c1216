//! A WebSocket as a stream of bytes: what is written becomes binary messages, and their borders mean nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use hedgerow_tunnel::BoxIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// The longest frame, and the longest message, that is taken, in bytes. Frames are held whole before noise has proven who sends them;
/// libp2p's own WebSockets send a bulk stream in frames of more than half of this.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// The longest message that is written: what noise writes at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// Bytes read at once, and kept for the next write: there may be many idle connections.
const BUFFER_BYTES: usize = 16 * 1024;
/// Room for a frame's head, and for an answer to a ping.
const HEAD_BYTES: usize = 1024;

/// The stream of bytes.
pub struct ByteStream {
    messages: WebSocketStream<BoxIo>,
    /// What is left of the last message.
    left: Bytes,
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_write_buffer_size(BUFFER_BYTES + WRITE_BYTES_MAX + HEAD_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// Asks for a WebSocket at this URL, over a connection to whoever has it.
pub(super) async fn ask(io: BoxIo, url: &str) -> io::Result<ByteStream> {
    let request = url.into_client_request().map_err(broken)?;
    let (messages, _) =
        tokio_tungstenite::client_async_with_config(request, io, Some(config())).await.map_err(broken)?;
    Ok(ByteStream { messages, left: Bytes::new() })
}

/// Answers whoever asks for one.
pub(super) async fn answer(io: BoxIo) -> io::Result<ByteStream> {
    let messages = tokio_tungstenite::accept_async_with_config(io, Some(config())).await.map_err(broken)?;
    Ok(ByteStream { messages, left: Bytes::new() })
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::NotConnected.into(),
        Error::Http(answer) => io::Error::other(format!("a WebSocket was asked for, and answered {}", answer.status())),
        other => io::Error::other(other),
    }
}

impl futures_util::AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            if !self.left.is_empty() {
                let length = buf.len().min(self.left.len());
                self.left.copy_to_slice(&mut buf[..length]);
                return Poll::Ready(Ok(length));
            }
            match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.left = bytes,
                // Answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(0)),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a message of text")));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
    }
}

impl futures_util::AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // What could not be written before goes first, so that there is room for one message.
        ready!(Pin::new(&mut self.messages).poll_ready(cx)).map_err(broken)?;
        let part = &buf[..buf.len().min(WRITE_BYTES_MAX)];
        Pin::new(&mut self.messages).start_send(Message::Binary(Bytes::copy_from_slice(part))).map_err(broken)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_flush(cx).map_err(broken)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{AsyncReadExt, AsyncWriteExt};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const URL: &str = "ws://entry.test/mesh/peer/00";

    #[tokio::test]
    async fn bytes_arrive_in_order_whatever_their_messages() {
        let (near, far) = duplex(1000);
        let (client, server) = tokio::join!(ask(Box::new(near), URL), answer(Box::new(far)));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let send = async {
            for part in sent.chunks(70_001) {
                client.write_all(part).await.unwrap();
            }
            client.close().await.unwrap();
        };
        let receive = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(send, receive);
        assert!(got == sent);
    }

    /// A server that says these bytes once it has been asked.
    async fn hostile(frame: &[u8]) -> io::Error {
        let (near, mut far) = duplex(1000);
        let server = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                far.read_buf(&mut head).await.unwrap();
            }
            let head = String::from_utf8(head).unwrap();
            let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
            );
            far.write_all(answer.as_bytes()).await.unwrap();
            // The client may hang up before it has heard everything.
            let _ = far.write_all(frame).await;
            far
        };
        let client = async { ask(Box::new(near), URL).await.unwrap().read(&mut [0; 1]).await.unwrap_err() };
        tokio::join!(client, server).0
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused_before_any_of_it_is_held() {
        // A binary frame of 2^28 bytes, of which none come: a dialler that believes it would wait, and hold them.
        let error = hostile(&[0x82, 127, 0, 0, 0, 0, 0x10, 0, 0, 0]).await;
        assert!(error.to_string().contains("too long"), "{error}");
        // One that is in pieces is bounded as a whole.
        let piece = |opcode: u8| [&[opcode, 127, 0, 0, 0, 0, 0, 3, 0, 0][..], &[0; 3 << 16]].concat();
        let error = hostile(&[piece(0x02), piece(0x80)].concat()).await;
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[tokio::test]
    async fn text_is_no_stream_of_bytes() {
        let error = hostile(&[0x81, 2, b'h', b'i']).await;
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_refusal_is_told_by_its_status() {
        let (near, mut far) = duplex(1000);
        let server = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                far.read_buf(&mut head).await.unwrap();
            }
            far.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            far
        };
        let (client, _far) = tokio::join!(ask(Box::new(near), URL), server);
        let error = client.err().unwrap();
        assert!(error.to_string().contains("503"), "{error}");
    }
}
