//! What other coordinators may ask of this one: exchanges with its own services, and with the workers that are at home here. They
//! ask for clients at their own ports; slots are counted where they always are, at the node that offers the service.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_mesh::host::relay::RelayStreams;
use hedgerow_mesh::replica::Replica;
use hedgerow_proto::frame::{Preface, Refusal, StreamKind};
use hedgerow_proto::id::NodeId;
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::serve::{OtherStream, serve_stream};
use hedgerow_tunnel::{Activity, DrainState, OpenService, Services};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{Instrument, debug};

/// Streams of one coordinator at once, idle ones included: what its own port has clients at most, and well below what a
/// connection carries, on which the two synchronise as well.
const STREAMS_PER_COORDINATOR_MAX: usize = 512;
/// Streams of all coordinators together: anybody can become one in an open federation.
const STREAMS_MAX: usize = 2048;

/// Serves other coordinators' streams, for as long as the host runs.
pub(super) async fn serve(
    mut streams: RelayStreams,
    replica: &Replica,
    services: &Arc<dyn Services>,
    drain: &watch::Receiver<DrainState>,
) {
    let mut places = Places::default();
    let activity = Arc::<Activity>::default();
    let mut running = JoinSet::new();
    loop {
        let (node, stream) = tokio::select! {
            arrived = streams.next() => match arrived {
                Some(arrived) => arrived,
                None => return,
            },
            Some(_) = running.join_next() => continue,
        };
        // What is dropped is reset: whoever opened it has sent nothing that could have run.
        if !replica.read(|registry| registry.coordinators().any(|known| known.record.writer == node)) {
            debug!(node = %node.short(), "somebody who is no coordinator here wants a stream to be passed on");
            continue;
        }
        let Some(place) = places.take(node) else {
            debug!(node = %node.short(), "a coordinator has as many streams here as it may");
            continue;
        };
        let (services, drain, activity) = (ForCoordinators(services.clone()), drain.clone(), activity.clone());
        let passing_on = async move {
            if let Err(error) = serve_stream(stream, &services, drain, &activity).await {
                debug!(node = %node.short(), %error, "a coordinator's stream ended");
            }
            drop(place);
        };
        running.spawn(passing_on.in_current_span());
    }
}

/// Of all that a node offers down its tunnels, what is for other coordinators. They synchronise and pass calls on by other ways, on
/// which is judged what they say.
struct ForCoordinators(Arc<dyn Services>);

impl Services for ForCoordinators {
    fn open<'a>(&'a self, preface: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        self.0.open(preface)
    }

    fn other(&self, preface: &Preface) -> Option<OtherStream> {
        // Only to workers that are here: nobody passes on what has been passed on.
        (preface.kind == StreamKind::Relay).then(|| self.0.other(preface)).flatten()
    }
}

/// Who has how many streams here.
struct Places {
    all: Arc<Semaphore>,
    of: BTreeMap<NodeId, Arc<Semaphore>>,
}

impl Default for Places {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(STREAMS_MAX)), of: BTreeMap::new() }
    }
}

/// Held for as long as a stream is served.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Places {
    /// A place for one more stream of this coordinator, if there is one.
    fn take(&mut self, node: NodeId) -> Option<Place> {
        // Those who have none any more: coordinators come and go.
        self.of.retain(|_, places| places.available_permits() < STREAMS_PER_COORDINATOR_MAX);
        let of_all = self.all.clone().try_acquire_owned().ok()?;
        let places = self.of.entry(node).or_insert_with(|| Arc::new(Semaphore::new(STREAMS_PER_COORDINATOR_MAX)));
        Some((of_all, places.clone().try_acquire_owned().ok()?))
    }
}

#[cfg(test)]
mod tests;
