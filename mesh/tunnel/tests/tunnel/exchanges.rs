//! Exchanges over each kind of connection: frames, verdicts, reuse and cancellation.

use std::sync::atomic::Ordering;

use crate::common::{Over, in_time, over_each, pair, preface, served};
use hedgerow_proto::frame::{FrameHeader, FrameType, Preface, Refusal, Release, WhenFull, close, message};
use hedgerow_proto::id::ServiceName;
use hedgerow_tunnel::{Breakage, Liveness, Tunnel, Verdict, exchange};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn bytes_reach_the_service_and_its_answer_comes_back_and_the_connection_is_kept(over: Over) {
    let (link, services, mut connections) = served(over).await;
    let (mut io, handle) = exchange(link.open().await.unwrap());
    for round in 0..3_u8 {
        handle.begin(&preface("echo"));
        io.write_all(&[round; 10_000]).await.unwrap();
        io.flush().await.unwrap();
        if round == 0 {
            let mut service = in_time("a connection", connections.recv()).await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 1000];
                while let Ok(got @ 1..) = service.read(&mut buf).await {
                    service.write_all(&buf[..got]).await.unwrap();
                }
            });
        }
        let mut back = vec![0; 10_000];
        in_time("the echo", io.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, vec![round; 10_000]);
        assert_eq!(handle.verdict_now(), Some(Verdict::Accepted));
        assert!(handle.answer_began());
        handle.release(Release::Keep);
    }
    in_time("the slot", async {
        while services.taken.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(connections.try_recv().is_err(), "one connection served all three");
}

async fn a_refusal_is_a_verdict_and_nothing_reaches_a_service(over: Over) {
    let (link, _services, mut connections) = served(over).await;
    let (mut io, handle) = exchange(link.open().await.unwrap());
    handle.begin(&preface("nobody-has-it"));
    io.write_all(b"POST").await.unwrap();
    let mut byte = [0];
    assert!(in_time("the refusal", io.read(&mut byte)).await.is_err());
    assert_eq!(handle.verdict().await, Verdict::Refused(Refusal::UnknownService));
    assert!(connections.try_recv().is_err());
}

async fn the_third_exchange_of_a_service_with_two_slots_is_refused_until_one_is_released(over: Over) {
    let (link, services, _connections) = served(over).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let (mut io, handle) = exchange(link.open().await.unwrap());
        handle.begin(&preface("echo"));
        io.write_all(b"x").await.unwrap();
        let reading = tokio::spawn(async move { io.read_u8().await });
        assert_eq!(in_time("a verdict", handle.verdict()).await, Verdict::Accepted);
        held.push((handle, reading));
    }
    let (mut io, handle) = exchange(link.open().await.unwrap());
    handle.begin(&preface("echo"));
    io.write_all(b"x").await.unwrap();
    assert!(io.read_u8().await.is_err());
    assert_eq!(handle.verdict().await, Verdict::Refused(Refusal::Full));
    let (first, reading) = held.remove(0);
    first.abort();
    assert!(in_time("the reader", reading).await.unwrap().is_err());
    in_time("the slot", async {
        while services.taken.load(Ordering::SeqCst) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn an_exchange_that_is_given_up_leaves_the_line_for_a_slot(over: Over) {
    let (link, services, _connections) = served(over).await;
    let begin = async |when_full| {
        let (mut io, handle) = exchange(link.open().await.unwrap());
        handle.begin(&Preface { when_full, ..preface("echo") });
        io.write_all(b"x").await.unwrap();
        (tokio::spawn(async move { io.read_u8().await }), handle)
    };
    let stand_in_line = async |wanted: usize| {
        while services.in_line.load(Ordering::SeqCst) != wanted {
            tokio::task::yield_now().await;
        }
    };
    let held = [begin(WhenFull::Refuse).await, begin(WhenFull::Refuse).await];
    for (_, held) in &held {
        assert_eq!(in_time("a verdict", held.verdict()).await, Verdict::Accepted);
    }
    let (_reading, waits) = begin(WhenFull::Wait).await;
    in_time("it stands in line", stand_in_line(1)).await;
    waits.abort();
    in_time("it has left", stand_in_line(0)).await;
}

async fn an_abort_closes_the_services_connection_even_when_it_does_not_read(over: Over) {
    let (link, services, mut connections) = served(over).await;
    let (mut io, handle) = exchange(link.open().await.unwrap());
    handle.begin(&preface("echo"));
    let writing = tokio::spawn(async move {
        // More than all windows together: back-pressure holds it.
        while io.write_all(&[0; 65536]).await.is_ok() {}
    });
    let mut service = in_time("a connection", connections.recv()).await.unwrap();
    let mut some = [0; 10];
    service.read_exact(&mut some).await.unwrap();
    handle.abort();
    in_time("the writer", writing).await.unwrap();
    in_time("the end at the service", async { while let Ok(1..) = service.read(&mut some).await {} }).await;
    in_time("the slot", async {
        while services.taken.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(handle.breakage(), Some(Breakage::Aborted));
}

async fn a_kept_connection_that_closes_without_an_answer_is_told_apart(over: Over) {
    let (link, _services, mut connections) = served(over).await;
    let (mut io, handle) = exchange(link.open().await.unwrap());
    handle.begin(&preface("echo"));
    io.write_all(b"1").await.unwrap();
    let mut service = in_time("a connection", connections.recv()).await.unwrap();
    assert_eq!(service.read_u8().await.unwrap(), b'1');
    service.write_all(b"a").await.unwrap();
    assert_eq!(in_time("the answer", io.read_u8()).await.unwrap(), b'a');
    handle.release(Release::Keep);
    handle.begin(&preface("echo"));
    io.write_all(b"2").await.unwrap();
    assert_eq!(in_time("the second request", service.read_u8()).await.unwrap(), b'2');
    drop(service);
    assert!(in_time("the break", io.read_u8()).await.is_err());
    assert_eq!(handle.breakage(), Some(Breakage::StaleConnection));
}

async fn the_end_of_the_services_bytes_is_the_end_of_the_answer(over: Over) {
    let (link, _services, mut connections) = served(over).await;
    let (mut io, handle) = exchange(link.open().await.unwrap());
    handle.begin(&preface("echo"));
    io.write_all(b"GET").await.unwrap();
    io.shutdown().await.unwrap();
    let mut service = in_time("a connection", connections.recv()).await.unwrap();
    let mut request = Vec::new();
    in_time("the half-close", service.read_to_end(&mut request)).await.unwrap();
    assert_eq!(request, b"GET");
    service.write_all(b"whole").await.unwrap();
    drop(service);
    let mut answer = Vec::new();
    in_time("the answer", io.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"whole");
}

async fn bytes_that_stop_without_an_end_were_cut_off(over: Over) {
    let half = [&FrameHeader { frame_type: FrameType::Data, payload_bytes: 4 }.encode()[..], b"half"].concat();
    // An answer.
    let (entry, node) = pair(over).await;
    let (mut io, handle) = exchange(entry.open().await.unwrap());
    handle.begin(&preface("echo"));
    io.write_all(b"GET").await.unwrap();
    let mut there = in_time("a stream", node.accept()).await.unwrap();
    let accept = FrameHeader { frame_type: FrameType::Accept, payload_bytes: 0 }.encode();
    there.write_all(&[&accept[..], &half].concat()).await.unwrap();
    there.shutdown().await.unwrap();
    let mut answer = Vec::new();
    in_time("the cut", io.read_to_end(&mut answer)).await.unwrap_err();
    assert_eq!((&answer[..], handle.breakage()), (&b"half"[..], Some(Breakage::Eof)));

    // A request.
    let (link, _services, mut connections) = served(over).await;
    let mut stream = link.open().await.unwrap();
    stream.write_all(&[message(FrameType::Open, &preface("echo")), half].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut service = in_time("a connection", connections.recv()).await.unwrap();
    let mut request = Vec::new();
    in_time("the end", service.read_to_end(&mut request)).await.unwrap();
    assert_eq!(request, b"half");
    assert!(service.write_all(b"an answer").await.is_err(), "the service's connection is closed, and not by half");
}

async fn a_tunnel_without_a_control_stream_is_live_until_its_connection_closes(over: Over) {
    let (link, _services, mut connections) = served(over).await;
    let tunnel = Tunnel::detached(link.clone(), vec![(ServiceName::new("echo").unwrap(), "a.example".into())]);
    assert_eq!(tunnel.node(), link.peer());
    assert_eq!((tunnel.authority("echo"), tunnel.authority("other")), (Some("a.example"), None));
    tunnel.suspect();
    assert_eq!(tunnel.liveness(), Liveness::Live, "nobody would take the mark away");

    let (mut io, handle) = exchange(tunnel.open().await.unwrap());
    handle.begin(&preface("echo"));
    io.write_all(b"ping").await.unwrap();
    let mut service = in_time("a connection", connections.recv()).await.unwrap();
    in_time("the request", service.read_exact(&mut [0; 4])).await.unwrap();
    tunnel.close(close::GOING, "the end of the test");
    in_time("the end is told", tunnel.suspected()).await;
    assert_eq!(tunnel.liveness(), Liveness::Closed);
    assert!(in_time("what ran is cut off", io.read(&mut [0])).await.is_err());
    assert!(tunnel.open().await.is_err());
}

over_each!([memory: Memory, quic: Quic, tcp: Tcp] {
    bytes_reach_the_service_and_its_answer_comes_back_and_the_connection_is_kept,
    a_refusal_is_a_verdict_and_nothing_reaches_a_service,
    the_third_exchange_of_a_service_with_two_slots_is_refused_until_one_is_released,
    an_exchange_that_is_given_up_leaves_the_line_for_a_slot,
    an_abort_closes_the_services_connection_even_when_it_does_not_read,
    a_kept_connection_that_closes_without_an_answer_is_told_apart,
    the_end_of_the_services_bytes_is_the_end_of_the_answer,
    bytes_that_stop_without_an_end_were_cut_off,
    a_tunnel_without_a_control_stream_is_live_until_its_connection_closes,
});
