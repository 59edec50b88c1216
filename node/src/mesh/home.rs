//! A worker's side of its home: it keeps one control connection to a coordinator, and goes to another by itself when that
//! fails. Requests that come down its own tunnels do not notice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_mesh::host::link::{HomeDialer, PeerLink};
use hedgerow_mesh::host::{HostHandle, Multiaddr};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::record::Home;
use hedgerow_tunnel::{DialConfig, TunnelError, serve_over};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::addresses::ends_with_its_process;
use super::hints::Hints;

/// How long one coordinator may take to be connected, before the next one is tried.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The pause before the same coordinators are tried again.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest of these pauses.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A coordinator that failed is tried after the others for this long.
const AVOID_FOR: Duration = Duration::from_secs(30);
/// A home that does not answer for this long is given up: another takes its place at the cost of three records.
const PONG_TIMEOUT: Duration = Duration::from_secs(3);

/// What a worker needs to find itself a home.
pub struct Seeker<'a> {
    /// The worker.
    pub me: NodeId,
    /// Its federation.
    pub federation: FederationId,
    /// What its tunnels share.
    pub config: DialConfig,
    /// Whom it has heard of.
    pub hints: &'a Arc<Hints>,
    /// Says that the worker's home is this, so that its record does.
    pub settle: &'a (dyn Fn(Home) + Send + Sync),
    /// The move that was counted last.
    pub moves: &'a mut u64,
    /// Where the home stands that has taken it in.
    pub attached: &'a watch::Sender<Option<NodeId>>,
    /// For jitter.
    pub random: fastrand::Rng,
}

impl Seeker<'_> {
    /// Keeps a home for as long as the host runs.
    pub async fn keep(mut self, host: &HostHandle) {
        let Ok(dialer) = HomeDialer::new(host) else { return };
        self.config.pong_timeout = PONG_TIMEOUT;
        self.config.coordinators = self.listen();
        let mut failed: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let mut pause = RETRY_MIN;
        loop {
            failed.retain(|_, at| at.elapsed() < AVOID_FOR);
            let mut candidates = self.hints.all();
            candidates.sort_by_key(|(node, _)| (failed.contains_key(node), std::cmp::Reverse(self.weight(node))));
            let mut found = false;
            for (home, addresses) in candidates {
                match self.reach(host, &dialer, home, addresses).await {
                    Ok(link) => {
                        found = self.stay(home, link).await;
                        host.disconnect(home).await;
                    }
                    Err(error) => debug!(home = %home.short(), %error, "a coordinator is not reached"),
                }
                failed.insert(home, Instant::now());
                if found {
                    break;
                }
            }
            if found {
                // It had a home until now: the next one is sought at once.
                pause = RETRY_MIN;
                continue;
            }
            let jittered = pause.mul_f32(0.5 + 0.5 * self.random.f32());
            pause = (pause * 2).min(RETRY_MAX);
            tokio::select! {
                () = sleep(jittered) => {}
                () = self.hints.changed() => {}
            }
        }
    }

    /// How well a coordinator suits this worker: the rendezvous hash spreads workers evenly, and moves few when one goes.
    fn weight(&self, coordinator: &NodeId) -> [u8; 32] {
        Sha256::new().chain_update(self.me.0).chain_update(coordinator.0).finalize().into()
    }

    /// What homes tell of other coordinators.
    fn listen(&self) -> mpsc::Sender<Vec<Vec<u8>>> {
        let (sender, mut told) = mpsc::channel::<Vec<Vec<u8>>>(4);
        let hints = self.hints.clone();
        tokio::spawn(async move {
            while let Some(records) = told.recv().await {
                hints.hear(&records);
            }
        });
        sender
    }

    async fn reach(
        &self,
        host: &HostHandle,
        dialer: &HomeDialer,
        home: NodeId,
        addresses: Vec<Multiaddr>,
    ) -> Result<PeerLink, String> {
        // Over TCP the end of a process is known at once.
        let (mut first, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(ends_with_its_process);
        if first.is_empty() {
            first = others.clone();
        }
        let connect = async {
            if let Err(error) = host.connect(home, first).await {
                if others.is_empty() {
                    return Err(error.to_string());
                }
                host.connect(home, others).await.map_err(|error| error.to_string())?;
            }
            dialer.dial(home).await.map_err(|error| error.to_string())
        };
        timeout(CONNECT_WITHIN, connect).await.unwrap_or_else(|_| Err(format!("not within {CONNECT_WITHIN:?}")))
    }

    /// Lives there until the connection ends. False: it was never taken in.
    async fn stay(&mut self, home: NodeId, link: PeerLink) -> bool {
        *self.moves += 1;
        (self.settle)(Home { coordinator: home, home_seq: *self.moves });
        let attached = self.attached;
        let on_pong = |_| {
            if attached.send_if_modified(|now| now.replace(home) != Some(home)) {
                info!(home = %home.short(), "at home with a coordinator");
            }
        };
        let ended = serve_over(&self.config, self.federation, Arc::new(link), on_pong).await;
        let was_here = attached.send_replace(None).is_some();
        match ended {
            Ok(()) => debug!("left"),
            Err(TunnelError::Rejected(reject)) => {
                debug!(home = %home.short(), message = reject.message, "the coordinator does not take this worker in");
            }
            Err(error) if was_here => info!(home = %home.short(), %error, "the home is lost; looking for another"),
            Err(error) => debug!(home = %home.short(), %error, "no home there"),
        }
        was_here
    }
}
