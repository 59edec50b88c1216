//! Why a connection was closed, where that is said on it and its streams may break first: as over TCP, where both are frames.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hedgerow_proto::frame::{Hello, close, reset};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_tunnel::link::{BoxFuture, BoxStream, LinkClosed, Stream};
use hedgerow_tunnel::{Link, Open, StreamReset, TunnelError, TunnelEvent, serve_over, tuning, welcome};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::common::{Over, PATIENCE, Parts, federation, in_time, pair};

const WORDS: &str = "this entry stops";

/// A connection whose streams break when it is told, and which says why a turn later, or never.
struct LateWords {
    link: Arc<dyn Link>,
    breaks: watch::Sender<bool>,
    says_why: bool,
}

impl LateWords {
    fn new(link: Arc<dyn Link>, says_why: bool) -> Arc<Self> {
        Arc::new(Self { link, breaks: watch::Sender::new(false), says_why })
    }

    fn broken(&self) -> BoxFuture<'static, ()> {
        let mut breaks = self.breaks.subscribe();
        Box::pin(async move {
            let _ = breaks.wait_for(|breaks| *breaks).await;
        })
    }

    fn breaking(&self, stream: BoxStream) -> BoxStream {
        Box::new(Breaking { stream, broken: Some(self.broken()) })
    }
}

impl Link for LateWords {
    fn open(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async { Ok(self.breaking(self.link.open().await?)) })
    }

    fn accept(&self) -> BoxFuture<'_, Result<BoxStream, LinkClosed>> {
        Box::pin(async { Ok(self.breaking(self.link.accept().await?)) })
    }

    fn close(&self, code: u32, reason: &str) {
        self.link.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, LinkClosed> {
        Box::pin(async {
            let words = async {
                if !self.says_why {
                    std::future::pending::<()>().await;
                }
                self.broken().await;
                tokio::task::yield_now().await;
            };
            tokio::select! {
                biased;
                closed = self.link.closed() => closed,
                () = words => LinkClosed { code: Some(close::GOING), reason: WORDS.into() },
            }
        })
    }

    fn peer(&self) -> NodeId {
        self.link.peer()
    }

    fn remote(&self) -> Option<SocketAddr> {
        self.link.remote()
    }

    fn received(&self) -> u64 {
        self.link.received()
    }

    fn rtt(&self) -> Duration {
        self.link.rtt()
    }

    fn last_words_timeout(&self) -> Duration {
        if self.says_why { PATIENCE } else { tuning::TCP_LAST_WORDS_TIMEOUT }
    }
}

struct Breaking {
    stream: BoxStream,
    broken: Option<BoxFuture<'static, ()>>,
}

impl AsyncRead for Breaking {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(broken) = &mut self.broken {
            if broken.as_mut().poll(cx).is_pending() {
                return Pin::new(&mut self.stream).poll_read(cx, buf);
            }
            self.broken = None;
        }
        Poll::Ready(Err(StreamReset(reset::CANCELLED).into_io()))
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Stream for Breaking {
    fn reset(&mut self, code: u32) {
        self.stream.reset(code);
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<u32> {
        self.stream.poll_stopped(cx)
    }
}

/// How a tunnel ended, at the node or at the entry, whose control stream broke.
async fn end(at_the_node: bool, says_why: bool) -> LinkClosed {
    let (entry, node) = pair(Over::Memory).await;
    let late = LateWords::new(if at_the_node { node.clone() } else { entry.clone() }, says_why);
    let (entry, node) = match at_the_node {
        true => (entry, late.clone() as Arc<dyn Link>),
        false => (late.clone() as Arc<dyn Link>, node),
    };
    let Parts { config, .. } = &Parts::new(2);
    let hello = Hello { federation: federation(), incarnation: 1, shard: 0, shards: 1 };
    let pongs = tokio::sync::Notify::new();
    let serving = serve_over(config, federation(), node, |_| pongs.notify_one());
    let hearing = async {
        let (_tunnel, mut events, ..) = welcome(entry, hello, &Limits::PRODUCTION, &Open).await.unwrap();
        loop {
            tokio::select! {
                () = pongs.notified() => drop(late.breaks.send_replace(true)),
                event = events.next() => if let TunnelEvent::Closed(closed) = event {
                    return closed;
                },
            }
        }
    };
    let (node_saw, entry_saw) = in_time("both ends have seen it", async { tokio::join!(serving, hearing) }).await;
    match (at_the_node, node_saw) {
        (true, Err(TunnelError::Closed(closed))) => closed,
        (true, other) => panic!("{other:?}"),
        (false, _) => entry_saw,
    }
}

#[tokio::test]
async fn why_a_connection_was_closed_is_heard_after_its_control_stream_has_broken() {
    for at_the_node in [true, false] {
        let closed = end(at_the_node, true).await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(close::GOING), WORDS));
    }
}

#[tokio::test]
async fn where_no_word_comes_the_connection_is_closed_for_its_broken_stream() {
    for at_the_node in [true, false] {
        let closed = end(at_the_node, false).await;
        assert_eq!(closed.code, Some(close::PROTOCOL), "{closed}");
        assert!(closed.reason.contains("reset"), "{closed}");
    }
}
