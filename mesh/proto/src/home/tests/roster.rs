//! The coordinator's side: what it says is where its workers are.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::frame::RejectReason;
use crate::home::roster::{DETACH_AFTER, Output, TELL_AFTER, Wake, told_of};
use crate::record::{Attachment, AttachmentState, Roles};
use crate::registry::tests::{lease, node, registry, worker_of};
use crate::registry::{Registry, Source};

const ME: u8 = 0;
const SECOND: Duration = Duration::from_secs(1);

type Outputs = Vec<Output<u64>>;

struct World {
    roster: Roster<u64>,
    registry: Registry,
    now: Time,
    seq: u64,
}

impl World {
    fn new(limits: &Limits) -> Self {
        Self { roster: Roster::new(id(ME), limits), registry: registry(), now: now(), seq: 0 }
    }

    fn record(&mut self, worker: u8, home_seq: u64) -> (Signed, Record) {
        self.seq += 1;
        let signed = say(worker, 1, self.seq, &worker_of(ME, home_seq));
        let record = open(&signed);
        (signed, record)
    }

    fn arrives(&mut self, worker: u8, home_seq: u64, connection: u64) -> Outputs {
        let (signed, record) = self.record(worker, home_seq);
        assert!(self.roster.arrived(connection, connection, signed, &record));
        self.outputs()
    }

    fn says(&mut self, worker: u8, home_seq: u64, connection: u64) -> Outputs {
        let (signed, record) = self.record(worker, home_seq);
        self.roster.said(connection, signed, &record);
        self.outputs()
    }

    fn ends(&mut self, worker: u8, connection: u64) -> Outputs {
        self.roster.ended(self.now, id(worker), connection);
        self.outputs()
    }

    fn passes(&mut self, time: Duration) -> Outputs {
        self.now = self.now + time;
        self.roster.handle_timeout(self.now, &self.registry);
        self.outputs()
    }

    fn outputs(&mut self) -> Outputs {
        std::iter::from_fn(|| self.roster.poll_output()).collect()
    }
}

fn said(outputs: &Outputs) -> Vec<(u64, AttachmentState)> {
    let said = outputs.iter().filter_map(|output| match output {
        Output::Say(Attachment { home_seq, state, .. }) => Some((*home_seq, *state)),
        _ => None,
    });
    said.collect()
}

const ATTACHED: AttachmentState = AttachmentState::Attached;
const DETACHED: AttachmentState = AttachmentState::Detached;

#[test]
fn a_worker_that_is_lost_is_detached_after_a_while_unless_it_is_here_again() {
    let mut world = World::new(&Limits::PRODUCTION);
    let outputs = world.arrives(5, 7, 100);
    assert!(matches!(outputs[..], [Output::Meet(_), Output::Take(_), Output::Say(_), Output::Tell(100)]));
    assert_eq!(said(&outputs), [(7, ATTACHED)]);
    assert_eq!(world.ends(5, 100), [Output::Part(id(5))]);
    assert_eq!(world.passes(DETACH_AFTER / 2), []);
    assert_eq!(said(&world.arrives(5, 8, 101)), [(8, ATTACHED)]);
    assert_eq!(world.passes(DETACH_AFTER), [], "it is here");
    world.ends(5, 101);
    assert_eq!(world.roster.poll_timeout(), Some((world.now + DETACH_AFTER, Wake::Detaches)));
    assert_eq!(world.passes(DETACH_AFTER / 2), []);
    assert_eq!(said(&world.passes(DETACH_AFTER / 2)), [(8, DETACHED)]);
    assert_eq!(world.roster.poll_timeout(), None);
}

#[test]
fn a_newer_connection_replaces_the_older_whose_end_is_no_news() {
    let mut world = World::new(&Limits::PRODUCTION);
    world.arrives(5, 7, 100);
    let outputs = world.arrives(5, 8, 101);
    assert!(matches!(outputs[0], Output::Close { connection: 100, .. }), "{outputs:?}");
    assert!(!outputs.contains(&Output::Meet(id(5))), "it was here all the time");
    assert_eq!(world.ends(5, 100), []);
    assert!(matches!(world.says(5, 9, 100)[..], [Output::Take(_)]), "of a connection that was replaced");
    assert_eq!(world.roster.connection(&id(5)), Some(&101));
}

#[test]
fn another_move_to_the_same_home_is_attested_and_one_to_another_is_not() {
    let mut world = World::new(&Limits::PRODUCTION);
    world.arrives(5, 7, 100);
    assert_eq!(said(&world.says(5, 7, 100)), []);
    assert_eq!(said(&world.says(5, 8, 100)), [(8, ATTACHED)]);
    let elsewhere = say(5, 1, 90, &worker_of(1, 9));
    world.roster.said(100, elsewhere.clone(), &open(&elsewhere));
    assert_eq!(world.outputs(), [Output::Take(elsewhere)]);
    world.ends(5, 100);
    assert_eq!(said(&world.passes(DETACH_AFTER)), [(8, DETACHED)]);
}

#[test]
fn who_leaves_is_detached_at_once_and_so_are_all_when_the_coordinator_steps_down() {
    let mut world = World::new(&Limits::PRODUCTION);
    world.arrives(5, 7, 100);
    let leave = say(5, 1, 90, &Body::Leave);
    world.roster.left(100, leave.clone());
    assert_eq!(world.outputs(), [Output::Take(leave)]);
    assert_eq!(said(&world.ends(5, 100)), [(7, DETACHED)]);
    world.arrives(6, 3, 101);
    world.arrives(7, 4, 102);
    world.ends(7, 102);
    world.roster.let_go();
    let outputs = world.outputs();
    assert_eq!(said(&outputs), [(3, DETACHED), (4, DETACHED)]);
    assert_eq!(outputs[0], Output::Part(id(6)));
    assert!(matches!(outputs[2], Output::Close { connection: 101, .. }));
    assert!(world.roster.is_empty() && world.roster.poll_timeout().is_none());
}

#[test]
fn whoever_names_this_home_is_taken_in_while_there_is_room() {
    let mut world = World::new(&Limits::TINY);
    let stranger = open(&say(9, 1, 1, &worker_of(1, 1)));
    assert_eq!(world.roster.admit(&id(9), &stranger).unwrap_err().reason, RejectReason::Record);
    assert!(!world.roster.arrived(1, 1, say(9, 1, 1, &worker_of(1, 1)), &stranger));
    let homeless = open(&say(9, 1, 1, &node(Roles::Worker, None)));
    assert_eq!(world.roster.admit(&id(9), &homeless).unwrap_err().reason, RejectReason::Record);
    let room = Limits::TINY.attachments_per_sponsor_max;
    for (worker, connection) in (10..10 + room as u8).zip(0..) {
        let (_, record) = world.record(worker, 1);
        assert_eq!(world.roster.admit(&id(worker), &record), Ok(()));
        world.arrives(worker, 1, connection);
    }
    let (_, another) = world.record(99, 1);
    assert_eq!(world.roster.admit(&id(99), &another).unwrap_err().reason, RejectReason::Overloaded);
    let (_, again) = world.record(10, 2);
    assert_eq!(world.roster.admit(&id(10), &again), Ok(()), "it has its place");
}

#[test]
fn workers_are_told_of_other_coordinators_when_these_change() {
    let mut world = World::new(&Limits::PRODUCTION);
    world.arrives(5, 7, 100);
    let coordinators = [dialable(ME, 1), dialable(1, 1), say(2, 1, 1, &coordinator())];
    for (n, record) in (0..).zip(coordinators) {
        world.registry.insert(world.now, record, Source::Direct(None)).unwrap();
        world.registry.insert(world.now, say(n, 1, 2, &lease()), Source::Direct(None)).unwrap();
    }
    world.roster.registry_changed(world.now);
    world.roster.registry_changed(world.now + SECOND / 2);
    assert_eq!(world.roster.poll_timeout(), Some((world.now + TELL_AFTER, Wake::Tells)));
    assert_eq!(world.passes(TELL_AFTER), [Output::Tell(100)]);
    let told = told_of(&id(ME), &world.registry);
    assert_eq!(told, [dialable(1, 1).bytes().to_vec()], "not of itself, nor of one that nobody can dial");
    world.roster.registry_changed(world.now);
    assert_eq!(world.passes(TELL_AFTER), [], "the same ones");
}

proptest! {
    /// Against what a coordinator should have said by then.
    #[test]
    fn what_is_said_of_a_worker_is_where_it_is(
        happens in prop::collection::vec((0..4_u8, 5..8_u8, 0..3000_u64), 1..120),
    ) {
        let mut world = World::new(&Limits::TINY);
        let mut next = 0;
        let mut here: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        let mut away: BTreeMap<u8, (Time, u64)> = BTreeMap::new();
        let (mut met, mut attested) = (BTreeSet::new(), BTreeMap::new());
        for (what, worker, after) in happens {
            let mut outputs = world.passes(Duration::from_millis(after));
            away.retain(|_, (since, _)| world.now.since(*since) < DETACH_AFTER);
            next += 1;
            match (what, here.get(&worker).copied()) {
                (0, _) => {
                    outputs.extend(world.arrives(worker, next, next));
                    here.insert(worker, (next, next));
                    away.remove(&worker);
                }
                (1, Some((connection, _))) => {
                    outputs.extend(world.says(worker, next, connection));
                    here.insert(worker, (connection, next));
                }
                (2, Some((connection, home_seq))) => {
                    outputs.extend(world.ends(worker, connection));
                    here.remove(&worker);
                    away.insert(worker, (world.now, home_seq));
                }
                _ => outputs.extend(world.ends(worker, next)),
            }
            for output in outputs {
                match output {
                    Output::Meet(worker) => prop_assert!(met.insert(worker)),
                    Output::Part(worker) => prop_assert!(met.remove(&worker)),
                    Output::Say(said) => _ = attested.insert(said.worker, (said.home_seq, said.state)),
                    _ => {}
                }
            }
            let attached: BTreeMap<NodeId, u64> = attested
                .iter()
                .filter(|(_, (_, state))| *state == ATTACHED)
                .map(|(worker, (home_seq, _))| (*worker, *home_seq))
                .collect();
            let mut expected: BTreeMap<NodeId, u64> = here.iter().map(|(n, (_, seq))| (id(*n), *seq)).collect();
            expected.extend(away.iter().map(|(n, (_, seq))| (id(*n), *seq)));
            prop_assert_eq!(attached, expected);
            prop_assert_eq!(met.len(), here.len());
            prop_assert_eq!(world.roster.len(), here.len());
        }
    }
}
