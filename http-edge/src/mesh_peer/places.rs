//! How many peers may be let through at once: few of one source, some to one coordinator, and a number in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow_proto::id::NodeId;
use tokio::time::Instant;

use super::pace::Bucket;
use crate::cidr::Cidr;

/// Connections of one source (an IPv4 /24, an IPv6 /48): a coordinator seeks eight neighbours. Anybody may come, and addresses are
/// dearer than keys.
const PER_SOURCE_MAX: usize = 8;
/// Connections to one coordinator: its neighbours, and workers that reach it in no other way; and what strangers can make it
/// hold. Well below the streams that an entry may have open on a tunnel, which requests need.
const PER_TARGET_MAX: usize = 64;
/// Connections in all: each costs two sockets' buffers and 32 KiB.
const ALL_MAX: usize = 4096;

/// Sources of which it is remembered that they have used up bursts: a burst is back after a quarter of an hour.
const SPENDERS_MAX: usize = 16 * 1024;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    /// Too many of one source.
    #[error(
        "your network has {PER_SOURCE_MAX} connections to coordinators by way of this entry already, and no more are let through"
    )]
    Source,
    /// Too many to one coordinator.
    #[error("this coordinator has {PER_TARGET_MAX} connections by way of this entry already: dial another one")]
    Target,
    /// Too many.
    #[error("{ALL_MAX} peers are connected by way of this entry already: try another entry")]
    Entry,
}

/// Who has which places, on all threads together.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_source: HashMap<Cidr, usize>,
    at_target: HashMap<NodeId, usize>,
    /// Buckets of connections that have ended, while they are not full. A source has as many buckets as places: whoever hangs up and
    /// comes again does not find a new one.
    spent: HashMap<Cidr, Vec<Bucket>>,
}

impl Taken {
    /// The bucket for one more connection of a source.
    fn bucket(&mut self, now: Instant, source: Cidr) -> Bucket {
        let open = self.of_source.get(&source).copied().unwrap_or(0);
        let Some(spent) = self.spent.get_mut(&source) else { return Bucket::full(now) };
        spent.retain(|bucket| !bucket.is_full(now));
        if open + spent.len() < PER_SOURCE_MAX {
            return Bucket::full(now);
        }
        let fullest = (0..spent.len()).max_by(|a, b| spent[*a].tokens(now).total_cmp(&spent[*b].tokens(now)));
        fullest.map_or_else(|| Bucket::full(now), |at| spent.swap_remove(at))
    }

    fn give_back(&mut self, now: Instant, source: Cidr, bucket: Bucket) {
        if self.spent.len() >= SPENDERS_MAX && !self.spent.contains_key(&source) {
            self.spent.retain(|_, spent| spent.iter().any(|bucket| !bucket.is_full(now)));
            if self.spent.len() >= SPENDERS_MAX {
                // So many networks at once are held up by nothing that could be remembered here.
                return;
            }
        }
        if !bucket.is_full(now) {
            self.spent.entry(source).or_default().push(bucket);
        }
    }
}

impl Places {
    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().all
    }

    /// Takes one, which is free again when it is dropped. Without a source there is no bound for it.
    pub(super) fn take(this: &Arc<Self>, source: Option<Cidr>, target: NodeId) -> Result<Place, Full> {
        let now = Instant::now();
        let mut taken = this.lock();
        let Taken { all, of_source, at_target, .. } = &mut *taken;
        if *all >= ALL_MAX {
            return Err(Full::Entry);
        }
        if source.and_then(|source| of_source.get(&source)).is_some_and(|count| *count >= PER_SOURCE_MAX) {
            return Err(Full::Source);
        }
        if at_target.get(&target).is_some_and(|count| *count >= PER_TARGET_MAX) {
            return Err(Full::Target);
        }
        *all += 1;
        *at_target.entry(target).or_default() += 1;
        let bucket = match source {
            Some(source) => {
                let bucket = taken.bucket(now, source);
                *taken.of_source.entry(source).or_default() += 1;
                bucket
            }
            None => Bucket::full(now),
        };
        drop(taken);
        Ok(Place { places: this.clone(), source, target, bucket })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing under the lock can panic half-way.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    source: Option<Cidr>,
    target: NodeId,
    /// What may pass.
    pub(super) bucket: Bucket,
}

impl Place {
    /// To whom.
    pub(super) fn target(&self) -> NodeId {
        self.target
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        count_down(&mut taken.at_target, &self.target);
        if let Some(source) = self.source {
            count_down(&mut taken.of_source, &source);
            taken.give_back(Instant::now(), source, self.bucket);
        }
    }
}

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(third: u8) -> Option<Cidr> {
        Some(Cidr::source([192, 0, third, 1].into()))
    }

    fn target(n: u16) -> NodeId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        NodeId(id)
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_up_and_comes_again_finds_what_was_left_and_not_a_new_burst() {
        let (places, start) = (Arc::<Places>::default(), Instant::now());
        let fresh = Bucket::full(start).tokens(start);
        let mut left = fresh;
        for round in 0..3 * PER_SOURCE_MAX {
            let mut place = Places::take(&places, source(1), target(round as u16)).unwrap();
            left = place.bucket.tokens(start);
            assert_eq!(left == fresh, round < PER_SOURCE_MAX, "as many bursts as places, and then no more: {round}");
            place.bucket.spend(start, fresh as usize);
        }
        assert!(left <= 0.0, "{left}");
        assert_eq!(Places::take(&places, source(2), target(0)).unwrap().bucket.tokens(start), fresh, "another source");
        tokio::time::advance(std::time::Duration::from_secs(4 * 3600)).await;
        drop(Places::take(&places, source(1), target(0)).unwrap());
        assert!(Places::take(&places, source(1), target(0)).unwrap().bucket.is_full(Instant::now()), "it comes back");
    }

    #[test]
    fn a_source_has_so_many_places_and_gets_them_back() {
        let places = Arc::<Places>::default();
        let mut held: Vec<_> =
            (0..PER_SOURCE_MAX as u16).map(|n| Places::take(&places, source(1), target(n)).unwrap()).collect();
        assert_eq!(Places::take(&places, source(1), target(99)).unwrap_err(), Full::Source);
        assert!(Places::take(&places, source(2), target(99)).is_ok(), "another source");
        held.pop();
        assert!(Places::take(&places, source(1), target(99)).is_ok());
        drop(held);
        assert_eq!(places.taken(), 0);
        assert!(places.lock().of_source.is_empty() && places.lock().at_target.is_empty());
    }

    #[test]
    fn a_coordinator_has_so_many_whoever_comes_and_the_entry_so_many_in_all() {
        let places = Arc::<Places>::default();
        let mut held: Vec<_> = (0..PER_TARGET_MAX).map(|_| Places::take(&places, None, target(0)).unwrap()).collect();
        assert_eq!(Places::take(&places, None, target(0)).unwrap_err(), Full::Target);
        let mut next = 1;
        while held.len() < ALL_MAX {
            held.push(Places::take(&places, None, target(next)).unwrap());
            next += 1;
        }
        assert_eq!(Places::take(&places, None, target(next)).unwrap_err(), Full::Entry);
    }
}
