//! One tunnel from the bootstrap to the end of its first connection: further connections beside it, and a move to QUIC where it
//! began over TCP.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedgerow_proto::id::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::dial::{DialConfig, Directory, End, Joined, SessionEnd, TunnelState, TunnelStatus, Up, greet, join, run};
use crate::lanes::{self, Destination, Lanes};
use crate::link::Transport;
use crate::serve::Activity;
use crate::tuning;
use crate::ways::{self, Better, Dialled};

/// From the bootstrap to the end of the first connection. `Ok`: the node has drained.
pub(crate) async fn session(
    config: &DialConfig,
    directory: &dyn Directory,
    status: &watch::Sender<TunnelStatus>,
    head_start: &mut Duration,
) -> Result<(), SessionEnd> {
    let target = directory.target().await.map_err(SessionEnd::Failed)?;
    status.send_modify(|status| status.entry = Some(target.entry));
    let Dialled { link, mut way, mut why_not_quic } = ways::dial(config, directory, &target, *head_start).await?;
    let greeted = greet(link, &target).await?;
    let mut hello = greeted.hello.clone();
    let mut joined = join(config, greeted, 0).await?;
    let activity = Arc::new(Activity::default());
    // What was left for a better connection: it finishes what runs on it, and then the entry closes it.
    let (mut left, mut lanes_left) = (FuturesUnordered::new(), Vec::new());
    loop {
        *head_start = head_start_after(way.transport());
        let leg = Arc::new(Leg::new(status, target.entry, &joined, way.transport(), why_not_quic.take()));
        let pong = {
            let leg = leg.clone();
            move |rtt| leg.pong(rtt)
        };
        let mut first = Box::pin(run(config, joined, &activity, pong));
        let mut lanes = Lanes::new();
        let better = {
            let count = |count| leg.count(count);
            let to = Destination { directory, target: &target, way: &way, first: &hello };
            let mut more = pin!(lanes::keep(&mut lanes, config, to, &activity, count));
            let mut better = pin!(ways::better(config, directory, &target));
            loop {
                // The further connections fall with the first: it is the one that notices a restart.
                tokio::select! {
                    end = &mut first => return match end {
                        End::Drained => Ok(()),
                        End::Closed(closed) => {
                            debug!(entry = %target.entry.short(), reason = %closed, "the tunnel has ended");
                            Err(SessionEnd::Lost(closed.to_string()))
                        }
                    },
                    never = &mut more => match never {},
                    better = &mut better, if way.transport() == Transport::Tcp => break better,
                    Some(_) = left.next() => {}
                }
            }
        };
        leg.leave();
        left.push(first);
        // They serve on until others have taken their place.
        lanes_left.push(lanes);
        Better { joined, hello, way } = better;
    }
}

/// What is told of a tunnel while it goes over one transport.
struct Leg<'a> {
    status: &'a watch::Sender<TunnelStatus>,
    entry: NodeId,
    up: Up,
    connections: AtomicU16,
    stage: AtomicU8,
}

impl<'a> Leg<'a> {
    const ON_THE_WAY: u8 = 0;
    const UP: u8 = 1;
    const LEFT: u8 = 2;

    fn new(
        status: &'a watch::Sender<TunnelStatus>,
        entry: NodeId,
        joined: &Joined,
        transport: Transport,
        why_not_quic: Option<String>,
    ) -> Self {
        let up = Up {
            remote: joined.link.remote(),
            observed: joined.welcome.observed.clone(),
            since: Instant::now(),
            rtt: joined.link.rtt(),
            connections: 1,
            transport,
            why_not_quic,
        };
        Self { status, entry, up, connections: AtomicU16::new(1), stage: AtomicU8::new(Self::ON_THE_WAY) }
    }

    /// Up with the first pong, not with Welcome: the entry answers pings once it has put the node into its table, and
    /// whoever waits for "up" sends a request next.
    fn pong(&self, rtt: Duration) {
        let on_the_way = Self::ON_THE_WAY;
        match self.stage.compare_exchange(on_the_way, Self::UP, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                let Up { transport, why_not_quic, .. } = &self.up;
                let why = why_not_quic.as_deref().map(tracing::field::display);
                info!(entry = %self.entry.short(), ?rtt, %transport, why, "the tunnel is up");
                let connections = self.connections.load(Ordering::Relaxed);
                self.status.send_modify(|status| {
                    status.state = TunnelState::Up(Up { rtt, connections, ..self.up.clone() });
                    status.failures = 0;
                });
            }
            Err(Self::UP) => self.status.send_modify(|status| {
                if let TunnelState::Up(up) = &mut status.state {
                    up.rtt = rtt;
                }
            }),
            // Another one is told of.
            Err(_) => {}
        }
    }

    /// So many connections there are.
    fn count(&self, count: u16) {
        self.connections.store(count, Ordering::Relaxed);
        if self.stage.load(Ordering::Relaxed) == Self::UP {
            self.status.send_if_modified(|status| match &mut status.state {
                TunnelState::Up(up) => std::mem::replace(&mut up.connections, count) != count,
                _ => false,
            });
        }
    }

    /// The tunnel goes on over another one.
    fn leave(&self) {
        self.stage.store(Self::LEFT, Ordering::Relaxed);
    }
}

fn head_start_after(transport: Transport) -> Duration {
    match transport {
        Transport::Tcp => tuning::QUIC_HEAD_START_AFTER_TCP,
        Transport::Quic | Transport::Other => tuning::QUIC_HEAD_START,
    }
}
