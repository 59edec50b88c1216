//! One guest's route: a tunnel in memory whose other end is served here, by connections to the guest's URL. So requests take
//! the way that all requests take, with its slots, retries, streams and time-outs.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_contract::url::UrlTarget;
use hedgerow_http::{Candidate, Loads};
use hedgerow_proto::frame::{Preface, Refusal, ServiceConnection, StreamKind, WhenFull, close};
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::memory::{self, MemoryLink};
use hedgerow_tunnel::slots::Slots;
use hedgerow_tunnel::{Activity, BoxIo, DrainState, Link, OpenService, Services, Tunnel, serve_link};
use http::HeaderValue;
use http::header::InvalidHeaderValue;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{interval, sleep};
use tracing::debug;

use crate::dial::Dialler;
use crate::probe::{Verdict, probe};
use crate::why_not::WhyNot;

/// Requests that a guest gets at once from here, and connections to it: what a node has whose operator says nothing.
pub const SLOTS: u32 = 16;
/// How long a connection is kept idle. A new one costs a lookup and two handshakes over the internet, and what stands in
/// front of agents keeps theirs for minutes; who closes sooner is noticed before the connection is used again.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// How often kept connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// At most so often is a guest probed, whatever its requests meet.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// However long a guest takes to connect to, a request that may go elsewhere waits no longer for it.
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// The way to a guest, for as long as it can be asked. Clones are the same way.
#[derive(Debug, Clone)]
pub struct Way {
    /// Its requests go down here.
    pub(crate) tunnel: Tunnel,
    /// What they have as `Host`.
    authority: HeaderValue,
    /// What stands in front of their paths.
    base: Arc<str>,
    /// What its answers are said to come from: the name that it has given itself, where that can stand in a header.
    name: Option<HeaderValue>,
}

impl Way {
    /// The guest as somebody who can be asked for this service.
    pub fn candidate(&self, service: &ServiceName, loads: &Loads) -> Candidate {
        let load = loads.of(self.tunnel.node(), service);
        let candidate = Candidate::new(service, self.tunnel.clone(), SLOTS, load);
        let candidate = candidate.at(self.authority.clone(), &self.base);
        match &self.name {
            Some(name) => candidate.named(name.clone()),
            None => candidate,
        }
    }
}

/// What a guest is called among nodes: the hash of its own name, whichever coordinator speaks for it. It is no key, nobody can
/// sign for it, and no path leads to it; balancing and retries tell candidates apart by it.
pub fn stand_in(worker_id: &str) -> NodeId {
    let mut hash = Sha256::new();
    hash.update(b"hedgerow guest, not a key\0");
    hash.update(worker_id.as_bytes());
    NodeId(hash.finalize().into())
}

/// The other end of the way: what answers there.
pub(crate) struct Route {
    link: Arc<MemoryLink>,
    guest: Arc<Guest>,
}

struct Guest {
    dialler: Arc<Dialler>,
    url: UrlTarget,
    slots: Arc<Slots>,
    /// A request found no connection: the next probe should not wait.
    doubted: Notify,
}

/// A way to this guest, and what has to run behind it.
pub(crate) fn open(worker_id: &str, url: UrlTarget, dialler: Arc<Dialler>) -> Result<(Way, Route), InvalidHeaderValue> {
    let authority = HeaderValue::try_from(url.authority())?;
    let id = stand_in(worker_id);
    let (near, far) = memory::pair(id, id);
    let base = url.path_prefix.as_str().into();
    // Its candidates say what their requests have as `Host`.
    let name = HeaderValue::from_str(worker_id).ok();
    let way = Way { tunnel: Tunnel::detached(Arc::new(near), Vec::new()), authority, base, name };
    let guest = Guest { dialler, url, slots: Slots::new(SLOTS, KEPT_FOR), doubted: Notify::new() };
    Ok((way, Route { link: Arc::new(far), guest: Arc::new(guest) }))
}

impl Drop for Route {
    fn drop(&mut self) {
        self.link.close(close::GOING, "the guest has no route any more");
    }
}

impl Route {
    /// Serves the way until it is closed, and says after each probe whether the guest may be asked.
    pub(crate) async fn run(self, probes: Arc<Semaphore>, seed: u64, say: impl Fn(Result<(), WhyNot>) + Send) {
        // A route does not drain: it is there or not.
        let drain = watch::Sender::new(DrainState::Running);
        let serving = serve_link(self.link.clone(), self.guest.clone(), drain.subscribe(), Arc::<Activity>::default());
        tokio::select! {
            closed = serving => debug!(reason = %closed, "a route to a URL is closed"),
            () = self.watch(&probes, seed, say) => {}
            () = self.sweep() => {}
        }
    }

    async fn watch(&self, probes: &Semaphore, seed: u64, say: impl Fn(Result<(), WhyNot>)) {
        let mut verdict = Verdict::default();
        let mut random = fastrand::Rng::with_seed(seed);
        loop {
            let outcome = {
                // Closed by nobody.
                let Ok(_permit) = probes.acquire().await else { return };
                probe(&self.guest.dialler, &self.guest.url).await
            };
            match outcome {
                // An agent that answers one request at a time is at work on one of ours.
                Err(WhyNot::Silent) if verdict.is_well() && self.guest.slots.used() > 0 => {}
                outcome => {
                    let may_be_asked = verdict.observe(outcome.is_ok());
                    if let Ok(took) = outcome {
                        self.link.set_rtt(took.min(PATIENCE_MAX));
                    }
                    match outcome {
                        Err(why) if !may_be_asked => say(Err(why)),
                        _ => say(Ok(())),
                    }
                }
            }
            sleep(PROBE_PAUSE).await;
            // Within a tenth, so that guests that came together are not probed together for ever.
            let pause = verdict.next_look().mul_f32(0.9 + 0.2 * random.f32()).saturating_sub(PROBE_PAUSE);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.guest.doubted.notified(), if verdict.is_well() => {}
            }
        }
    }

    async fn sweep(&self) {
        let mut tick = interval(SWEEP_INTERVAL);
        loop {
            tick.tick().await;
            self.guest.slots.sweep();
        }
    }
}

impl Services for Guest {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async move {
            if !matches!(preface.kind, StreamKind::Http | StreamKind::Upgrade) {
                return Err(Refusal::Unsupported);
            }
            let reuse = preface.kind == StreamKind::Http && preface.connection == ServiceConnection::MayReuse;
            // The slot goes back whatever happens, also when the client goes away while we connect.
            let granted = match preface.when_full {
                WhenFull::Wait => self.slots.take_in_line(reuse, WhenFull::IN_LINE_MAX).await,
                WhenFull::Refuse => self.slots.take(reuse),
            };
            let granted = granted.map_err(|_| Refusal::Full)?;
            let (io, reused): (BoxIo, bool) = match granted.kept {
                Some(kept) => (kept, true),
                None => match self.dialler.dial(&self.url).await {
                    Ok(fresh) => (fresh, false),
                    Err(error) => {
                        debug!(request = %preface.request, %error, "a guest takes no connection");
                        self.doubted.notify_one();
                        return Err(Refusal::ServiceDown);
                    }
                },
            };
            Ok(OpenService { io, reused, slot: granted.slot })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_the_same_stand_in_everywhere_and_no_other_has_it() {
        assert_eq!(stand_in("agent-7").to_string(), "3ad46c99816a52791f97eb25bdb094a26ac742351cd558271c056667fb5051e2");
        assert_ne!(stand_in("agent-7"), stand_in("agent-8"));
    }
}
