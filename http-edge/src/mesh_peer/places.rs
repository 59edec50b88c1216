//! How many peers may be let through at once: few of one source, some to one coordinator, and a number in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow_proto::id::NodeId;

use crate::cidr::Cidr;

/// Connections of one source (an IPv4 /24, an IPv6 /48): a coordinator seeks eight neighbours. Anybody may come, and addresses are
/// dearer than keys.
const PER_SOURCE_MAX: usize = 8;
/// Connections to one coordinator: its neighbours, and workers that reach it in no other way; and what strangers can make it
/// hold. Well below the streams that an entry may have open on a tunnel, which requests need.
const PER_TARGET_MAX: usize = 64;
/// Connections in all: each costs two sockets' buffers and 32 KiB.
const ALL_MAX: usize = 4096;

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
}

impl Places {
    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().all
    }

    /// Takes one, which is free again when it is dropped. Without a source there is no bound for it.
    pub(super) fn take(this: &Arc<Self>, source: Option<Cidr>, target: NodeId) -> Result<Place, Full> {
        let mut taken = this.lock();
        let Taken { all, of_source, at_target } = &mut *taken;
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
        if let Some(source) = source {
            *of_source.entry(source).or_default() += 1;
        }
        drop(taken);
        Ok(Place { places: this.clone(), source, target })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Three numbers, each changed whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    source: Option<Cidr>,
    target: NodeId,
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
        let Taken { all, of_source, at_target } = &mut *taken;
        *all -= 1;
        give_back(at_target, &self.target);
        if let Some(source) = &self.source {
            give_back(of_source, source);
        }
    }
}

fn give_back<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
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
