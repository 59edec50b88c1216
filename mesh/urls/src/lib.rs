//! Routes to URLs: agents that have a public address of their own, such as one of a Cloudflare tunnel, are asked there. Entries and
//! coordinators use it alike.
//!
//! ```text
//! registry ─▶ guests ─▶ may this URL be one? ─▶ is there room? ─▶ route: tunnel in memory ─▶ probe, dial, copy bytes
//!                       (contract::url)        (keeper)          (route)                    (probe, dial)
//!                             └──── no ────────────┴──── no ──────────────────────────────────┴── no ──▶ why not, for people
//! ```
//!
//! Who registers a URL is a stranger, and this process stands where the stranger does not: what guards against being sent to
//! places that are none of the stranger's business is in [`Dialler`], and nothing else dials an agent. To use it:
//!
//! 1. implement [`Guests`] for whatever holds the registry, and run [`keep`];
//! 2. make a candidate for each service of a guest whose [`way_to`] is one ([`Way::candidate`]).

mod dial;
mod keeper;
mod probe;
mod route;
mod why_not;

use std::collections::BTreeMap;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::GuestStatus;
use hedgerow_proto::registry::{GuestView, Presence, Registry};

pub use dial::Dialler;
pub use keeper::{Guests, check, keep};
pub use route::{SLOTS, Way, stand_in};
pub use why_not::{Unreachable, WhyNot};

/// What a coordinator says of a guest, as far as its route is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Who speaks for it.
    pub coordinator: NodeId,
    /// Where it says that it is.
    pub url: String,
}

/// By the guests' own ids.
pub type ByGuest<T> = BTreeMap<String, T>;

/// Whether each guest may be asked, and how, as far as its URL is concerned.
pub type Ways = ByGuest<Result<Way, WhyNot>>;

/// The guests that the registry shows, each once: if several coordinators speak for one, the one counts that
/// [`Registry::guest`] would name.
pub fn guests(registry: &Registry) -> BTreeMap<&str, GuestView<'_>> {
    let mut guests: BTreeMap<&str, GuestView<'_>> = BTreeMap::new();
    for view in registry.guests() {
        // They come in order of their coordinators' ids, and the first of the most present ones is it.
        let held = guests.entry(&view.guest.worker_id).or_insert(view);
        if view.presence > held.presence {
            *held = view;
        }
    }
    guests
}

/// The same, as [`Guests::guests`] needs them.
pub fn wanted(registry: &Registry) -> ByGuest<Wanted> {
    let wanted =
        |view: GuestView<'_>| Wanted { coordinator: view.coordinator, url: view.guest.details.tunnel_url.clone() };
    guests(registry).into_iter().map(|(id, view)| (id.to_owned(), wanted(view))).collect()
}

/// The way to a guest, if it may be asked now.
pub fn way_to<'a>(view: &GuestView<'_>, ways: &'a Ways) -> Result<&'a Way, WhyNot> {
    let way = ways.get(&view.guest.worker_id).ok_or(WhyNot::NotProbed)?.as_ref().map_err(|why_not| *why_not)?;
    if view.presence != Presence::Here {
        return Err(WhyNot::CoordinatorAway);
    }
    if view.guest.details.status != GuestStatus::Healthy {
        return Err(WhyNot::Degraded);
    }
    Ok(way)
}

/// Takes in what [`Guests::way_probed`] tells; whether that is news.
pub fn note_probed(ways: &mut Ways, worker_id: &str, way: Result<Way, WhyNot>) -> bool {
    let Some(known) = ways.get_mut(worker_id) else { return false };
    let is_news = known.as_ref().err() != way.as_ref().err();
    *known = way;
    is_news
}

/// Takes in what [`Guests::ways_changed`] tells.
pub fn note_changes(ways: &mut Ways, changes: ByGuest<Option<Result<Way, WhyNot>>>) {
    for (worker_id, way) in changes {
        match way {
            Some(way) => ways.insert(worker_id, way),
            None => ways.remove(&worker_id),
        };
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::clock::Time;
    use hedgerow_proto::id::FederationId;
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::limits::Limits;
    use hedgerow_proto::record::{Body, Guest, GuestDetails, Signed, Version};
    use hedgerow_proto::registry::Source;

    use super::*;

    const FEDERATION: FederationId = FederationId([1; 32]);

    fn says(registry: &mut Registry, key: &SecretKey, seq: u64, worker_id: &str) {
        let details = GuestDetails {
            worker_type: "cpu".into(),
            tunnel_url: "https://a.example".into(),
            location: String::new(),
            services: vec![],
            capabilities: String::new(),
            status: GuestStatus::Healthy,
            load_percent: 0,
        };
        let body = Body::Guest(Guest { worker_id: worker_id.into(), details });
        let signed = Signed::sign(key, FEDERATION, 1, Version { epoch: 1, seq }, &body).unwrap();
        registry.insert(Time::ORIGIN, signed, Source::Direct(None)).unwrap();
    }

    #[test]
    fn of_several_who_speak_for_a_guest_the_one_counts_that_everybody_names() {
        let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
        let mut keys = [1, 2, 3].map(|seed| SecretKey::from_seed([seed; 32]));
        keys.sort_by_key(|key| key.id());
        for key in &keys[1..] {
            says(&mut registry, key, 1, "both");
            registry.meet(Time::ORIGIN, key.id());
        }
        says(&mut registry, &keys[2], 2, "one");
        // The smallest id, and not there.
        says(&mut registry, &keys[0], 1, "both");
        let guests = guests(&registry);
        assert_eq!(guests.keys().copied().collect::<Vec<_>>(), ["both", "one"]);
        for (worker_id, coordinator) in [("both", &keys[1]), ("one", &keys[2])] {
            assert_eq!(guests[worker_id].coordinator, coordinator.id());
            assert_eq!(registry.guest(worker_id).unwrap().coordinator, coordinator.id());
        }
    }
}
