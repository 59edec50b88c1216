//! libp2p's timers are the patched ones, and wake whom the original ones wake: gossipsub's heartbeat, which nothing wakes
//! (libp2p-gossipsub 0.50.1), stalls here as it does in the world, unless somebody turns the loop.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use hedgerow_sim_full::federation::{self, Settings};
use hedgerow_sim_full::net::Network;
use hedgerow_sim_full::net::transport::{Security, upgraded};
use hedgerow_sim_full::time;
use hedgerow_sim_model::links::Links;
use hedgerow_sim_model::plan::Plan;
use hedgerow_sim_model::scenario::Scenario;
use libp2p::{Swarm, gossipsub, identity};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// What a beat of a lone host says: its mesh is too small.
const BEAT: &str = "HEARTBEAT: Mesh low";

#[derive(Clone, Default)]
struct Beats(Arc<AtomicUsize>);

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
        self.0.fetch_add(usize::from(message.0.contains(BEAT)), Ordering::Relaxed);
    }
}

fn alone() -> Scenario {
    let text =
        "about = 'x'\nduration = '60s'\nsettle = '10s'\n[population]\nentries = 0\ncoordinators = 1\nworkers = 0\n";
    Scenario::parse("alone", text).unwrap()
}

/// The lock file of this workspace names one futures-timer, from no registry, of the product's version.
#[test]
fn the_patched_timer_is_the_only_one() {
    let package = |lock: &str| -> Vec<(String, bool)> {
        let packages = lock.split("[[package]]").filter(|package| package.contains("name = \"futures-timer\""));
        let version =
            |package: &str| package.lines().find_map(|line| line.strip_prefix("version = ")).map(str::to_owned);
        packages.map(|package| (version(package).unwrap(), package.contains("source = "))).collect()
    };
    let ours = package(include_str!("../Cargo.lock"));
    let products = package(include_str!("../../../Cargo.lock"));
    assert_eq!((ours.len(), products.len()), (1, 1), "{ours:?} {products:?}");
    assert!(!ours[0].1, "it comes from the registry: the patch is not used");
    assert_eq!(ours[0].0, products[0].0, "cargo leaves a patch of another version aside");
}

#[test]
fn the_heartbeat_of_the_products_host_beats_once_a_second() {
    let beats = Beats::default();
    let counted = beats.clone();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().to_owned();
    let outcome = time::run(1, move || async move {
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(counted));
        let scenario = alone();
        federation::run(Settings {
            scenario,
            seed: 1,
            plan: None,
            security: Security::Noise,
            directory,
            narrator: None,
        })
        .await
    });
    outcome.unwrap().unwrap();
    time::check_timers().unwrap();
    let beats = beats.0.load(Ordering::Relaxed);
    assert!((57..=61).contains(&beats), "{beats} beats in 60 s");
}

#[test]
fn a_heartbeat_that_nothing_wakes_stalls_as_with_the_original_timer() {
    let beats = Beats::default();
    let counted = beats.clone();
    time::run(1, move || async move {
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(counted));
        let (scenario, seed) = (alone(), 1);
        let (_, layout) = Plan::draw(&scenario, seed);
        let network = Network::new(Links::new(&scenario, &layout, seed), 1);
        let key = identity::Keypair::generate_ed25519();
        let transport = upgraded(&network, 0, &key, Security::Plaintext, None).unwrap();
        let authenticity = gossipsub::MessageAuthenticity::Signed(key.clone());
        let mut behaviour: gossipsub::Behaviour =
            gossipsub::Behaviour::new(authenticity, gossipsub::Config::default()).unwrap();
        behaviour.subscribe(&gossipsub::IdentTopic::new("x")).unwrap();
        let config = libp2p::swarm::Config::with_tokio_executor();
        let mut swarm = Swarm::new(transport, behaviour, key.public().to_peer_id(), config);
        let quiet = async { while let Some(_event) = swarm.next().await {} };
        tokio::time::timeout(Duration::from_secs(15), quiet).await.unwrap_err();
    })
    .unwrap();
    let beats = beats.0.load(Ordering::Relaxed);
    assert!((1..=3).contains(&beats), "{beats} beats in 15 s, and the original timer lets it beat twice at most");
}
