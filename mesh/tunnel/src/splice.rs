//! Copies bytes between an exchange stream and a service's connection, both ways in one task, with back-pressure.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use hedgerow_proto::frame::{FrameError, FrameHeader, FrameType, HEADER_BYTES, Release, reset};
use hedgerow_proto::wire;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use crate::frames::protocol;
use crate::link::{BoxStream, StreamReset};
use crate::serve::BoxIo;
use crate::tuning;

/// How an exchange ended.
pub(crate) enum Ended {
    /// The entry has read the whole answer.
    Released(Release),
    /// Both directions have ended, or the service's connection is not fit for another exchange.
    Closed,
}

/// Copies until the entry releases the exchange, gives it up (an error), or the service ends. `input` is what was read
/// from the stream and not yet taken: on return, what belongs to the next exchange.
pub(crate) async fn splice(
    stream: &mut BoxStream,
    input: &mut BytesMut,
    service: &mut BoxIo,
    reused: bool,
) -> io::Result<Ended> {
    let mut state = Splice {
        up: Up { buf: input, payload_left: 0, unflushed: false, state: UpState::Frames },
        down: Down { buf: BytesMut::with_capacity(HEADER_BYTES + tuning::SPLICE_DOWN_BYTES), state: DownState::Read },
        answered: false,
        reused,
    };
    std::future::poll_fn(|cx| state.poll(cx, stream, service)).await
}

struct Splice<'a> {
    up: Up<'a>,
    down: Down,
    answered: bool,
    reused: bool,
}

/// From the stream to the service. The buffer holds what was read and not yet taken; `payload_left` is what is still to come of
/// the DATA frame under way.
struct Up<'a> {
    buf: &'a mut BytesMut,
    payload_left: usize,
    /// The service's connection may hold back some of what was written, as TLS does when its line is full.
    unflushed: bool,
    state: UpState,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum UpState {
    Frames,
    /// The client's bytes have ended: pass the half-close on.
    Shutdown,
    Done,
}

/// From the service to the stream. The buffer holds one frame: header and payload.
struct Down {
    buf: BytesMut,
    state: DownState,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum DownState {
    Read,
    Write,
    /// The service has ended: the last frame says so.
    End,
    Finish,
    Done,
}

impl Splice<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut BoxStream, service: &mut BoxIo) -> Poll<io::Result<Ended>> {
        if let Poll::Ready(code) = stream.poll_stopped(cx) {
            return Poll::Ready(Err(StreamReset(code).into_io()));
        }
        let down = self.poll_down(cx, stream, service)?;
        if let Poll::Ready(release) = self.poll_up(cx, stream, service)? {
            return Poll::Ready(Ok(match self.down.state {
                DownState::Read => Ended::Released(release),
                // The service said more than the entry has read: what it would say next could be taken for another answer.
                DownState::Write => Ended::Released(Release::Close),
                DownState::End | DownState::Finish | DownState::Done => Ended::Closed,
            }));
        }
        if down.is_ready() && self.up.state == UpState::Done {
            return Poll::Ready(Ok(Ended::Closed));
        }
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, stream: &mut BoxStream, service: &mut BoxIo) -> Poll<io::Result<()>> {
        loop {
            match self.down.state {
                DownState::Read => {
                    self.down.buf.clear();
                    self.down.buf.put_bytes(0, HEADER_BYTES);
                    let got = match ready!(poll_read_buf(Pin::new(&mut *service), cx, &mut self.down.buf)) {
                        Ok(got) => got,
                        Err(error) => return Poll::Ready(Err(self.service_broke(stream, error))),
                    };
                    if got == 0 && self.reused && !self.answered {
                        return Poll::Ready(Err(self.service_broke(stream, io::ErrorKind::UnexpectedEof.into())));
                    }
                    self.answered |= got > 0;
                    let (frame_type, state) = match got {
                        0 => (FrameType::End, DownState::End),
                        _ => (FrameType::Data, DownState::Write),
                    };
                    let header = FrameHeader { frame_type, payload_bytes: got };
                    self.down.buf[..HEADER_BYTES].copy_from_slice(&header.encode());
                    self.down.state = state;
                }
                state @ (DownState::Write | DownState::End) => {
                    let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.down.buf))?;
                    self.down.buf.advance(written);
                    if self.down.buf.is_empty() {
                        self.restore_down();
                        self.down.state = if state == DownState::End { DownState::Finish } else { DownState::Read };
                    }
                }
                DownState::Finish => {
                    ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                    self.down.state = DownState::Done;
                }
                DownState::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// `advance` gives the front of a buffer up: take it back, or the room would shrink with each frame.
    fn restore_down(&mut self) {
        self.down.buf.clear();
        self.down.buf.reserve(HEADER_BYTES + tuning::SPLICE_DOWN_BYTES);
    }

    fn service_broke(&self, stream: &mut BoxStream, error: io::Error) -> io::Error {
        let stale = self.reused && !self.answered;
        stream.reset(if stale { reset::STALE_CONNECTION } else { reset::SERVICE_BROKE });
        error
    }

    fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut BoxStream,
        service: &mut BoxIo,
    ) -> Poll<io::Result<Release>> {
        loop {
            match self.up.state {
                UpState::Done => return Poll::Pending,
                UpState::Shutdown => {
                    // A service that has gone already has no use for it.
                    let _ = ready!(Pin::new(&mut *service).poll_shutdown(cx));
                    self.up.state = UpState::Done;
                }
                UpState::Frames => {
                    if self.up.payload_left > 0 && !self.up.buf.is_empty() {
                        let take = self.up.buf.len().min(self.up.payload_left);
                        let written = match ready!(Pin::new(&mut *service).poll_write(cx, &self.up.buf[..take])) {
                            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                            other => other,
                        };
                        match written {
                            Ok(written) => {
                                self.up.unflushed = true;
                                self.up.buf.advance(written);
                                self.up.payload_left -= written;
                            }
                            // It may have answered and closed without reading all: the answer counts, so drop the rest.
                            Err(_) if self.has_answered() => {
                                self.up.buf.advance(take);
                                self.up.payload_left -= take;
                            }
                            Err(error) => return Poll::Ready(Err(self.service_broke(stream, error))),
                        }
                        continue;
                    }
                    if self.up.payload_left == 0
                        && let Some(release) = self.next_frame()?
                    {
                        return Poll::Ready(Ok(release));
                    }
                    if self.up.state == UpState::Shutdown || self.up.payload_left > 0 && !self.up.buf.is_empty() {
                        continue;
                    }
                    // Whether or not it is through: more may come meanwhile.
                    if self.up.unflushed
                        && let Poll::Ready(flushed) = Pin::new(&mut *service).poll_flush(cx)
                    {
                        self.up.unflushed = false;
                        match flushed {
                            Err(error) if !self.has_answered() => {
                                return Poll::Ready(Err(self.service_broke(stream, error)));
                            }
                            Ok(()) | Err(_) => {}
                        }
                    }
                    ready!(self.poll_more(cx, stream))?;
                }
            }
        }
    }

    /// Whether anything has come from the service, its end included.
    fn has_answered(&self) -> bool {
        self.answered || self.down.state != DownState::Read
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, stream: &mut BoxStream) -> Poll<io::Result<()>> {
        self.up.buf.reserve(tuning::SPLICE_UP_BYTES - self.up.buf.len().min(tuning::SPLICE_UP_BYTES - 1));
        let got = ready!(poll_read_buf(Pin::new(stream), cx, self.up.buf))?;
        // Without END it was cut off.
        match got {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Takes headers off the buffer until payload is due, more bytes are needed or the client's have ended; a RELEASE ends the exchange.
    fn next_frame(&mut self) -> io::Result<Option<Release>> {
        while let Some(header) = self.up.buf.first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::decode(*header).map_err(protocol)?;
            match header.frame_type {
                FrameType::Data => {
                    self.up.buf.advance(HEADER_BYTES);
                    self.up.payload_left = header.payload_bytes;
                    if header.payload_bytes > 0 {
                        return Ok(None);
                    }
                }
                FrameType::Release => {
                    if self.up.buf.len() < HEADER_BYTES + header.payload_bytes {
                        return Ok(None);
                    }
                    self.up.buf.advance(HEADER_BYTES);
                    let payload = self.up.buf.split_to(header.payload_bytes);
                    let release = wire::decode(&payload, payload.len()).map_err(|error| protocol(error.into()))?;
                    return Ok(Some(release));
                }
                FrameType::End => {
                    self.up.buf.advance(HEADER_BYTES);
                    self.up.state = UpState::Shutdown;
                    return Ok(None);
                }
                other => return Err(protocol(FrameError::OutOfPlace(other))),
            }
        }
        Ok(None)
    }
}
