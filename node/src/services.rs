//! The services that the operator named: who gets a slot, and the connection behind it. Capacity is counted here and nowhere
//! else, across all tunnels and the LAN port.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hedgerow_proto::frame::{Preface, Refusal, ServiceConnection, StreamKind, WhenFull};
use hedgerow_proto::id::ServiceName;
use hedgerow_proto::record::{ServiceHealth, ServiceOffer};
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::slots::{Granted, Slots};
use hedgerow_tunnel::{BoxIo, OpenService, Services};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::platform::{Connect, Tcp};
use crate::service_spec::ServiceSpec;

/// How long a connection to a service on this machine or its LAN may take to come up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection is kept idle. Below what common servers allow (Node and uvicorn close after 5 s), so that it is
/// seldom they who close, just as a request is on its way.
const KEPT_FOR: Duration = Duration::from_secs(4);
/// How long a request waits for the slot of a health probe that it has called off.
const PROBE_GIVES_WAY_WITHIN: Duration = Duration::from_millis(500);

/// All services of this node.
pub struct LocalServices {
    services: BTreeMap<ServiceName, Arc<LocalService>>,
    health_changes: watch::Sender<u64>,
}

/// One service: its slots, its kept connections, its health, and what it has done.
pub struct LocalService {
    /// What the operator said of it.
    pub spec: ServiceSpec,
    slots: Arc<Slots>,
    health: watch::Sender<Health>,
    connects: Box<dyn Connect>,
    probe: ProbeSlot,
    /// A connection failed: the next probe should not wait.
    pub(crate) doubted: Notify,
    counts: Counts,
}

/// What the probe has found.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether it takes requests.
    pub state: ServiceHealth,
    /// Since when.
    pub since: Instant,
    /// Why not, when it does not.
    pub error: Option<String>,
}

#[derive(Default)]
struct Counts {
    taken: AtomicU64,
    refused_full: AtomicU64,
    refused_down: AtomicU64,
}

/// The slot that a health probe holds: a request that finds all slots taken calls it off.
#[derive(Default)]
struct ProbeSlot {
    held: std::sync::atomic::AtomicBool,
    call_off: Notify,
    freed: Notify,
}

/// What a service has done, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Requests that got a slot and a connection.
    pub taken: u64,
    /// Requests refused because all slots were taken.
    pub refused_full: u64,
    /// Requests refused because the service took no connection.
    pub refused_down: u64,
}

impl LocalServices {
    /// All of them down until they are probed.
    pub fn new(specs: Vec<ServiceSpec>) -> Self {
        Self::over(specs, || Box::new(Tcp::default()))
    }

    /// The same, each reached by a connector of its own.
    pub fn over(specs: Vec<ServiceSpec>, connector: impl Fn() -> Box<dyn Connect>) -> Self {
        let service = |spec: ServiceSpec| (spec.name.clone(), Arc::new(LocalService::new(spec, connector())));
        let services = specs.into_iter().map(service).collect();
        Self { services, health_changes: watch::Sender::new(0) }
    }

    /// The services, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LocalService>> {
        self.services.values()
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// What the node's record says of them.
    pub fn offers(&self) -> Vec<ServiceOffer> {
        self.iter()
            .map(|service| ServiceOffer {
                name: service.spec.name.clone(),
                capacity: service.spec.capacity,
                health: service.health().state,
            })
            .collect()
    }

    /// Changes whenever the health of one of them does.
    pub fn health_changes(&self) -> watch::Receiver<u64> {
        self.health_changes.subscribe()
    }

    /// Notes what a probe has found.
    pub fn set_health(&self, service: &LocalService, state: ServiceHealth, error: Option<String>) {
        service.health.send_replace(Health { state, since: Instant::now(), error });
        self.health_changes.send_modify(|count| *count += 1);
    }

    /// Closes kept connections that are idle for too long; runs for ever.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            for service in self.iter() {
                service.slots.sweep();
            }
        }
    }
}

impl LocalService {
    fn new(spec: ServiceSpec, connects: Box<dyn Connect>) -> Self {
        Self {
            slots: Slots::new(spec.capacity, KEPT_FOR),
            health: watch::Sender::new(Health { state: ServiceHealth::Down, since: Instant::now(), error: None }),
            spec,
            connects,
            probe: ProbeSlot::default(),
            doubted: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// Its health as last probed.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Slots taken now.
    pub fn in_use(&self) -> u32 {
        self.slots.used()
    }

    /// What it has done.
    pub fn counts(&self) -> ServiceCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ServiceCounts {
            taken: read(&self.counts.taken),
            refused_full: read(&self.counts.refused_full),
            refused_down: read(&self.counts.refused_down),
        }
    }

    /// A connection to the service.
    pub(crate) async fn connect(&self) -> io::Result<BoxIo> {
        timeout(CONNECT_TIMEOUT, self.connects.connect(&self.spec.address)).await.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            ))
        })
    }

    async fn open(&self, preface: &Preface) -> Result<OpenService, Refusal> {
        let reuse = preface.kind == StreamKind::Http && preface.connection == ServiceConnection::MayReuse;
        let Some(granted) = self.take(reuse, preface.when_full).await else {
            self.counts.refused_full.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::Full);
        };
        // From here on the slot goes back whatever happens, also when the entry gives up while we connect.
        let slot = granted.slot;
        let (io, reused): (BoxIo, bool) = match granted.kept {
            Some(kept) => (kept, true),
            None => match self.connect().await {
                Ok(stream) => (stream, false),
                Err(error) => {
                    debug!(request = %preface.request, service = %self.spec.name, %error, "the service takes no connection");
                    self.counts.refused_down.fetch_add(1, Ordering::Relaxed);
                    self.doubted.notify_one();
                    return Err(Refusal::ServiceDown);
                }
            },
        };
        self.counts.taken.fetch_add(1, Ordering::Relaxed);
        Ok(OpenService { io, reused, slot })
    }

    /// A slot, and perhaps a kept connection. A health probe that holds the last slot gives way.
    async fn take(&self, reuse: bool, when_full: WhenFull) -> Option<Granted> {
        if let Ok(granted) = self.slots.take(reuse) {
            return Some(granted);
        }
        let freed = self.probe.freed.notified();
        tokio::pin!(freed);
        freed.as_mut().enable();
        let probed = self.probe.held.load(Ordering::Acquire);
        if probed {
            self.probe.call_off.notify_one();
        }
        let granted = match when_full {
            // The probe's slot goes to the line like any other.
            WhenFull::Wait => self.slots.take_in_line(reuse, WhenFull::IN_LINE_MAX).await,
            WhenFull::Refuse if probed => {
                timeout(PROBE_GIVES_WAY_WITHIN, freed).await.ok()?;
                self.slots.take(reuse)
            }
            WhenFull::Refuse => return None,
        };
        granted.ok()
    }

    /// Runs a health probe in a slot of its own. `None`: no slot was free, or a request needed it.
    pub(crate) async fn probe_in_slot<T>(&self, probe: impl Future<Output = T>) -> Option<T> {
        struct Held<'a>(&'a LocalService, Option<Granted>);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                // In this order: whoever hears of it finds the slot.
                drop(self.1.take());
                self.0.probe.held.store(false, Ordering::Release);
                self.0.probe.freed.notify_waiters();
            }
        }
        let granted = self.slots.take(false).ok()?;
        self.probe.held.store(true, Ordering::Release);
        let _held = Held(self, Some(granted));
        tokio::select! {
            outcome = probe => Some(outcome),
            () = self.probe.call_off.notified() => None,
        }
    }
}

impl Services for LocalServices {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async move {
            if !matches!(preface.kind, StreamKind::Http | StreamKind::Upgrade) {
                return Err(Refusal::Unsupported);
            }
            let service = preface.service.as_ref().and_then(|name| self.services.get(name));
            service.ok_or(Refusal::UnknownService)?.open(preface).await
        })
    }
}
