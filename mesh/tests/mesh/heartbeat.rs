//! Gossipsub's heartbeat really beats. Its timer does not wake the swarm by itself (libp2p-gossipsub 0.50.1), so the host's
//! loop has to: this counts the beats of a host that has nothing else to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::common::Coordinator;

/// What a beat of a lone host says: its mesh is too small.
const BEAT: &str = "HEARTBEAT: Mesh low";
const BEATS: usize = 8;

#[derive(Clone, Default)]
struct Beats {
    count: Arc<AtomicUsize>,
    beat: Arc<Notify>,
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Beats {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.contains(BEAT) {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.beat.notify_one();
        }
    }
}

#[test]
fn the_heartbeat_beats_while_nothing_else_happens() {
    let beats = Beats::default();
    let subscriber = Arc::new(tracing_subscriber::registry().with(beats.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _default = tracing::subscriber::set_default(subscriber.clone());
    let scene = async {
        let _alone = Coordinator::start(&[]).await;
        while beats.count.load(Ordering::Relaxed) < BEATS {
            beats.beat.notified().await;
        }
    };
    // A host whose loop nothing turns made 2 beats in 15 s.
    let patience = Duration::from_secs(24);
    let beaten = runtime.block_on(async { tokio::time::timeout(patience, scene.with_subscriber(subscriber)).await });
    assert!(beaten.is_ok(), "{} beats in {patience:?}", beats.count.load(Ordering::Relaxed));
}
