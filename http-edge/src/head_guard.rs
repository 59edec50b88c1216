//! Around a client's HTTP/1 connection: what the HTTP library does not tell us about heads, and does not say to clients.
//!
//! - A request with both `Content-Length` and `Transfer-Encoding` is how requests are smuggled past a proxy that reads the
//!   one, to a server that reads the other (RFC 9112 §6.3). hyper takes the latter, closes the connection afterwards, and
//!   hides the former. So the heads are read along here, as they pass, for these two fields alone.
//! - hyper answers what it cannot parse by itself, without a body. That answer is replaced by ours, which says what is
//!   wrong, and the connection ends with it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hedgerow_http::Problem;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How a request says how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// In one way, or not at all.
    Clear,
    /// In two ways.
    Ambiguous,
}

/// Heads that may have passed and not been asked for: pipelined requests. Beyond it, nothing is read along any more.
const HEADS_WAITING_MAX: usize = 1024;
/// As much of a line as is kept: `transfer-encoding:` and a length fit.
const LINE_BYTES_KEPT: usize = 48;

/// Reads along.
#[derive(Debug, Default)]
struct Scanner {
    place: Place,
    /// The beginning of the line that is coming in.
    line: Vec<u8>,
    /// Whether the head's first line has passed.
    begun: bool,
    content_length: Option<u64>,
    transfer_encoding: bool,
    upgrade: bool,
    heads: VecDeque<Framing>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Head,
    /// So many bytes of a body are still to come.
    Body(u64),
    /// Somewhere in a body of unknown length, or behind an upgrade: heads cannot be told any more.
    Lost,
}

impl Scanner {
    fn take_in(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.place {
                Place::Lost => return,
                Place::Body(left) => {
                    let passed = (*left).min(bytes.len() as u64);
                    *left -= passed;
                    if *left == 0 {
                        self.place = Place::Head;
                    }
                    bytes = &bytes[passed as usize..];
                }
                Place::Head => {
                    let end = bytes.iter().position(|b| *b == b'\n');
                    let part = &bytes[..end.unwrap_or(bytes.len())];
                    let room = LINE_BYTES_KEPT.saturating_sub(self.line.len());
                    self.line.extend_from_slice(&part[..part.len().min(room)]);
                    let Some(end) = end else { return };
                    bytes = &bytes[end + 1..];
                    self.line_ended();
                }
            }
        }
    }

    fn line_ended(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.is_empty() {
            // Empty lines in front of a request are passed over (RFC 9112 §2.2).
            if self.begun {
                self.head_ended();
            }
        } else if !self.begun {
            self.begun = true;
        } else {
            self.field(&line);
        }
        line.clear();
        self.line = line;
    }

    fn field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|b| *b == b':') else { return };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            // What is no number is refused by hyper, and the connection ends.
            self.content_length = Some(length.unwrap_or(0));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.transfer_encoding = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        }
    }

    fn head_ended(&mut self) {
        let both = self.content_length.is_some() && self.transfer_encoding;
        self.heads.push_back(if both { Framing::Ambiguous } else { Framing::Clear });
        let unknown = self.transfer_encoding || self.upgrade || self.heads.len() >= HEADS_WAITING_MAX;
        self.place = match self.content_length {
            _ if unknown => Place::Lost,
            None | Some(0) => Place::Head,
            Some(length) => Place::Body(length),
        };
        (self.begun, self.content_length, self.transfer_encoding, self.upgrade) = (false, None, false, false);
    }
}

/// Asked once for each request, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heads(Arc<Mutex<Scanner>>);

impl Heads {
    /// How the request that is being handled now says how long it is.
    pub(crate) fn next(&self) -> Framing {
        let mut scanner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing known: the connection is behind something that hyper closes it for, if it is not clear.
        scanner.heads.pop_front().unwrap_or(Framing::Clear)
    }

    fn take_in(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_in(bytes);
    }
}

/// The connection, with its heads read along and hyper's own answers replaced.
pub(crate) struct HeadGuard<S> {
    io: S,
    heads: Heads,
    header_bytes_max: usize,
    last_words: Option<LastWords>,
}

/// Our answer in the place of hyper's, and how much of it has gone out.
struct LastWords {
    bytes: Vec<u8>,
    sent: usize,
}

impl<S> HeadGuard<S> {
    pub(crate) fn new(io: S, header_bytes_max: usize) -> (Self, Heads) {
        let heads = Heads::default();
        (Self { io, heads: heads.clone(), header_bytes_max, last_words: None }, heads)
    }
}

/// The status of an answer that hyper made by itself. Ours all carry a request id.
fn automatic(bytes: &[u8]) -> Option<StatusCode> {
    let status = bytes.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    let head = bytes.strip_suffix(b"\r\n\r\n")?;
    let status = StatusCode::from_bytes(status).ok().filter(StatusCode::is_client_error)?;
    let has = |wanted: &[u8]| head.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted));
    (head.len() < 512 && has(b"\r\ncontent-length: 0") && !has(b"\r\nx-request-id:")).then_some(status)
}

fn problem(status: StatusCode, header_bytes_max: usize) -> Problem {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Problem::new(
            status,
            "head-too-large",
            "Request head too large",
            format!(
                "the request's head is longer than the limit of {header_bytes_max} bytes, or has more than 100 fields"
            ),
        ),
        StatusCode::URI_TOO_LONG => Problem::new(
            status,
            "target-too-long",
            "Request target too long",
            "the request's target is longer than 65,534 bytes",
        ),
        other => Problem::new(
            other,
            "malformed",
            "Malformed request",
            "the request is not HTTP/1.1, or its head breaks the rules of RFC 9112; nothing was done, and the connection \
             is closed",
        ),
    }
}

fn last_words(status: StatusCode, header_bytes_max: usize) -> Vec<u8> {
    // Strings and numbers: there is nothing in it that could fail.
    let body = serde_json::to_vec(&problem(status, header_bytes_max)).unwrap_or_default();
    let reason = status.canonical_reason().unwrap_or("Bad Request");
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        body.len()
    );
    [head.into_bytes(), body].concat()
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.heads.take_in(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> HeadGuard<S> {
    /// Sends what is left of our answer.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(words) = &mut self.last_words {
            while words.sent < words.bytes.len() {
                let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &words.bytes[words.sent..]))?;
                if sent == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                words.sent += sent;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether these bytes are replaced.
    fn replaces(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.last_words.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Some(status) = automatic(bytes) else { return Ok(false) };
        self.last_words = Some(LastWords { bytes: last_words(status, self.header_bytes_max), sent: 0 });
        Ok(true)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(bytes)? { Poll::Ready(Ok(bytes.len())) } else { Pin::new(&mut self.io).poll_write(cx, bytes) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        match first {
            Some(first) if self.replaces(first)? => Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum())),
            _ => Pin::new(&mut self.io).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_last_words(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_last_words(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLEAR: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
    const SIZED: &str = "POST / HTTP/1.1\r\nContent-Length: 31\r\n\r\ncontent-length: 1\ntransfer-enco";
    const LENGTH_FIRST: &str = "POST / HTTP/1.1\r\ncontent-length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    const LENGTH_LAST: &str = "POST / HTTP/1.1\nTRANSFER-ENCODING: chunked\nCONTENT-LENGTH:4\n\n0\r\n\r\n";

    fn heads(stream: &str, cuts: &[usize]) -> Vec<Framing> {
        let mut scanner = Scanner::default();
        let mut rest = stream.as_bytes();
        for cut in cuts {
            let (part, tail) = rest.split_at((*cut).min(rest.len()));
            scanner.take_in(part);
            rest = tail;
        }
        scanner.take_in(rest);
        scanner.heads.into()
    }

    #[test]
    fn two_lengths_are_noticed_in_either_order() {
        for stream in [LENGTH_FIRST, LENGTH_LAST] {
            assert_eq!(heads(stream, &[]), [Framing::Ambiguous]);
            assert_eq!(heads(&format!("{CLEAR}\r\n{stream}"), &[]), [Framing::Clear, Framing::Ambiguous]);
        }
    }

    #[test]
    fn what_stands_in_a_body_is_no_head() {
        assert_eq!(heads(&format!("{SIZED}{SIZED}{CLEAR}"), &[]), [Framing::Clear; 3]);
    }

    #[test]
    fn an_upgraded_connection_is_not_read_along() {
        let upgrade = "GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(heads(&format!("{upgrade}{}", "a\n\n".repeat(5000)), &[]), [Framing::Clear]);
        assert!(heads(&"a\n\n".repeat(5000), &[]).len() <= HEADS_WAITING_MAX, "memory is bounded");
    }

    #[test]
    fn only_what_hyper_says_by_itself_is_replaced() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        assert_eq!(automatic(own), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        for ours in [
            "HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 1\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\nHTTP/1.1",
            "",
        ] {
            assert_eq!(automatic(ours.as_bytes()), None, "{ours:?}");
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_come_makes_no_difference(cuts in prop::collection::vec(0usize..20, 0..40)) {
            let stream = format!("{CLEAR}{SIZED}\r\n{SIZED}{LENGTH_LAST}");
            prop_assert_eq!(heads(&stream, &cuts), heads(&stream, &[]));
        }

        #[test]
        fn no_bytes_panic_or_grow(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let mut scanner = Scanner::default();
            scanner.take_in(&bytes);
            prop_assert!(scanner.line.len() <= LINE_BYTES_KEPT && scanner.heads.len() <= HEADS_WAITING_MAX);
        }
    }
}
