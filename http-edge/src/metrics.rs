//! What the entry counts, and how Prometheus reads it. Every thread counts for itself; a scrape adds up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hedgerow_http::{LATENCY_BUCKETS, Stats, StatsSnapshot};
use hedgerow_tunnel::Transport;
use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::federation::Federation;
use crate::mesh_peer::Places;

/// A number that one thread changes and another reads.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(crate) fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one thread counts beside its forwarding.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Count,)*
            /// Answers by the first digit of their status, from 1 to 5.
            answers: [Count; 5],
        }

        impl Counters {
            fn add_to(&self, sum: &Counters) {
                $(sum.$name.add(self.$name.get());)*
                for (mine, sum) in self.answers.iter().zip(&sum.answers) {
                    sum.add(mine.get());
                }
            }
        }
    };
}

counters! {
    /// Clients' connections that are open.
    connections_open,
    /// Clients' connections that were taken.
    connections_accepted,
    /// TLS handshakes with clients that failed.
    tls_failed,
    /// Clients' bytes that came, as they were on the wire.
    bytes_received,
    /// Bytes that went to clients, as they were on the wire.
    bytes_sent,
    /// Nodes' connections that were taken.
    tunnels_accepted,
    /// Nodes' connections that were not let in, and told why.
    tunnels_rejected,
    /// Nodes' connections that were turned away since too many came at once.
    tunnels_turned_away,
    /// Nodes' connections whose handshake failed.
    handshakes_failed,
    /// Whoever asked for something else than a tunnel, as coordinators do, and was told from where they came.
    addresses_told,
    /// Peers of coordinators that were let through to one.
    mesh_peers_accepted,
    /// Peers of coordinators that were not let through.
    mesh_peers_refused,
}

impl Counters {
    /// Counts an answer to a client.
    pub(crate) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(count) = class.checked_sub(1).and_then(|class| self.answers.get(class)) {
            count.add(1);
        }
    }
}

/// Everything that is counted, for `/metrics`.
pub(crate) struct Metrics {
    pub(crate) federation: Arc<Federation>,
    pub(crate) mesh_peers: Arc<Places>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) stats: Vec<Arc<Stats>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics(of {} threads)", self.counters.len())
    }
}

impl Metrics {
    /// The page as Prometheus reads it (OpenMetrics text).
    pub(crate) fn page(self: &Arc<Self>) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("hedgerow_entry");
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn sums(&self) -> (Counters, StatsSnapshot) {
        let counters = Counters::default();
        self.counters.iter().for_each(|shard| shard.add_to(&counters));
        let mut stats = StatsSnapshot::default();
        self.stats.iter().for_each(|shard| stats.add(&shard.snapshot()));
        (counters, stats)
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (counters, stats) = self.sums();
        let snapshot = self.federation.snapshot();
        let mut page = Page(encoder);
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(counters.answers.iter().map(Count::get));
        page.counters("answers", "Answers to clients, by class of status", "class", classes)?;
        page.counter("requests", "Requests for services", stats.requests)?;
        let outcomes = [
            ("answered", stats.answered),
            ("bad-request", stats.bad_requests),
            ("no-worker", stats.nobody),
            ("all-full", stats.all_full),
            ("failed-not-run", stats.failed_not_run),
            ("failed-unknown", stats.failed_unknown),
            ("cancelled", stats.cancelled),
            ("answer-broke", stats.broken_answers),
        ];
        page.counters("outcomes", "How requests for services ended", "outcome", outcomes)?;
        page.counters("refusals", "Requests that a node refused, by reason", "reason", stats.refusals)?;
        page.counter("retries", "Attempts beyond the first of a request", stats.retries)?;
        page.counter("hedges", "Retries since a node was silent", stats.hedges)?;
        page.counter("stale_resends", "Requests sent again over a fresh connection", stats.stale_resends)?;
        page.counter("streams_opened", "Streams of tunnels opened for requests", stats.streams_opened)?;
        page.counter("upgrades", "Upgraded connections", stats.upgrades)?;
        page.gauge("in_flight", "Requests and upgraded connections under way", stats.in_flight)?;
        page.gauge("queued", "Requests that wait for a node to have room", stats.queued)?;
        page.latency(&stats)?;
        page.gauge("connections_open", "Clients' connections that are open", counters.connections_open.get())?;
        let accepted = counters.connections_accepted.get();
        page.counter("connections_accepted", "Clients' connections that were taken", accepted)?;
        page.counter("tls_failed", "TLS handshakes with clients that failed", counters.tls_failed.get())?;
        let bytes = [("received", counters.bytes_received.get()), ("sent", counters.bytes_sent.get())];
        page.counters("client_bytes", "Bytes of clients' connections on the wire", "direction", bytes)?;
        let nodes = [("coordinator", snapshot.coordinators_up as u64), ("worker", snapshot.workers_up as u64)];
        page.gauges("nodes", "Nodes that have a tunnel here; one may be both", "role", nodes)?;
        let routable = snapshot.guests.values().filter(|guest| guest.routable.is_ok()).count();
        let guests = [("routable", routable), ("not-routable", snapshot.guests.len() - routable)];
        let guests = guests.map(|(state, count)| (state, count as u64));
        page.gauges("guests", "Agents with a URL of their own that coordinators speak for", "state", guests)?;
        let lanes = [Transport::Quic, Transport::Tcp]
            .map(|transport| (transport.as_str(), snapshot.lanes.get(&transport).copied().unwrap_or(0) as u64));
        page.gauges("tunnels", "Nodes' connections that are open, by what carries them", "transport", lanes)?;
        let tunnels = [
            ("accepted", counters.tunnels_accepted.get()),
            ("rejected", counters.tunnels_rejected.get()),
            ("turned-away", counters.tunnels_turned_away.get()),
            ("failed", counters.handshakes_failed.get()),
            ("told-its-address", counters.addresses_told.get()),
        ];
        page.counters("tunnel_handshakes", "Nodes' connections that came, by outcome", "outcome", tunnels)?;
        let peers = self.mesh_peers.taken() as u64;
        page.gauge("mesh_peers_open", "Peers connected to coordinators by way of this entry", peers)?;
        let peers = [("accepted", counters.mesh_peers_accepted.get()), ("refused", counters.mesh_peers_refused.get())];
        page.counters("mesh_peers", "Peers that asked for a way to a coordinator, by outcome", "outcome", peers)
    }
}

/// Writes metrics one by one.
struct Page<'a>(DescriptorEncoder<'a>);

type Label = [(&'static str, &'static str); 1];

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> Result<(), fmt::Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in values {
            let labels: Label = [(label, value)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> Result<(), fmt::Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, count) in values {
            let labels: Label = [(label, value)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn latency(&mut self, stats: &StatsSnapshot) -> Result<(), fmt::Error> {
        let help = "How long it took until an answer began";
        let mut histogram = self.0.encode_descriptor("latency", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        let bounds = LATENCY_BUCKETS.iter().map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(stats.latency).collect();
        let count = stats.latency.iter().sum();
        histogram.encode_histogram::<NoLabelSet>(stats.latency_us as f64 / 1e6, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class() {
        let counters = Counters::default();
        for status in [200, 204, 404, 503] {
            counters.answered(StatusCode::from_u16(status).unwrap());
        }
        assert_eq!(counters.answers.each_ref().map(Count::get), [0, 2, 0, 1, 1]);
    }
}
