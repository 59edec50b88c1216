//! An HTTP/1.1 client over one exchange stream, and the exchange that it has under way.
//!
//! hyper's connection is driven by a task of its own, since the request's body must go on while nobody reads the
//! answer. The end of an exchange needs both: who reads the answer sees its end, and the driver sees when the client is
//! ready for another request, which means that nothing of this one is left to be written. Then RELEASE goes out and the
//! connection back into the pool.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hedgerow_proto::frame::{Preface, Release, StreamKind};
use hedgerow_tunnel::accept::InFlight;
use hedgerow_tunnel::{BoxStream, Exchange, ExchangeIo, Verdict, exchange};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::balance::Busy;
use crate::body::AttemptBody;
use crate::clock::now;
use crate::pool::Pool;
use crate::stats::{Gauge, Stats, bump};

/// A client at rest, or one whose exchange is under way (then inside an [`Active`]).
pub(crate) struct Connection {
    sender: http1::SendRequest<AttemptBody>,
    exchange: Exchange,
    mailbox: Rc<Mailbox>,
}

/// Between who reads an answer and the driver of its connection.
#[derive(Default)]
struct Mailbox {
    ended: RefCell<Option<Running>>,
    driver: RefCell<Option<Waker>>,
}

impl Connection {
    /// Puts a client onto a fresh stream.
    pub(crate) async fn new(stream: BoxStream, kind: StreamKind) -> hyper::Result<Self> {
        let (io, exchange) = exchange(stream);
        let (sender, http) = http1::handshake(TokioIo::new(io)).await?;
        let mailbox = Rc::new(Mailbox::default());
        if kind == StreamKind::Upgrade {
            tokio::task::spawn_local(async move {
                // Who waits for the answer, or reads it, learns of an error there.
                let _ = http.with_upgrades().await;
            });
        } else {
            tokio::task::spawn_local(Driver { http, mailbox: mailbox.clone(), lingered: 0 });
        }
        Ok(Self { sender, exchange, mailbox })
    }

    /// Whether it can take a request.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }
}

struct Driver {
    http: http1::Connection<TokioIo<ExchangeIo>, AttemptBody>,
    mailbox: Rc<Mailbox>,
    /// How often it was polled after the end of the answer without becoming ready.
    lingered: u8,
}

impl Driver {
    /// hyper gives way to other tasks after some rounds and then has work left; but not for more than this.
    const LINGER_MAX: u8 = 3;
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What waits for this driver would wait, and hold its slot, for ever.
        drop(self.mailbox.ended.take());
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.http).poll(cx);
        if let Some(running) = this.mailbox.ended.take() {
            if running.connection.is_ready() {
                this.lingered = 0;
                running.keep();
            } else if polled.is_pending() && this.lingered < Self::LINGER_MAX {
                this.lingered += 1;
                this.mailbox.ended.replace(Some(running));
                cx.waker().wake_by_ref();
            } else {
                // The answer is whole and the request is not: nobody will read the rest of it.
                running.abort();
            }
        }
        if polled.is_pending() {
            let mut driver = this.mailbox.driver.borrow_mut();
            if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *driver = Some(cx.waker().clone());
            }
        }
        polled.map(|_| ())
    }
}

/// What an exchange holds while it runs.
struct Running {
    connection: Connection,
    pool: Rc<Pool>,
    tunnel: u64,
    busy: Busy,
    _watched: InFlight,
    _gauge: Gauge,
}

impl Running {
    /// Ends it: the service's slot is free, and the connection goes back into the pool.
    fn keep(self) {
        let Self { connection, pool, tunnel, busy, .. } = self;
        connection.exchange.release(Release::Keep);
        if connection.exchange.breakage().is_none() {
            pool.put(tunnel, connection, now());
        }
        // At the last: who is told of the room takes the connection out of the pool.
        drop(busy);
    }

    /// Ends it, and the connection.
    fn close(self) {
        self.connection.exchange.release(Release::Close);
    }

    /// Cuts it off.
    fn abort(mut self) {
        if matches!(self.connection.exchange.verdict_now(), Some(Verdict::Refused(_))) {
            self.busy.refused();
        }
        self.connection.exchange.abort();
    }
}

/// An exchange under way. Dropping it cuts it off, and the work at the service with it.
pub(crate) struct Active {
    running: Option<Running>,
    reuse: Reuse,
    stats: Arc<Stats>,
}

/// Whether a connection serves again when its exchange has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// If the service keeps its own.
    Pool,
    /// No.
    Never,
}

impl Active {
    /// Begins an exchange and sends its request.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that the exchange holds, and there is one caller")]
    pub(crate) fn begin(
        mut connection: Connection,
        preface: &Preface,
        request: Request<AttemptBody>,
        pool: &Rc<Pool>,
        tunnel: u64,
        busy: Busy,
        watched: InFlight,
        gauge: Gauge,
        stats: &Arc<Stats>,
    ) -> (Self, impl Future<Output = hyper::Result<Response<Incoming>>> + use<>) {
        connection.exchange.begin(preface);
        let answer = connection.sender.send_request(request);
        let running = Running { connection, pool: pool.clone(), tunnel, busy, _watched: watched, _gauge: gauge };
        let reuse = if preface.kind == StreamKind::Upgrade { Reuse::Never } else { Reuse::Pool };
        (Self { running: Some(running), reuse, stats: stats.clone() }, answer)
    }

    /// The handle of the exchange, while it runs.
    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        self.running.as_ref().map(|running| &running.connection.exchange)
    }

    /// The service will close its connection, so this one is of no more use after the exchange.
    pub(crate) fn set_reuse(&mut self, reuse: Reuse) {
        if reuse == Reuse::Never {
            self.reuse = reuse;
        }
    }

    /// The whole answer has been read.
    pub(crate) fn finish(mut self) {
        let Some(running) = self.running.take() else { return };
        match self.reuse {
            Reuse::Never => running.close(),
            Reuse::Pool if running.connection.is_ready() => running.keep(),
            // The service has closed behind its answer, and the driver is gone.
            Reuse::Pool if running.connection.sender.is_closed() => running.close(),
            Reuse::Pool => {
                let mailbox = running.connection.mailbox.clone();
                mailbox.ended.replace(Some(running));
                if let Some(driver) = mailbox.driver.borrow().as_ref() {
                    driver.wake_by_ref();
                }
            }
        }
    }

    /// The answer broke after its beginning had been passed on.
    pub(crate) fn broke(mut self) {
        if let Some(running) = self.running.take() {
            running.busy.load().update(|cost| cost.failed(now(), Duration::ZERO));
            running.abort();
            bump(&self.stats.broken_answers);
        }
    }

    /// The attempt has failed, and its failure is told otherwise.
    pub(crate) fn give_up(mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            bump(&self.stats.cancelled);
        }
    }
}
