//! The entry's part in keeping the registry: it synchronises with a few coordinators, down their tunnels, as they do among
//! themselves. So it knows of nodes that have no tunnel here, and coordinators learn of those that have one only here.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::join_all;
use hedgerow_proto::frame::StreamKind;
use hedgerow_proto::id::{NodeId, RequestId};
use hedgerow_proto::sync::{ENTRY_INTERVAL, ENTRY_PEERS_MAX, Session, Traffic};
use hedgerow_tunnel::Tunnel;
use hedgerow_tunnel::streams::{self, NotOpened};
use hedgerow_tunnel::sync::{SyncBroken, synchronise};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::federation::Federation;

/// How long the last synchronisation before a coordinator's leave may take.
const BEFORE_LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How long one session may take: a whole registry over a slow line, or a peer that plays for time.
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a session came to nothing. The next round asks again, somebody else as likely as not.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
    #[error(transparent)]
    Broken(#[from] SyncBroken),
    #[error("the stream broke: {0}")]
    Stream(#[from] std::io::Error),
    #[error("the node is silent")]
    Silent,
    #[error("it took longer than {} s", SESSION_TIMEOUT.as_secs())]
    Slow,
}

/// Synchronises for as long as the entry lives: every second, and as soon as a coordinator has come.
pub(crate) async fn keep(federation: &Federation, seed: u64) -> Infallible {
    let mut random = fastrand::Rng::with_seed(seed);
    loop {
        round(federation, &mut random).await;
        let pause = ENTRY_INTERVAL.mul_f32(0.75 + 0.5 * random.f32());
        tokio::select! {
            () = sleep(pause) => {}
            () = federation.coordinator_came() => {}
        }
    }
}

/// Synchronises with a few coordinators at once.
async fn round(federation: &Federation, random: &mut fastrand::Rng) {
    let mut peers = federation.live_coordinators();
    random.shuffle(&mut peers);
    peers.truncate(ENTRY_PEERS_MAX);
    let sessions = peers.iter().map(|tunnel| {
        let request = RequestId(random.u128(..));
        async move {
            // Watched while it runs: the next round, with those who live, must not wait for one that has died.
            let running = tunnel.in_flight();
            let outcome = tokio::select! {
                outcome = session(federation, tunnel, request) => outcome,
                () = tunnel.suspected() => Err(Failed::Silent),
                () = sleep(SESSION_TIMEOUT) => Err(Failed::Slow),
            };
            drop(running);
            let node = tunnel.node().short();
            match outcome {
                Ok(Traffic { records_sent, messages_sent, .. }) => {
                    debug!(%node, records_sent, messages_sent, "synchronised");
                }
                Err(error) => debug!(%node, %error, "a synchronisation came to nothing"),
            }
        }
    });
    join_all(sessions).await;
}

/// Synchronises once, out of turn: a coordinator is leaving, and what it has handed over to others must be known here before its
/// own word on it ends.
pub(crate) async fn before_leave(federation: &Federation, leaving: NodeId) {
    // The order of the peers, and so the seed, does not matter much.
    let seed = u64::from_be_bytes(std::array::from_fn(|at| leaving.0[at]));
    // Whoever does not answer must not hold up the leave for long.
    let _ = timeout(BEFORE_LEAVE_WITHIN, round(federation, &mut fastrand::Rng::with_seed(seed))).await;
}

async fn session(federation: &Federation, tunnel: &Tunnel, request: RequestId) -> Result<Traffic, Failed> {
    let mut stream = streams::open(tunnel, StreamKind::Sync, None, request).await?;
    let traffic = synchronise(&mut stream, Session::initiate(), federation).await?;
    stream.shutdown().await?;
    Ok(traffic)
}
