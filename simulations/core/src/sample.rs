//! How things stand, once a virtual second, and what that comes to.

use std::collections::BTreeMap;

use hedgerow_proto::registry::Registry;
use hedgerow_sim_model::results::Sample;

use crate::check::Checker;
use crate::message::Link;
use crate::world::{Process, World};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) series: Vec<Sample>,
}

impl Samples {
    /// Takes one.
    pub(crate) fn take(world: &mut World) {
        let mut digests: BTreeMap<String, u32> = BTreeMap::new();
        let mut records = 0;
        for (_, member) in world.coordinators() {
            let registry = member.core.registry();
            *digests.entry(registry.digest().to_string()).or_default() += 1;
            records = records.max(registry.len() as u64);
        }
        let coordinators = digests.values().sum::<u32>();
        let most = digests.values().copied().max().unwrap_or_default();
        let honest = world.settings.layout.honest();
        let up = honest.clone().filter(|node| world.member(*node).is_some()).count() as u32;
        let workers = honest.filter(|node| world.member(*node).is_some_and(|member| !member.coordinates()));
        let workers_up = workers.count() as u32;
        let mut entries = world.settings.layout.entries.clone();
        let routable = entries.find_map(|entry| world.entry(entry)).map_or(0, |entry| entry.reached().count() as u32);
        let traffic = world.net.traffic;
        let sample = Sample {
            t_s: world.net.now.as_secs_f64(),
            nodes_up: up,
            coordinators_up: coordinators,
            digests: digests.len() as u32,
            agreeing: if coordinators == 0 { 0.0 } else { f64::from(most) / f64::from(coordinators) },
            records,
            mesh_connections: world.net.pairs(Link::Mesh).len() as u64,
            messages: traffic.messages,
            bytes: traffic.bytes,
            gossip_bytes: traffic.gossip_bytes,
            sync_bytes: traffic.sync_bytes,
            requests: world.book.asked,
            answered: world.book.answered,
            failed: world.book.failed,
            routable,
            workers_up,
            faults: world.faults,
        };
        world.samples.series.push(sample);
        Checker::second(world);
    }

    /// What it all comes to.
    pub(crate) fn figures(world: &World) -> BTreeMap<String, f64> {
        let mut figures = BTreeMap::new();
        let mut put = |name: &str, value: f64| _ = figures.insert(name.to_owned(), value);
        let series = &world.samples.series;
        let Some(last) = series.last() else { return figures };
        let seconds = last.t_s.max(1.0);
        let coordinators = f64::from(last.coordinators_up.max(1));
        put("bytes_per_node_per_s", last.bytes as f64 / seconds / f64::from(last.nodes_up.max(1)));
        put("messages_per_node_per_s", last.messages as f64 / seconds / f64::from(last.nodes_up.max(1)));
        put("mesh_bytes_per_coordinator_per_s", (last.gossip_bytes + last.sync_bytes) as f64 / seconds / coordinators);
        // The last half minute, in which nothing is wrong.
        if let Some(before) = series.iter().rev().find(|sample| sample.t_s <= last.t_s - 30.0) {
            let idle = (last.gossip_bytes + last.sync_bytes - before.gossip_bytes - before.sync_bytes) as f64;
            put("idle_mesh_bytes_per_coordinator_per_s", idle / 30.0 / coordinators);
        }
        let joined = world.settings.layout.coordinators.len() as u32;
        let agreed_after = |from: f64| {
            series
                .iter()
                .find(|s| s.t_s >= from && s.agreeing >= 1.0 && s.coordinators_up >= joined.min(last.coordinators_up))
                .map(|s| s.t_s - from)
        };
        if let Some(agreed) = agreed_after(0.0) {
            put("first_agreed_s", agreed);
        }
        if let Some(agreed) = agreed_after(world.plan.over_at().as_secs_f64()) {
            put("agreed_after_faults_s", agreed);
        }
        put("agreeing_share", series.iter().map(|sample| sample.agreeing).sum::<f64>() / series.len() as f64);
        let running: f64 = series.iter().map(|sample| f64::from(sample.workers_up)).sum();
        let routable: f64 = series.iter().map(|sample| f64::from(sample.routable)).sum();
        put("routable_share", if running > 0.0 { routable / running } else { 1.0 });
        put("requests", last.requests as f64);
        put("answered_share", if last.requests > 0 { last.answered as f64 / last.requests as f64 } else { 1.0 });
        let mut latencies = world.book.latencies_ms.clone();
        latencies.sort_unstable_by(f64::total_cmp);
        for (name, at) in [("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)] {
            let rank = ((latencies.len() as f64 * at) as usize).min(latencies.len().saturating_sub(1));
            if let Some(latency) = latencies.get(rank) {
                put(name, *latency);
            }
        }
        put("records", last.records as f64);
        let entry = world.machines.iter().find_map(|machine| match &machine.process {
            Some(Process::Entry(entry)) => Some(record_bytes(world, &entry.registry)),
            _ => None,
        });
        put("entry_record_bytes", entry.unwrap_or_default());
        put("mesh_neighbours", 2.0 * last.mesh_connections as f64 / coordinators);
        figures
    }
}

/// The bytes of the records that a registry holds.
fn record_bytes(world: &World, registry: &Registry) -> f64 {
    let writers = world.book.index.keys();
    writers.flat_map(|id| registry.records_of(id)).map(|signed| signed.bytes().len()).sum::<usize>() as f64
}
