//! Bodies on their way: a request's, kept as far as it can be sent again, and an answer's, whose end releases the
//! service's slot and whose drop cancels.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::connection::Active;

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's body broke off.
    #[error("the client's body broke off: {0}")]
    Client(String),
    /// The client's body is longer than it may be.
    #[error("the client's body is over the limit of {max_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// The service's answer broke off.
    #[error("the service's answer broke off: {0}")]
    Service(#[source] hyper::Error),
    /// The request has been given up for another attempt.
    #[error("given up for another attempt")]
    Superseded,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as the server hands it over.
pub struct RequestBody(Source);

enum Source {
    Empty,
    Incoming(Incoming),
    Boxed(Pin<Box<dyn Body<Data = Bytes, Error = AnyError>>>),
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self(Source::Empty)
    }

    /// Any body.
    pub fn boxed<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<AnyError>,
    {
        Self(Source::Boxed(Box::pin(http_body_util::BodyExt::map_err(body, Into::into))))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        match &mut self.0 {
            Source::Empty => Poll::Ready(None),
            Source::Incoming(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|error| error.to_string())))
            }
            Source::Boxed(body) => {
                body.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|error| error.to_string())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Incoming(body) => body.is_end_stream(),
            Source::Boxed(body) => body.is_end_stream(),
        }
    }

    fn exact_bytes(&self) -> Option<u64> {
        match &self.0 {
            Source::Empty => Some(0),
            Source::Incoming(body) => body.size_hint().exact(),
            Source::Boxed(body) => body.size_hint().exact(),
        }
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self(Source::Incoming(body))
    }
}

/// How much of a request's body is read and kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UploadLimits {
    /// Kept to be sent again; not more than this is read before ACCEPT.
    pub(crate) replay_bytes_max: usize,
    /// Taken at all.
    pub(crate) bytes_max: Option<u64>,
    /// Whether it is worth keeping after ACCEPT: an idempotent request may still be sent again.
    pub(crate) keep_after_accept: bool,
}

/// A request's body over all of its attempts. One attempt reads it at a time.
pub(crate) struct Upload(Option<Rc<RefCell<Kept>>>);

struct Kept {
    source: RequestBody,
    exact_bytes: Option<u64>,
    limits: UploadLimits,
    /// What was read, from the beginning if `whole`.
    chunks: Vec<Bytes>,
    kept_bytes: usize,
    whole: bool,
    read_bytes: u64,
    /// The last that was asked of the client has not come yet.
    waits: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
    accepted: bool,
    failure: Option<Failed>,
    attempt: u32,
    /// The reader that waits for ACCEPT.
    waker: Option<Waker>,
}

#[derive(Debug, Clone)]
enum Failed {
    Client(String),
    TooLarge(u64),
}

impl Failed {
    fn error(&self) -> BodyError {
        match self {
            Self::Client(why) => BodyError::Client(why.clone()),
            Self::TooLarge(max_bytes) => BodyError::TooLarge { max_bytes: *max_bytes },
        }
    }
}

impl Upload {
    pub(crate) fn new(source: RequestBody, limits: UploadLimits) -> Result<Self, BodyError> {
        if source.is_end_stream() {
            return Ok(Self(None));
        }
        let exact_bytes = source.exact_bytes();
        if let (Some(bytes), Some(max_bytes)) = (exact_bytes, limits.bytes_max)
            && bytes > max_bytes
        {
            return Err(BodyError::TooLarge { max_bytes });
        }
        Ok(Self(Some(Rc::new(RefCell::new(Kept {
            source,
            exact_bytes,
            limits,
            chunks: Vec::new(),
            kept_bytes: 0,
            whole: true,
            read_bytes: 0,
            waits: false,
            trailers: None,
            ended: false,
            accepted: false,
            failure: None,
            attempt: 0,
            waker: None,
        })))))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Begins another attempt, from the first byte; the one before reads no more.
    pub(crate) fn attempt(&self) -> AttemptBody {
        let Some(kept) = &self.0 else { return AttemptBody { kept: None, attempt: 0, next: 0 } };
        let mut this = kept.borrow_mut();
        debug_assert!(this.whole, "the retry rule does not send a body again that is gone");
        this.attempt += 1;
        this.accepted = false;
        AttemptBody { kept: Some(kept.clone()), attempt: this.attempt, next: 0 }
    }

    /// The node has accepted: more may be read than can be sent again.
    pub(crate) fn accepted(&self) {
        if let Some(kept) = &self.0 {
            let mut this = kept.borrow_mut();
            this.accepted = true;
            if let Some(waker) = this.waker.take() {
                waker.wake();
            }
        }
    }

    /// Whether every byte that was read is still here.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|kept| kept.borrow().whole)
    }

    /// Whether the client has sent all of it.
    pub(crate) fn is_sent(&self) -> bool {
        self.0.as_ref().is_none_or(|kept| kept.borrow().ended)
    }

    /// How much the client has sent, while more is waited for.
    pub(crate) fn waits_behind(&self) -> Option<u64> {
        let kept = self.0.as_ref()?.borrow();
        (kept.waits && !kept.ended).then_some(kept.read_bytes)
    }

    /// Why the client's side of it failed, if it did.
    pub(crate) fn failure(&self) -> Option<BodyError> {
        self.0.as_ref().and_then(|kept| kept.borrow().failure.as_ref().map(Failed::error))
    }
}

/// A request's body as one attempt sends it.
pub(crate) struct AttemptBody {
    kept: Option<Rc<RefCell<Kept>>>,
    attempt: u32,
    next: usize,
}

impl Kept {
    fn poll(
        &mut self,
        attempt: u32,
        next: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = self.chunks.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if self.ended {
            let trailers = (*next == self.chunks.len()).then(|| self.trailers.clone()).flatten();
            // Trailers count as one chunk more, so that they are sent once.
            *next += 1;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if let Some(failed) = &self.failure {
            return Poll::Ready(Some(Err(failed.error())));
        }
        if !self.accepted && self.kept_bytes >= self.limits.replay_bytes_max {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let polled = self.source.poll_frame(cx);
        self.waits = polled.is_pending();
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(why)) => return self.fail(Failed::Client(why)),
            None => {
                self.ended = true;
                return Poll::Ready(None);
            }
        };
        let chunk = match frame.into_data() {
            Ok(chunk) => chunk,
            Err(other) => {
                self.ended = true;
                let trailers = other.into_trailers().ok();
                self.trailers.clone_from(&trailers);
                *next += 1;
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
        };
        self.read_bytes += chunk.len() as u64;
        if let Some(max_bytes) = self.limits.bytes_max
            && self.read_bytes > max_bytes
        {
            return self.fail(Failed::TooLarge(max_bytes));
        }
        self.ended |= self.source.is_end_stream();
        let fits = self.kept_bytes + chunk.len() <= self.limits.replay_bytes_max;
        if self.whole && (!self.accepted || (self.limits.keep_after_accept && fits)) {
            self.kept_bytes += chunk.len();
            self.chunks.push(chunk.clone());
            *next += 1;
        } else if self.whole {
            self.whole = false;
            self.chunks = Vec::new();
            *next = 0;
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn fail(&mut self, failed: Failed) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let error = failed.error();
        self.failure = Some(failed);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for AttemptBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match &this.kept {
            Some(kept) => kept.borrow_mut().poll(this.attempt, &mut this.next, cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| {
            let kept = kept.borrow();
            let sent = self.next >= kept.chunks.len() + usize::from(kept.trailers.is_some());
            kept.ended && kept.attempt == self.attempt && sent
        })
    }

    /// Of the whole body: hyper asks once, before the first byte.
    fn size_hint(&self) -> SizeHint {
        let exact = self.kept.as_ref().map_or(Some(0), |kept| kept.borrow().exact_bytes);
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// An answer's body: one that comes from a service, or one of our own.
pub struct ResponseBody(Kind);

enum Kind {
    Empty,
    Full(Option<Bytes>),
    /// Held until whole.
    Held(VecDeque<Bytes>),
    Stream {
        body: Incoming,
        /// Until the end has been seen: its drop before cancels.
        active: Option<Active>,
    },
}

impl ResponseBody {
    /// No body.
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body of our own.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(if bytes.is_empty() { Kind::Empty } else { Kind::Full(Some(bytes)) })
    }

    pub(crate) fn held(first: Option<Bytes>, mut more: VecDeque<Bytes>) -> Self {
        if more.is_empty() {
            return Self(first.map_or(Kind::Empty, |bytes| Kind::Full(Some(bytes))));
        }
        more.extend(first);
        more.rotate_right(1);
        Self(Kind::Held(more))
    }

    pub(crate) fn stream(body: Incoming, active: Active) -> Self {
        Self(Kind::Stream { body, active: Some(active) })
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Kind::Empty => "ResponseBody(empty)",
            Kind::Full(_) => "ResponseBody(full)",
            Kind::Held(_) => "ResponseBody(held)",
            Kind::Stream { .. } => "ResponseBody(stream)",
        })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Held(chunks) => Poll::Ready(chunks.pop_front().map(|chunk| Ok(Frame::data(chunk)))),
            Kind::Stream { body, active } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                match &frame {
                    Some(Ok(_)) if !body.is_end_stream() => {}
                    Some(Ok(_)) | None => {
                        if let Some(active) = active.take() {
                            active.finish();
                        }
                    }
                    Some(Err(_)) => {
                        if let Some(active) = active.take() {
                            active.broke();
                        }
                    }
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Service)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Held(chunks) => chunks.is_empty(),
            Kind::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Held(chunks) => SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum()),
            Kind::Stream { body, .. } => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests;
