use super::*;
use crate::limits::Limits;
use crate::record::{Roles, Version};
use crate::registry::Presence;
use crate::registry::tests::{FEDERATION, attachment, coordinator, guest, id, key, lease, node, say};

fn at(seconds: u64) -> Time {
    Time::from_origin(Duration::from_secs(1000 + seconds))
}

/// The replica of node `n`, in the run with this incarnation and epoch.
fn run(n: u8, incarnation: u64, epoch: u64) -> Core {
    let voice = Voice::new(key(n), FEDERATION, incarnation, epoch, Limits::PRODUCTION);
    Core::new(at(0), voice, Registry::new(FEDERATION, Limits::PRODUCTION), Duration::ZERO)
}

fn record(roles: Roles) -> NodeRecord {
    match node(roles, None) {
        Body::Node(record) => record,
        other => unreachable!("{other:?}"),
    }
}

/// What follows; the disk does at once what is asked of it.
fn events(core: &mut Core, now: Time) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = core.poll_event() {
        if let Event::RaiseEpoch { above } = event {
            core.epoch_raised(now, above + 1);
        }
        events.push(event);
    }
    events
}

fn sync(now: Time, one: &mut Core, two: &mut Core) {
    let (mut first, mut second) = (Session::initiate(), Session::respond());
    while !(first.is_finished() && second.is_finished()) {
        for message in one.turn(now, &mut first) {
            two.receive_if(now, &mut second, &message, |_, _| true).unwrap();
        }
        for message in two.turn(now, &mut second) {
            one.receive_if(now, &mut first, &message, |_, _| true).unwrap();
        }
    }
}

fn insert(core: &mut Core, now: Time, bytes: &Bytes, source: Source) -> Outcome {
    core.insert_if(now, bytes.clone(), source, |_, _| Ok::<(), ()>(())).unwrap()
}

fn hurried(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Hurry(_))).count()
}

#[test]
fn a_coordinator_renews_its_lease_and_a_worker_has_none() {
    let (mut one, mut two) = (run(1, 1, 1), run(2, 1, 1));
    one.announce(at(0), record(Roles::Coordinator)).unwrap();
    two.announce(at(0), record(Roles::Worker)).unwrap();
    assert_eq!(two.poll_timeout(), None);
    let before = one.registry().digest();
    one.handle_timeout(at(19), Duration::ZERO);
    assert_eq!(one.registry().digest(), before);
    assert_eq!(one.poll_timeout(), Some((at(20), Wake::RenewLease)));
    one.handle_timeout(at(20), Duration::ZERO);
    assert_ne!(one.registry().digest(), before);
    assert_eq!(one.poll_timeout(), Some((at(40), Wake::RenewLease)));
    // Seen to advance, it is believed; renewed no more, it runs out.
    sync(at(20), &mut one, &mut two);
    assert_eq!(two.registry().presence(&id(1)), Presence::Provisional);
    one.handle_timeout(at(40), Duration::ZERO);
    sync(at(40), &mut one, &mut two);
    assert_eq!(two.registry().presence(&id(1)), Presence::Here);
    assert_eq!(two.poll_timeout(), Some((at(100), Wake::Registry(id(1), registry::Wake::LeaseExpires))));
    two.handle_timeout(at(100), Duration::ZERO);
    assert_eq!(two.registry().presence(&id(1)), Presence::Absent);
}

#[test]
fn what_a_node_says_is_hurried_and_what_others_pass_on_is_not() {
    let mut one = run(1, 1, 1);
    one.announce(at(0), record(Roles::Coordinator)).unwrap();
    let said = events(&mut one, at(0));
    let own = said.iter().find_map(|event| match event {
        Event::OwnRecord(bytes) => Some(bytes.clone()),
        _ => None,
    });
    let own = Signed::open(own.unwrap(), FEDERATION, &Limits::PRODUCTION).unwrap();
    assert_eq!(own.record().node(), Some(&record(Roles::Coordinator)));
    assert_eq!(hurried(&said), 2, "the record and the lease");
    insert(&mut one, at(1), say(5, 1, 1, &coordinator()).bytes(), Source::Passed(Duration::ZERO));
    assert_eq!(events(&mut one, at(1)), []);
    let direct = say(6, 1, 1, &node(Roles::Worker, None));
    insert(&mut one, at(1), direct.bytes(), Source::Direct(None));
    assert_eq!(events(&mut one, at(1)), [Event::Hurry(direct.bytes().clone())]);
    insert(&mut one, at(2), direct.bytes(), Source::Direct(None));
    assert_eq!(events(&mut one, at(2)), [], "it is known");
}

#[test]
fn what_others_say_of_agents_is_told_by_either_way() {
    let (mut one, mut two) = (run(1, 1, 1), run(2, 1, 1));
    let news = |worker_id: &str| Event::GuestNews(GuestNews { coordinator: id(2), worker_id: worker_id.into() });
    two.say(at(0), guest("a", GuestStatus::Healthy)).unwrap();
    two.say(at(0), guest("b", GuestStatus::Healthy)).unwrap();
    let passed = events(&mut two, at(0)).into_iter().find_map(|event| match event {
        Event::Hurry(bytes) => Some(bytes),
        _ => None,
    });
    insert(&mut one, at(0), &passed.unwrap(), Source::Passed(Duration::ZERO));
    assert_eq!(events(&mut one, at(0)), [news("a")]);
    sync(at(0), &mut one, &mut two);
    assert_eq!(events(&mut one, at(0)), [news("b")]);
    assert_eq!(events(&mut two, at(0)), [], "its own word is no news to it");
}

#[test]
fn an_objection_leaves_everything_as_it_was() {
    let mut one = run(1, 1, 1);
    let before = one.registry().generation();
    let bytes = say(5, 1, 1, &coordinator()).bytes().clone();
    let refused = one.insert_if(at(0), bytes, Source::Direct(None), |_, _| Err("no"));
    assert_eq!(refused, Err(NotTaken::Objection("no")));
    let garbage = one.insert_if(at(0), Bytes::from_static(b"GET /"), Source::Own, |_, _| Ok::<(), ()>(()));
    assert!(matches!(garbage, Err(NotTaken::Bad(_))));
    assert_eq!(one.registry().generation(), before);
    assert_eq!(events(&mut one, at(0)), []);
}

#[test]
fn a_node_that_lost_its_disk_speaks_above_what_it_said_before_once() {
    let (mut before, mut other) = (run(1, 1, 5), run(2, 1, 1));
    before.announce(at(0), record(Roles::Coordinator)).unwrap();
    before.say(at(0), attachment(9, 1, AttachmentState::Attached)).unwrap();
    sync(at(0), &mut before, &mut other);
    let mut after = run(1, 2, 1);
    after.announce(at(1), NodeRecord { location: "there".into(), ..record(Roles::Coordinator) }).unwrap();
    after.say(at(1), attachment(9, 2, AttachmentState::Attached)).unwrap();
    after.say(at(1), attachment(9, 2, AttachmentState::Detached)).unwrap();
    drop(events(&mut after, at(1)));
    sync(at(1), &mut after, &mut other);
    let said = events(&mut after, at(1));
    let raised = said.iter().filter(|event| matches!(event, Event::RaiseEpoch { above: 5 })).count();
    assert_eq!((raised, after.epoch()), (1, 6), "{said:?}");
    assert_eq!(hurried(&said), 2, "the record and the lease; the attachment is over");
    sync(at(1), &mut after, &mut other);
    let known = other.registry().node(&id(1)).unwrap();
    assert_eq!((known.node().unwrap().location.as_str(), known.version.epoch), ("there", 6));
    assert_eq!(after.registry().digest(), other.registry().digest());
}

#[test]
fn an_epoch_that_nobody_asked_for_and_one_that_is_too_low_change_nothing() {
    let mut one = run(1, 1, 1);
    one.announce(at(0), record(Roles::Worker)).unwrap();
    drop(events(&mut one, at(0)));
    one.epoch_raised(at(0), 7);
    assert_eq!(one.epoch(), 1);
    let other_run =
        |epoch| Signed::sign(&key(1), FEDERATION, 2, Version { epoch, seq: 1 }, &node(Roles::Worker, None)).unwrap();
    for epoch in [5, 9] {
        insert(&mut one, at(0), other_run(epoch).bytes(), Source::Passed(Duration::ZERO));
    }
    assert_eq!(one.poll_event(), Some(Event::RaiseEpoch { above: 5 }));
    one.epoch_raised(at(0), 6);
    assert_eq!(one.epoch(), 1, "by then a higher one is known");
    assert_eq!(one.poll_event(), Some(Event::RaiseEpoch { above: 9 }));
    one.epoch_raised(at(0), 10);
    assert_eq!(one.epoch(), 10);
}

#[test]
fn of_two_equals_the_one_that_an_entry_holds_is_spoken_above_whichever_stands_here() {
    for incarnation in 2..10 {
        let mut before = run(1, 1, 1);
        before.announce(at(0), record(Roles::Coordinator)).unwrap();
        let held = before.registry().signed_node(&id(1)).unwrap().bytes().clone();
        let mut after = run(1, incarnation, 1);
        after.announce(at(0), record(Roles::Coordinator)).unwrap();
        after.say(at(0), lease()).unwrap();
        insert(&mut after, at(0), &held, Source::Passed(Duration::ZERO));
        drop(events(&mut after, at(0)));
        assert_eq!(after.epoch(), 2, "it has jumped, incarnation {incarnation}");
    }
}

#[test]
fn two_runs_with_one_key_do_not_go_on_for_ever() {
    let (mut one, mut two) = (run(1, 1, 1), run(1, 2, 1));
    for core in [&mut one, &mut two] {
        core.announce(at(0), record(Roles::Worker)).unwrap();
    }
    let failed = (0..10).find_map(|second| {
        sync(at(second), &mut one, &mut two);
        let mut said = events(&mut one, at(second));
        said.extend(events(&mut two, at(second)));
        said.into_iter().find(|event| matches!(event, Event::Failed(_)))
    });
    assert!(matches!(failed, Some(Event::Failed(SpeakError::KeyInUse(in_use))) if in_use.node == id(1)), "{failed:?}");
}

#[test]
fn after_leaving_nothing_is_said_again() {
    let (mut before, mut after) = (run(1, 1, 5), run(1, 2, 1));
    before.announce(at(0), record(Roles::Coordinator)).unwrap();
    after.announce(at(0), record(Roles::Coordinator)).unwrap();
    after.leave(at(0)).unwrap();
    assert_ne!(after.poll_timeout().map(|(_, wake)| wake), Some(Wake::RenewLease));
    drop(events(&mut after, at(0)));
    sync(at(0), &mut after, &mut before);
    assert_eq!(hurried(&events(&mut after, at(0))), 0);
    assert_eq!(after.epoch(), 6);
}

#[test]
fn after_a_suspend_nobody_is_dead() {
    let (mut one, mut two) = (run(1, 1, 1), run(2, 1, 1));
    one.announce(at(0), record(Roles::Coordinator)).unwrap();
    sync(at(0), &mut one, &mut two);
    let hour = Duration::from_secs(3600);
    two.handle_timeout(at(3600), hour);
    assert_eq!(two.registry().presence(&id(1)), Presence::Provisional);
    assert_eq!(two.handle_suspended(at(3600), hour + SUSPEND_MIN / 2), None, "a nap");
    two.handle_timeout(at(3660), hour);
    assert_eq!(two.registry().presence(&id(1)), Presence::Absent);
}

#[test]
fn what_it_knows_of_an_agent_goes_with_its_age() {
    let mut one = run(1, 1, 1);
    one.announce(at(0), record(Roles::Coordinator)).unwrap();
    one.say(at(0), guest("a", GuestStatus::Healthy)).unwrap();
    one.say(at(0), attachment(9, 1, AttachmentState::Attached)).unwrap();
    let records = one.guest_records(at(5), "a");
    assert_eq!(records.len(), 1);
    assert_eq!(one.guest_records(at(5), "b"), []);
    assert_eq!(one.introduction().len(), 2, "who it is and that it is here, and nothing of others");
}
