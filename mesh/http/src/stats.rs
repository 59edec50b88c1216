//! Counters of one thread's forwarding. Each thread has its own, so that counting never waits; who exports them adds
//! the snapshots up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hedgerow_proto::frame::Refusal;

/// Upper bounds of the latency histogram's buckets; one more bucket is for what is above.
pub const LATENCY_BUCKETS: [Duration; 15] = {
    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
    [
        ms(1),
        ms(2),
        ms(5),
        ms(10),
        ms(25),
        ms(50),
        ms(100),
        ms(250),
        ms(500),
        ms(1000),
        ms(2500),
        ms(5000),
        ms(10_000),
        ms(30_000),
        ms(60_000),
    ]
};

const REFUSALS: [Refusal; 6] = [
    Refusal::Full,
    Refusal::Draining,
    Refusal::UnknownService,
    Refusal::ServiceDown,
    Refusal::Unsupported,
    Refusal::TooManyHops,
];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters.
        #[derive(Debug, Default)]
        pub struct Stats {
            $(pub(crate) $name: AtomicU64,)*
            refusals: [AtomicU64; REFUSALS.len()],
            latency: [AtomicU64; LATENCY_BUCKETS.len() + 1],
            latency_us: AtomicU64,
        }

        /// The counters at one moment. All but `in_flight` and `queued` only grow.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct StatsSnapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// REFUSEs by reason.
            pub refusals: [(&'static str, u64); REFUSALS.len()],
            /// How many answers began within each of [`LATENCY_BUCKETS`], and how many later.
            pub latency: [u64; LATENCY_BUCKETS.len() + 1],
            /// The sum of what they took, in microseconds.
            pub latency_us: u64,
        }

        impl Stats {
            /// The counters now.
            pub fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot {
                    $($name: self.$name.load(Relaxed),)*
                    refusals: std::array::from_fn(|i| (REFUSALS[i].as_str(), self.refusals[i].load(Relaxed))),
                    latency: std::array::from_fn(|i| self.latency[i].load(Relaxed)),
                    latency_us: self.latency_us.load(Relaxed),
                }
            }
        }

        impl StatsSnapshot {
            /// Adds another thread's.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                for ((name, mine), (its_name, its)) in self.refusals.iter_mut().zip(&other.refusals) {
                    *name = its_name;
                    *mine += its;
                }
                for (mine, its) in self.latency.iter_mut().zip(&other.latency) {
                    *mine += its;
                }
                self.latency_us += other.latency_us;
            }
        }
    };
}

counters! {
    /// Requests that came.
    requests,
    /// Those that a service answered, whatever it said.
    answered,
    /// Those whose fault was the client's (4xx of ours).
    bad_requests,
    /// 503: nobody offers the service.
    nobody,
    /// 503: all that offer it were full for too long.
    all_full,
    /// 502 with `outcome: not-run`.
    failed_not_run,
    /// 502 or 504 with `outcome: unknown`.
    failed_unknown,
    /// Clients that left before the whole answer was theirs.
    cancelled,
    /// Answers that broke after their beginning had been passed on.
    broken_answers,
    /// Attempts beyond the first of a request.
    retries,
    /// Retries since ACCEPT did not come in time, or the tunnel was suspected.
    hedges,
    /// Requests sent again to the same node over a stale connection.
    stale_resends,
    /// Streams opened, as against taken from the pool.
    streams_opened,
    /// Upgraded connections.
    upgrades,
    /// Requests and upgraded connections under way.
    in_flight,
    /// Requests that wait for a node to have room.
    queued,
}

impl Stats {
    pub(crate) fn refused(&self, refusal: Refusal) {
        if let Some(index) = REFUSALS.iter().position(|known| *known == refusal) {
            bump(&self.refusals[index]);
        }
    }

    pub(crate) fn latency(&self, latency: Duration) {
        let bucket = LATENCY_BUCKETS.iter().position(|bound| latency <= *bound).unwrap_or(LATENCY_BUCKETS.len());
        bump(&self.latency[bucket]);
        self.latency_us.fetch_add(latency.as_micros() as u64, Relaxed);
    }
}

/// Counts one.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// What a [`Gauge`] counts.
#[derive(Clone, Copy)]
pub(crate) enum Gauged {
    InFlight,
    Queued,
}

/// Counts one while it lives.
pub(crate) struct Gauge {
    stats: Arc<Stats>,
    what: Gauged,
}

impl Gauge {
    pub(crate) fn up(stats: &Arc<Stats>, what: Gauged) -> Self {
        let gauge = Self { stats: stats.clone(), what };
        gauge.counter().fetch_add(1, Relaxed);
        gauge
    }

    fn counter(&self) -> &AtomicU64 {
        match self.what {
            Gauged::InFlight => &self.stats.in_flight,
            Gauged::Queued => &self.stats.queued,
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.counter().fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let (one, two) = (Stats::default(), Stats::default());
        bump(&one.requests);
        bump(&two.requests);
        two.refused(Refusal::Full);
        two.latency(Duration::from_millis(3));
        two.latency(Duration::from_secs(100));
        let mut sum = one.snapshot();
        sum.add(&two.snapshot());
        assert_eq!((sum.requests, sum.refusals[0], sum.latency_us), (2, ("full", 1), 100_003_000));
        assert_eq!((sum.latency[2], sum.latency[LATENCY_BUCKETS.len()]), (1, 1));
    }
}
