//! Tunnels coming in on one thread: from the first packet to the end of the connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hedgerow_process::shutdown::{Shutdown, Stage};
use hedgerow_proto::frame::{Hello, close};
use hedgerow_tunnel::link::Link;
use hedgerow_tunnel::quic::Acceptor;
use hedgerow_tunnel::{TunnelError, TunnelEvent, TunnelEvents, welcome};
use tokio::task::spawn_local;
use tracing::debug;

use crate::cidr::Cidr;
use crate::federation::{Federation, Place};
use crate::metrics::Counters;
use crate::shard::Common;
use crate::sync;

/// Handshakes at once on one thread: each costs a millisecond of CPU and waits for the peer up to five seconds. After a
/// restart a thousand nodes come back in two seconds.
const HANDSHAKES_MAX: usize = 512;
/// From here on, a peer proves first that it receives at the address that it names, which costs it a round trip and a
/// forger of addresses the attack (RFC 9000 §8.1).
const HANDSHAKES_BEFORE_RETRY: usize = 128;
/// Handshakes at once of one source.
const HANDSHAKES_PER_SOURCE_MAX: usize = 64;

/// What the tunnels of one thread need.
pub(crate) struct Gatehouse {
    federation: Arc<Federation>,
    counters: Arc<Counters>,
    shutdown: Shutdown,
    hello: Hello,
    handshakes: RefCell<Handshakes>,
}

#[derive(Default)]
struct Handshakes {
    all: usize,
    by_source: HashMap<Cidr, usize>,
}

impl Gatehouse {
    /// For this thread.
    pub(crate) fn new(common: &Common, counters: Arc<Counters>, shard: usize) -> Self {
        let number = |n: usize| u16::try_from(n).expect("the settings allow no more than 256 threads");
        let hello = Hello {
            federation: common.identity.federation,
            incarnation: common.identity.incarnation,
            shard: number(shard),
            shards: number(common.settings.threads),
        };
        Self {
            federation: common.federation.clone(),
            counters,
            shutdown: common.shutdown.clone(),
            hello,
            handshakes: RefCell::default(),
        }
    }

    /// Takes tunnels in until the endpoint is closed.
    pub(crate) async fn accept(self: Rc<Self>, endpoint: quinn::Endpoint, acceptor: Rc<Acceptor>) {
        while let Some(incoming) = endpoint.accept().await {
            if self.shutdown.stage() != Stage::Running {
                // The node comes back when there is an entry again.
                incoming.refuse();
                continue;
            }
            let address = incoming.remote_address().ip();
            let Some(busy) = self.begin(address) else {
                self.counters.tunnels_turned_away.add(1);
                incoming.refuse();
                continue;
            };
            if self.handshakes.borrow().all > HANDSHAKES_BEFORE_RETRY && !incoming.remote_address_validated() {
                // The only error is that it has been validated after all.
                let _ = incoming.retry();
                continue;
            }
            let acceptor = acceptor.clone();
            let handshake = async move { acceptor.handshake(incoming).await };
            spawn_local(self.clone().tunnel(handshake, address, busy));
        }
    }

    /// Takes in one that has come up in some other way than over QUIC, until it ends.
    pub(crate) async fn take_in<L: Link>(
        self: Rc<Self>,
        handshake: impl Future<Output = Result<L, TunnelError>>,
        address: IpAddr,
    ) {
        if self.shutdown.stage() != Stage::Running {
            // The node comes back when there is an entry again.
            return;
        }
        match self.begin(address) {
            Some(busy) => self.tunnel(handshake, address, busy).await,
            None => self.counters.tunnels_turned_away.add(1),
        }
    }

    async fn tunnel<L: Link>(
        self: Rc<Self>,
        handshake: impl Future<Output = Result<L, TunnelError>>,
        address: IpAddr,
        busy: Busy,
    ) {
        // Nodes of this very machine are the operator's own: no quota by address for them.
        let address = Some(address).filter(|address| !address.to_canonical().is_loopback());
        match self.welcome(handshake, address).await {
            Ok((place, events)) => {
                drop(busy);
                self.listen(place, events).await;
            }
            Err(TunnelError::Rejected(reject)) => {
                self.counters.tunnels_rejected.add(1);
                debug!(reason = ?reject.reason, message = reject.message, "a node was not let in");
            }
            // Nodes dial until they have met every thread, and hang up on one that they know.
            Err(TunnelError::Closed(closed)) if closed.code == Some(close::GOING) => {}
            Err(TunnelError::NoTunnelWanted) => self.counters.addresses_told.add(1),
            Err(error) => {
                self.counters.handshakes_failed.add(1);
                debug!(%error, "a tunnel did not come up");
            }
        }
    }

    async fn welcome<L: Link>(
        &self,
        handshake: impl Future<Output = Result<L, TunnelError>>,
        address: Option<IpAddr>,
    ) -> Result<(Place, TunnelEvents), TunnelError> {
        let link = Arc::new(handshake.await?);
        let gate = self.federation.gate(address);
        let limits = &self.federation.limits;
        let (tunnel, events, signed, record) = welcome(link, self.hello.clone(), limits, &gate).await?;
        // Between the gate and here another connection of the same node may have come.
        let place = self.federation.join(self.hello.shard.into(), address, tunnel.clone(), signed, record);
        let place = place.map_err(|reject| {
            tunnel.close(close::REFUSED, &reject.message);
            TunnelError::Rejected(reject)
        })?;
        self.counters.tunnels_accepted.add(1);
        Ok((place, events))
    }

    async fn listen(&self, place: Place, mut events: TunnelEvents) {
        loop {
            let event = events.next().await;
            if matches!(event, TunnelEvent::Leave(..)) && self.federation.stops_calling(&place) {
                sync::before_leave(&self.federation, place.node()).await;
            }
            if self.federation.heard(&place, event).is_break() {
                return;
            }
        }
    }

    fn begin(self: &Rc<Self>, address: IpAddr) -> Option<Busy> {
        let source = Cidr::source(address);
        let mut handshakes = self.handshakes.borrow_mut();
        let of_source = handshakes.by_source.get(&source).copied().unwrap_or(0);
        // Peers of this machine are its own: they are bounded by the sum alone.
        let too_many = of_source >= HANDSHAKES_PER_SOURCE_MAX && !address.to_canonical().is_loopback();
        if handshakes.all >= HANDSHAKES_MAX || too_many {
            return None;
        }
        handshakes.all += 1;
        *handshakes.by_source.entry(source).or_default() += 1;
        Some(Busy { gatehouse: self.clone(), source })
    }
}

/// A handshake that counts while this lives.
struct Busy {
    gatehouse: Rc<Gatehouse>,
    source: Cidr,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut handshakes = self.gatehouse.handshakes.borrow_mut();
        handshakes.all -= 1;
        if let Some(count) = handshakes.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                handshakes.by_source.remove(&self.source);
            }
        }
    }
}
