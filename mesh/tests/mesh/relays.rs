//! Streams that one coordinator opens to another.

use std::sync::Arc;

use hedgerow_mesh::host::relay::{RelayLink, RelayStreams};
use hedgerow_proto::frame::close;
use hedgerow_tunnel::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Coordinator, PATIENCE};

async fn within_patience(scene: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, scene).await.expect("in time");
}

#[tokio::test]
async fn a_stream_reaches_a_coordinator_that_is_not_connected_yet_and_its_reset_is_seen_there() {
    let home = Coordinator::start(&[]).await;
    let mut streams = RelayStreams::listen(&home.host).unwrap();
    let asks = Coordinator::start(&[&home]).await;
    let link = RelayLink::new(&asks.host, &asks.replica, home.node()).unwrap();
    within_patience(async {
        // At once: whether the two are neighbours by now does not matter.
        let (down, up) = tokio::join!(link.open(), streams.next());
        let (mut down, (from, mut up)) = (down.unwrap(), up.unwrap());
        assert_eq!(from, asks.node());
        down.write_all(b"ask").await.unwrap();
        down.flush().await.unwrap();
        let mut three = [0; 3];
        up.read_exact(&mut three).await.unwrap();
        up.write_all(&three).await.unwrap();
        up.flush().await.unwrap();
        down.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"ask");
        drop(down);
        assert!(up.read_exact(&mut [0]).await.is_err(), "it was given up");
    })
    .await;
}

#[tokio::test]
async fn a_link_is_closed_by_its_owner_or_with_its_host_and_keeps_none_running() {
    let home = Coordinator::start(&[]).await;
    let asks = Coordinator::start(&[&home]).await;
    let link = || Arc::new(RelayLink::new(&asks.host, &asks.replica, home.node()).unwrap());
    let (closed, left) = (link(), link());
    closed.close(close::GOING, "not needed any more");
    assert!(closed.is_closed() && !left.is_closed());
    within_patience(async {
        assert_eq!(closed.closed().await.code, Some(close::GOING));
        assert!(closed.open().await.is_err());
        let waits = tokio::spawn({
            let left = left.clone();
            async move { left.closed().await }
        });
        // The last handle goes, and the host with it.
        drop(asks);
        waits.await.unwrap();
        assert!(left.is_closed() && left.open().await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_that_serves_no_streams_says_so() {
    let home = Coordinator::start(&[]).await;
    let asks = Coordinator::start(&[&home]).await;
    let link = RelayLink::new(&asks.host, &asks.replica, home.node()).unwrap();
    within_patience(async { assert!(link.open().await.is_err()) }).await;
}
