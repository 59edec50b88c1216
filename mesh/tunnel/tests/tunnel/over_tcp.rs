//! What is different over TCP: streams share one connection, and a tunnel takes it only where QUIC does not come up.

use std::future::poll_fn;

use crate::common::{Entry, Node, Over, Turnstile, in_time, pair, preface, tcp_way};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedgerow_proto::frame::{Release, close, reset};
use hedgerow_proto::key::SecretKey;
use hedgerow_tunnel::{
    Liveness, StreamReset, Target, Transport, TunnelEvent, TunnelState, Verdict, Way, exchange, tuning,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

fn entry() -> Entry {
    Entry::start(SecretKey::from_seed([9; 32]), 1, ([127, 0, 0, 1], 0).into())
}

/// A port from which nothing comes back.
async fn nowhere() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn where_no_udp_comes_through_the_tunnel_goes_over_tcp_and_says_why() {
    let (mut entry, nowhere) = (entry(), nowhere().await);
    let ways = vec![Way::Quic(nowhere.local_addr().unwrap()), tcp_way(entry.tcp)];
    let mut node = Node::start(20, Target { ways, ..entry.target(Over::Tcp) });
    let (tunnel, _events) = entry.tunnel().await;
    assert_eq!(tunnel.transport(), Transport::Tcp);
    node.until("up", |state| match state {
        TunnelState::Up(up) => up.transport == Transport::Tcp && up.why_not_quic.as_ref().unwrap().contains("UDP"),
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn where_both_come_through_the_tunnel_goes_over_quic() {
    let mut entry = entry();
    let ways = vec![tcp_way(entry.tcp), Way::Quic(entry.address)];
    let mut node = Node::start(21, Target { ways, ..entry.target(Over::Tcp) });
    assert_eq!(entry.tunnel().await.0.transport(), Transport::Quic);
    node.until(
        "up",
        |state| matches!(state, TunnelState::Up(up) if up.transport == Transport::Quic && up.why_not_quic.is_none()),
    )
    .await;
}

#[tokio::test]
async fn where_neither_comes_through_both_are_said() {
    let (entry, nowhere) = (entry(), nowhere().await);
    let impostor = SecretKey::from_seed([8; 32]).id();
    let ways = vec![Way::Quic(nowhere.local_addr().unwrap()), tcp_way(entry.tcp)];
    let mut node = Node::start(22, Target { ways, entry: impostor, ..entry.target(Over::Tcp) });
    node.until("an error", |state| match state {
        TunnelState::Waiting { error, .. } => error.contains("over QUIC: ") && error.contains("over TCP: "),
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_moves_to_quic_when_that_works_and_what_runs_is_not_cut_off() {
    let (mut entry, nowhere) = (entry(), nowhere().await);
    let gate = Turnstile::to(nowhere.local_addr().unwrap()).await;
    let ways = vec![Way::Quic(gate.address), tcp_way(entry.tcp)];
    let mut node = Node::start(23, Target { ways, ..entry.target(Over::Tcp) });
    let (slow, mut slow_events) = entry.tunnel().await;
    let (mut io, handle) = exchange(slow.open().await.unwrap());
    let busy = slow.in_flight();
    handle.begin(&preface("echo"));
    io.write_all(b"ping").await.unwrap();
    let mut service = in_time("a connection", node.connections.recv()).await.unwrap();
    let mut got = [0; 4];
    in_time("the request", service.read_exact(&mut got)).await.unwrap();

    gate.turn(entry.address);
    let (quick, _events) = entry.tunnel().await;
    assert_eq!((quick.transport(), quick.lane()), (Transport::Quic, 0));
    node.until("the move", |state| matches!(state, TunnelState::Up(up) if up.transport == Transport::Quic)).await;
    slow.replaced_by(&quick);
    assert_eq!(slow.liveness(), Liveness::Draining);
    service.write_all(b"pong").await.unwrap();
    in_time("the answer", io.read_exact(&mut got)).await.unwrap();
    assert_eq!((&got, handle.verdict_now()), (b"pong", Some(Verdict::Accepted)));
    handle.release(Release::Close);
    drop(busy);
    loop {
        match in_time("the end of the old one", slow_events.recv()).await.unwrap() {
            TunnelEvent::Closed(closed) => break assert_eq!(closed.code, Some(close::REPLACED)),
            TunnelEvent::Record(..) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(quick.liveness(), Liveness::Live);
}

#[tokio::test]
async fn a_connection_that_takes_the_place_of_one_of_its_kind_ends_it_at_once() {
    let mut entry = entry();
    let _node = Node::start(24, entry.target(Over::Tcp));
    let (old, _events) = entry.tunnel().await;
    let _again = Node::start(24, entry.target(Over::Tcp));
    let (newer, _events) = entry.tunnel().await;
    let _busy = old.in_flight();
    old.replaced_by(&newer);
    assert_eq!(in_time("the close", old.closed()).await.code, Some(close::REPLACED));
}

#[tokio::test]
async fn codes_of_resets_and_words_of_closes_arrive() {
    let (entry, node) = pair(Over::Tcp).await;
    let mut here = entry.open().await.unwrap();
    here.write_all(b"x").await.unwrap();
    let mut there = in_time("a stream", node.accept()).await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    there.reset(reset::STALE_CONNECTION);
    let error = in_time("the reset", here.read_u8()).await.unwrap_err();
    assert_eq!(StreamReset::of(&error), Some(reset::STALE_CONNECTION));

    let mut here = entry.open().await.unwrap();
    here.write_all(b"x").await.unwrap();
    let mut there = in_time("a stream", node.accept()).await.unwrap();
    here.reset(reset::PROTOCOL);
    assert_eq!(in_time("the stop", poll_fn(|cx| there.poll_stopped(cx))).await, reset::PROTOCOL);

    // Let go of without an end: what was said is not whole.
    let mut here = entry.open().await.unwrap();
    here.write_all(b"half").await.unwrap();
    drop(here);
    let mut there = in_time("a stream", node.accept()).await.unwrap();
    let error = in_time("the cut", there.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(StreamReset::of(&error), Some(reset::CANCELLED));

    node.close(close::STALLED, "nothing passes");
    let closed = in_time("the close", entry.closed()).await;
    assert_eq!((closed.code, closed.reason.as_str()), (Some(close::STALLED), "nothing passes"));
    let (entry, node) = pair(Over::Tcp).await;
    entry.close(close::REFUSED, "not you");
    let closed = in_time("the close", node.closed()).await;
    assert_eq!((closed.code, closed.reason.as_str()), (Some(close::REFUSED), "not you"));
    let (entry, node) = pair(Over::Tcp).await;
    drop(node);
    in_time("the end", entry.closed()).await;
}

#[tokio::test]
async fn a_reader_who_has_stopped_stops_its_own_stream_and_no_other() {
    let (entry, node) = pair(Over::Tcp).await;
    let mut stopped = entry.open().await.unwrap();
    let window = tuning::STREAM_WINDOW_BYTES as usize + tuning::TCP_STREAM_SEND_BYTES;
    let mut written = 0;
    // Whoever writes more than the window waits: the other end would have to hold it.
    let writing = async {
        loop {
            written += stopped.write(&[7; 65536]).await.unwrap();
            assert!(written <= window, "{written} bytes are on the way");
        }
    };
    let other = async {
        let mut open = entry.open().await.unwrap();
        open.write_all(b"x").await.unwrap();
        let mut streams = Vec::new();
        loop {
            let mut stream = node.accept().await.unwrap();
            // The stopped one's first byte is 7.
            if stream.read_u8().await.unwrap() == b'x' {
                stream.write_all(&[5; 200_000]).await.unwrap();
                stream.shutdown().await.unwrap();
                break;
            }
            streams.push(stream);
        }
        let mut answer = vec![0; 200_000];
        open.read_exact(&mut answer).await.unwrap();
        streams
    };
    let mut streams = tokio::select! {
        never = writing => never,
        streams = async { in_time("the other stream", other).await } => streams,
    };
    // It goes on where it stopped.
    let rest = async { streams[0].read_exact(&mut vec![0; written - 1]).await.unwrap() };
    in_time("the rest", rest).await;
}

#[tokio::test]
async fn what_still_comes_for_streams_that_were_given_up_ends_no_connection() {
    let (entry, node) = pair(Over::Tcp).await;
    let serving = tokio::spawn(async move {
        while let Ok(mut stream) = node.accept().await {
            tokio::spawn(async move { while stream.write_all(&[7; 4096]).await.is_ok() {} });
        }
    });
    // More than the library would bear if it did not remember them.
    for _ in 0..2 * tuning::STREAMS_PER_CONNECTION_MAX {
        let mut stream = in_time("a stream", entry.open()).await.unwrap();
        in_time("an answer", stream.read_u8()).await.unwrap();
        stream.reset(reset::CANCELLED);
    }
    assert!(!entry.is_closed());
    entry.close(close::GOING, "the end of the test");
    in_time("the end", serving).await.unwrap();
}

#[tokio::test]
async fn the_round_trip_is_measured_and_arrivals_are_counted() {
    let (entry, node) = pair(Over::Tcp).await;
    in_time("both ends have measured", async {
        while entry.rtt().is_zero() || node.rtt().is_zero() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let before = entry.received();
    let mut stream = entry.open().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut there = in_time("a stream", node.accept()).await.unwrap();
    there.write_all(b"y").await.unwrap();
    assert_eq!(in_time("the answer", stream.read_u8()).await.unwrap(), b'y');
    assert!(entry.received() > before);
    assert_eq!(entry.peer(), SecretKey::from_seed([2; 32]).id());
    assert_eq!(node.peer(), SecretKey::from_seed([1; 32]).id());
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_for_a_place() {
    let (entry, node) = pair(Over::Tcp).await;
    let mut open = Vec::new();
    for _ in 1..tuning::STREAMS_PER_CONNECTION_MAX {
        open.push(entry.open().await.unwrap());
    }
    let one_more = entry.open();
    tokio::pin!(one_more);
    assert!(futures_util::FutureExt::now_or_never(&mut one_more).is_none());
    drop(open.pop());
    let mut stream = in_time("a place", one_more).await.unwrap();
    stream.write_all(b"last").await.unwrap();
    let mut said = FuturesUnordered::new();
    in_time("it arrives", async {
        loop {
            tokio::select! {
                stream = node.accept() => said.push(async move {
                    let mut got = [0; 4];
                    stream.unwrap().read_exact(&mut got).await.map(|_| got)
                }),
                // The one that was let go of says nothing.
                Some(got) = said.next() => if let Ok(got) = got {
                    break assert_eq!(&got, b"last");
                },
            }
        }
    })
    .await;
}
