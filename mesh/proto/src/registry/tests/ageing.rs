//! Leases, homes, lapsing, marks: what time does.

use super::*;

fn passed(registry: &mut Registry, now: Time, age: Duration, signed: &Signed) -> Result<Outcome, Refused> {
    registry.insert(now, signed.clone(), Source::Passed(age))
}

fn direct(registry: &mut Registry, now: Time, signed: &Signed) {
    registry.insert(now, signed.clone(), Source::Direct(None)).unwrap();
}

/// A coordinator 0, here by its lease.
fn with_coordinator() -> Registry {
    let mut registry = registry();
    direct(&mut registry, at(Duration::ZERO), &say(0, 1, 1, &coordinator()));
    direct(&mut registry, at(Duration::ZERO), &say(0, 1, 2, &lease()));
    registry
}

#[test]
fn a_lease_runs_out_on_the_receivers_clock_from_first_receipt_minus_the_stated_age() {
    let second = Duration::from_secs(1);
    for age in [Duration::ZERO, second * 20, second * 59] {
        let mut registry = registry();
        let now = at(Duration::ZERO);
        passed(&mut registry, now, age, &say(0, 1, 1, &coordinator())).unwrap();
        passed(&mut registry, now, age, &say(0, 1, 2, &lease())).unwrap();
        assert_eq!(registry.poll_timeout(), Some((now + (MINUTE - age), id(0), Wake::LeaseExpires)));
        // The same lease again does not refresh it, whoever brings it.
        passed(&mut registry, now + second / 2, Duration::ZERO, &say(0, 1, 2, &lease())).unwrap();
        direct(&mut registry, now + second / 2, &say(0, 1, 2, &lease()));
        registry.handle_timeout(now + (MINUTE - age) - Duration::from_millis(1));
        assert_eq!(registry.coordinators().count(), 1);
        registry.handle_timeout(now + (MINUTE - age));
        assert_eq!(registry.coordinators().count(), 0);
    }
}

#[test]
fn a_lease_learned_from_others_is_provisional_until_it_advances() {
    let mut registry = registry();
    let now = at(Duration::ZERO);
    passed(&mut registry, now, Duration::ZERO, &say(0, 1, 1, &lease())).unwrap();
    assert_eq!(registry.presence(&id(0)), Presence::Provisional);
    passed(&mut registry, now + MINUTE / 3, Duration::ZERO, &say(0, 1, 2, &lease())).unwrap();
    assert_eq!(registry.presence(&id(0)), Presence::Here);
}

#[test]
fn a_lease_learned_from_others_is_provisional_until_the_coordinator_is_met() {
    let mut registry = registry();
    let now = at(Duration::ZERO);
    passed(&mut registry, now, Duration::ZERO, &say(0, 1, 1, &lease())).unwrap();
    registry.meet(now, id(0));
    registry.part(now, id(0));
    assert_eq!(registry.presence(&id(0)), Presence::Here);
}

#[test]
fn a_lease_from_a_snapshot_is_provisional_even_when_the_next_one_comes_in_bulk() {
    let mut registry = registry();
    let now = at(Duration::ZERO);
    registry.insert(now, say(0, 1, 1, &lease()), Source::Snapshot(Duration::ZERO)).unwrap();
    passed(&mut registry, now, Duration::ZERO, &say(0, 1, 2, &lease())).unwrap();
    assert_eq!(registry.presence(&id(0)), Presence::Provisional);
    passed(&mut registry, now, Duration::ZERO, &say(0, 1, 3, &lease())).unwrap();
    assert_eq!(registry.presence(&id(0)), Presence::Here);
}

#[test]
fn after_a_suspend_nobody_is_dead_and_nobody_is_believed() {
    let mut registry = with_coordinator();
    let now = at(HOUR);
    registry.suspended(now);
    registry.handle_timeout(now);
    assert_eq!(registry.presence(&id(0)), Presence::Provisional);
    registry.handle_timeout(now + MINUTE);
    assert_eq!(registry.presence(&id(0)), Presence::Absent);
}

#[test]
fn a_coordinator_lapses_ten_minutes_after_its_lease_and_is_forgotten_a_day_later() {
    let mut registry = with_coordinator();
    let dead = at(MINUTE);
    registry.handle_timeout(dead);
    assert!(registry.node(&id(0)).is_some());
    registry.handle_timeout(dead + MINUTE * 10);
    assert!(registry.node(&id(0)).is_none());
    assert_eq!(registry.len(), 2);
    registry.handle_timeout(dead + MINUTE * 10 + HOUR * 24 - Duration::from_millis(1));
    assert_eq!(registry.len(), 2);
    registry.handle_timeout(dead + MINUTE * 10 + HOUR * 24);
    assert_eq!(registry.len(), 0);
}

#[test]
fn what_has_lapsed_comes_back_with_a_sign_of_life_and_with_nothing_else() {
    let mut registry = with_coordinator();
    let now = at(MINUTE * 30);
    registry.handle_timeout(now);
    let known = [say(0, 1, 1, &coordinator()), say(0, 1, 2, &lease())];
    for signed in &known {
        assert_eq!(passed(&mut registry, now, Duration::ZERO, signed), Ok(Outcome::Known));
    }
    // Something that it said before, and that was not known here, proves nothing.
    assert_eq!(
        passed(&mut registry, now, Duration::ZERO, &say(0, 1, 0, &guest("a", GuestStatus::Healthy))),
        Ok(Outcome::New)
    );
    assert!(registry.node(&id(0)).is_none() && registry.guest("a").is_none());
    passed(&mut registry, now, Duration::ZERO, &say(0, 1, 3, &lease())).unwrap();
    assert!(registry.node(&id(0)).is_some());
}

#[test]
fn a_worker_is_routable_while_its_tunnel_is_up() {
    let mut registry = registry();
    let now = at(Duration::ZERO);
    direct(&mut registry, now, &say(2, 1, 1, &node(Roles::Worker, None)));
    assert_eq!(registry.reach(&id(2)), Reach::None);
    registry.meet(now, id(2));
    registry.meet(now, id(2));
    assert_eq!(registry.reach(&id(2)), Reach::Tunnel);
    registry.handle_timeout(now + HOUR * 100);
    assert_eq!(registry.workers().count(), 1);
    registry.part(now + HOUR * 100, id(2));
    assert_eq!(registry.reach(&id(2)), Reach::Tunnel);
    registry.part(now + HOUR * 100, id(2));
    assert_eq!(registry.reach(&id(2)), Reach::None);
    registry.handle_timeout(now + HOUR * 100 + MINUTE * 10);
    assert_eq!(registry.workers().count(), 0);
}

#[test]
fn a_worker_is_routable_by_way_of_the_home_that_it_names_at_the_move_that_it_counts() {
    use AttachmentState::{Attached, Detached};
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    registry.meet(now, id(0));
    direct(&mut registry, now, &say(1, 1, 1, &coordinator()));
    registry.meet(now, id(1));
    direct(&mut registry, now, &say(2, 1, 1, &worker_of(0, 1)));
    direct(&mut registry, now, &say(0, 1, 3, &attachment(2, 1, Attached)));
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(0)));
    // Another coordinator cannot take it by a higher number.
    direct(&mut registry, now, &say(1, 1, 2, &attachment(2, 9, Attached)));
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(0)));
    // It moves; that the old home lets go of it only now undoes nothing.
    direct(&mut registry, now, &say(2, 1, 2, &worker_of(1, 2)));
    assert_eq!(registry.reach(&id(2)), Reach::None);
    direct(&mut registry, now, &say(1, 1, 3, &attachment(2, 2, Attached)));
    direct(&mut registry, now, &say(0, 1, 4, &attachment(2, 1, Detached)));
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(1)));
    // Its home goes.
    registry.part(now, id(1));
    assert_eq!(registry.reach(&id(2)), Reach::None);
}

#[test]
fn a_coordinator_that_has_started_again_holds_only_whom_it_says_it_holds() {
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    registry.meet(now, id(0));
    let held = |seq| say(0, 1, seq, &attachment(2, 1, AttachmentState::Attached));
    direct(&mut registry, now, &say(2, 1, 1, &worker_of(0, 1)));
    direct(&mut registry, now, &held(3));
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(0)));
    // Its next run has another epoch, and no connection of the earlier one.
    direct(&mut registry, now, &say(0, 2, 1, &coordinator()));
    assert_eq!(registry.reach(&id(2)), Reach::None);
    assert!(registry.writers[&id(2)].forget_at.is_some());
    // That somebody brings such an attachment later changes nothing.
    direct(&mut registry, now, &held(4));
    assert_eq!(registry.reach(&id(2)), Reach::None);
    let writer = &registry.writers[&id(0)];
    assert_eq!((writer.count(Kind::ATTACHMENT), writer.tombstones.len()), (0, 1));
    // The worker comes back to it.
    direct(&mut registry, now, &say(2, 1, 2, &worker_of(0, 2)));
    direct(&mut registry, now, &say(0, 2, 2, &attachment(2, 2, AttachmentState::Attached)));
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(0)));
    registry.handle_timeout(now + HOUR * 24);
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(0)));
}

#[test]
fn a_worker_stays_while_its_home_holds_it_and_lapses_ten_minutes_after() {
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    registry.meet(now, id(0));
    direct(&mut registry, now, &say(2, 1, 1, &worker_of(0, 1)));
    direct(&mut registry, now, &say(0, 1, 3, &attachment(2, 1, AttachmentState::Attached)));
    let later = now + HOUR * 30;
    registry.handle_timeout(later);
    assert_eq!(registry.reach(&id(2)), Reach::ViaHome(id(0)));
    direct(&mut registry, later, &say(0, 1, 4, &attachment(2, 1, AttachmentState::Detached)));
    registry.handle_timeout(later + MINUTE * 10 - Duration::from_millis(1));
    assert_eq!(registry.workers().count(), 1);
    registry.handle_timeout(later + MINUTE * 10);
    assert_eq!(registry.workers().count(), 0);
}

#[test]
fn guests_never_shadow_native_nodes() {
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    let native = id(2).to_string();
    direct(&mut registry, now, &say(0, 1, 3, &guest(&native, GuestStatus::Healthy)));
    direct(&mut registry, now, &say(0, 1, 4, &guest("agent", GuestStatus::Healthy)));
    assert!(registry.guest(&native).is_some());
    direct(&mut registry, now, &say(2, 1, 1, &node(Roles::Worker, None)));
    assert!(registry.guest(&native).is_none());
    assert_eq!(registry.guests().map(|view| view.guest.worker_id.as_str()).collect::<Vec<_>>(), ["agent"]);
    direct(&mut registry, now, &say(0, 1, 5, &guest("agent", GuestStatus::Gone)));
    assert!(registry.guest("agent").is_none());
}

#[test]
fn a_guest_of_two_coordinators_is_the_same_for_everybody() {
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    direct(&mut registry, now, &say(1, 1, 1, &lease()));
    for n in [0, 1] {
        direct(&mut registry, now, &say(n, 1, 3, &guest("agent", GuestStatus::Healthy)));
    }
    assert_eq!(registry.guest("agent").unwrap().coordinator, id(0).min(id(1)));
    direct(&mut registry, now + MINUTE / 2, &say(1, 1, 4, &lease()));
    registry.handle_timeout(now + MINUTE);
    assert_eq!(registry.guest("agent").unwrap().coordinator, id(1));
}

#[test]
fn what_an_absent_coordinator_said_of_guests_is_known_until_it_lapses() {
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    for (worker_id, status, seq) in [("agent", GuestStatus::Healthy, 3), ("gone", GuestStatus::Gone, 4)] {
        direct(&mut registry, now, &say(0, 1, seq, &guest(worker_id, status)));
    }
    let claims = |registry: &Registry| {
        let claims = registry.claims_of("agent").map(|view| (view.coordinator, view.presence)).collect::<Vec<_>>();
        let all = registry.guest_claims().map(|view| (view.coordinator, view.presence)).collect::<Vec<_>>();
        assert_eq!(claims, all);
        claims
    };
    assert_eq!(claims(&registry), [(id(0), Presence::Here)]);
    assert_eq!((registry.gone_guests("gone").count(), registry.gone_guests("agent").count()), (1, 0));
    registry.handle_timeout(now + MINUTE);
    assert!(registry.guest("agent").is_none());
    assert_eq!(claims(&registry), [(id(0), Presence::Absent)]);
    registry.handle_timeout(now + MINUTE * 11);
    assert_eq!(claims(&registry), []);
    assert_eq!(registry.gone_guests("gone").count(), 0);
    // What it said itself it finds again after a long sleep.
    let own: Vec<&str> = registry.guests_of(&id(0)).map(|guest| guest.worker_id.as_str()).collect();
    assert_eq!(own, ["agent"]);
}

#[test]
fn every_coordinators_word_on_a_guest_is_known_and_a_native_node_has_none() {
    let mut registry = with_coordinator();
    let now = at(Duration::ZERO);
    direct(&mut registry, now, &say(1, 1, 1, &lease()));
    let native = id(2).to_string();
    for n in [0, 1] {
        direct(&mut registry, now, &say(n, 1, 3, &guest("agent", GuestStatus::Healthy)));
        direct(&mut registry, now, &say(n, 1, 4, &guest(&native, GuestStatus::Healthy)));
    }
    direct(&mut registry, now, &say(2, 1, 1, &node(Roles::Worker, None)));
    assert_eq!(registry.claims_of("agent").count(), 2);
    assert_eq!((registry.claims_of(&native).count(), registry.guest_claims().count()), (0, 2));
}

#[test]
fn ages_travel_so_that_replicas_do_not_keep_each_others_dead_alive() {
    let mut one = registry();
    let start = at(Duration::ZERO);
    direct(&mut one, start, &say(2, 1, 1, &node(Roles::Worker, None)));
    direct(&mut one, start, &say(3, 1, 1, &Body::Leave));
    let mut now = start;
    let mut two = registry();
    // They tell each other everything, again and again, each time to a replica that has forgotten all.
    for _ in 0..49 {
        now = now + HOUR / 2;
        one.handle_timeout(now);
        two = registry();
        for (signed, age) in one.records(now) {
            two.insert(now, signed.clone(), Source::Passed(age)).unwrap();
        }
        std::mem::swap(&mut one, &mut two);
    }
    assert!(now.since(start) > HOUR * 24 + MINUTE * 20);
    one.handle_timeout(now);
    two.handle_timeout(now);
    assert_eq!((one.len(), two.len()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_tombstone_never_resurrects(
        before in proptest::collection::vec(any_record(), 1..12),
        wait_minutes in 0..1440_u32,
        ages_minutes in proptest::collection::vec(0..1500_u32, 12),
    ) {
        let mut registry = registry();
        let start = at(Duration::ZERO);
        for signed in &before {
            insert(&mut registry, start, signed);
        }
        let writers: Vec<u8> = vec![5, 6, 7];
        for n in &writers {
            insert(&mut registry, start, &say(*n, 2, 0, &Body::Leave));
        }
        let now = start + (MINUTE * wait_minutes).min(HOUR * 24 - MINUTE);
        registry.handle_timeout(now);
        for (signed, age) in before.iter().zip(&ages_minutes) {
            for source in [Source::Passed(MINUTE * *age), Source::Snapshot(MINUTE * *age), Source::Direct(None), Source::Own] {
                if let Ok(outcome) = registry.insert(now, signed.clone(), source) {
                    prop_assert!(!outcome.is_news(), "{:?}", outcome);
                }
            }
        }
        prop_assert_eq!(registry.nodes().count() + registry.guests().count(), 0);
        prop_assert_eq!(registry.len(), writers.len());
    }

    #[test]
    fn a_lapsed_node_is_not_shown_again_by_what_it_said_before(
        before in proptest::collection::vec(any_record(), 1..12),
        wait_minutes in 130..1440_u32,
    ) {
        let mut registry = registry();
        let start = at(Duration::ZERO);
        for signed in &before {
            insert(&mut registry, start, signed);
        }
        let now = start + MINUTE * wait_minutes;
        registry.handle_timeout(now);
        prop_assert_eq!(registry.nodes().count(), 0);
        for signed in &before {
            for source in [Source::Passed(Duration::ZERO), Source::Snapshot(Duration::ZERO), Source::Direct(None)] {
                // What was over by itself and has been forgotten may be told again; it shows nobody.
                let _ = registry.insert(now, signed.clone(), source);
            }
        }
        prop_assert_eq!(registry.nodes().count(), 0);
        prop_assert_eq!(registry.coordinators().count(), 0);
    }
}
