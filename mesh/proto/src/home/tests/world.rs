//! Both sides against each other, over connections that fail, in virtual time: whatever has happened, in the end every worker is
//! at home with one coordinator that is there, and all registries say so.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::home::seeker::moves_before;
use crate::home::{roster, seeker};
use crate::record::{Attachment, AttachmentState};
use crate::registry::tests::{lease, registry, worker_of};
use crate::registry::{Reach, Registry, Source};

const COORDINATORS: u8 = 3;
const WORKERS: std::ops::Range<u8> = 10..16;
const STEP: Duration = Duration::from_millis(100);
/// A coordinator that stays away is avoided for no longer, and nobody seeks for longer once all are there.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

struct Worker {
    seeker: Seeker,
    hints: Hints,
    /// The coordinator with which it has a connection, and the connection's number.
    connection: Option<(u8, u64)>,
    /// What it is connecting to.
    connecting: Option<NodeId>,
    seq: u64,
}

struct World {
    now: Time,
    workers: BTreeMap<u8, Worker>,
    coordinators: BTreeMap<u8, Roster<u64>>,
    /// One for all: what is said is joined at once, so that only homes are tried here.
    registry: Registry,
    up: BTreeMap<u8, bool>,
    said: u64,
    connections: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            now: now(),
            workers: BTreeMap::new(),
            coordinators: (0..COORDINATORS).map(|n| (n, Roster::new(id(n), &Limits::PRODUCTION))).collect(),
            registry: registry(),
            up: (0..COORDINATORS).map(|n| (n, true)).collect(),
            said: 0,
            connections: 0,
        };
        let mut hints = Hints::default();
        for n in 0..COORDINATORS {
            let record = dialable(n, 1);
            hints.learn(Told::of(&open(&record)));
            world.insert(record);
            world.insert(say(n, 1, 2, &lease()));
            world.registry.meet(world.now, id(n));
        }
        for n in WORKERS {
            let seeker = Seeker::new(id(n), moves_before(1), seed.wrapping_add(n.into()));
            let worker = Worker { seeker, hints: hints.clone(), connection: None, connecting: None, seq: 0 };
            world.workers.insert(n, worker);
        }
        world
    }

    fn insert(&mut self, signed: Signed) {
        self.registry.insert(self.now, signed, Source::Passed(Duration::ZERO)).unwrap();
    }

    fn step(&mut self) {
        self.now = self.now + STEP;
        self.registry.handle_timeout(self.now);
        for n in WORKERS {
            self.seek(n);
        }
        for n in 0..COORDINATORS {
            self.coordinate(n);
        }
    }

    /// What one worker does, with what has become of its connection.
    fn seek(&mut self, n: u8) {
        let coordinator_of = |home: NodeId| (0..COORDINATORS).find(|c| id(*c) == home).unwrap();
        let Some(mut worker) = self.workers.remove(&n) else { return };
        worker.seeker.handle_timeout(self.now, &worker.hints);
        if let Some(home) = worker.connecting.take() {
            let event = match self.up[&coordinator_of(home)] {
                true => seeker::Event::Reached(home),
                false => seeker::Event::NotReached(home),
            };
            worker.seeker.handle(self.now, event, &worker.hints);
        } else if let Some((c, connection)) = worker.connection {
            let holds = self.coordinators[&c].connection(&id(n)) == Some(&connection);
            let event = if holds { seeker::Event::Pong(id(c)) } else { seeker::Event::Ended(id(c)) };
            worker.seeker.handle(self.now, event, &worker.hints);
        }
        while let Some(output) = worker.seeker.poll_output() {
            match output {
                seeker::Output::Connect { home, .. } => worker.connecting = Some(home),
                seeker::Output::GiveUp(_) => worker.connecting = None,
                seeker::Output::Join(home) => {
                    let c = coordinator_of(home.coordinator);
                    worker.seq += 1;
                    let signed = say(n, 1, worker.seq, &worker_of(c, home.home_seq));
                    let record = open(&signed);
                    self.connections += 1;
                    worker.connection = Some((c, self.connections));
                    let roster = self.coordinators.get_mut(&c).unwrap();
                    assert_eq!(roster.admit(&id(n), &record), Ok(()));
                    assert!(roster.arrived(self.connections, self.connections, signed, &record));
                    self.perform(c);
                }
                seeker::Output::Settled(_) => {}
                seeker::Output::Leave(_) => worker.connection = None,
            }
        }
        self.workers.insert(n, worker);
    }

    fn coordinate(&mut self, n: u8) {
        let roster = self.coordinators.get_mut(&n).unwrap();
        roster.handle_timeout(self.now, &self.registry);
        self.perform(n);
    }

    fn perform(&mut self, n: u8) {
        while let Some(output) = self.coordinators.get_mut(&n).and_then(Roster::poll_output) {
            match output {
                roster::Output::Take(signed) => self.insert(signed),
                roster::Output::Say(Attachment { worker, home_seq, state }) => {
                    self.said += 1;
                    let body = Body::Attachment(Attachment { worker, home_seq, state });
                    self.insert(say(n, 1, 10 + self.said, &body));
                    let holds = self.coordinators[&n].connection(&worker).is_some();
                    assert_eq!(holds, state == AttachmentState::Attached, "what is said is so");
                }
                roster::Output::Meet(_) | roster::Output::Part(_) => {}
                roster::Output::Tell(_) | roster::Output::Close { .. } => {}
            }
        }
    }

    /// A connection breaks; both ends notice.
    fn breaks(&mut self, worker: u8) {
        let Some((c, connection)) = self.workers[&worker].connection else { return };
        self.coordinators.get_mut(&c).unwrap().ended(self.now, id(worker), connection);
        self.perform(c);
    }

    /// A coordinator is cut off from all its workers, or it is back.
    fn cut_off(&mut self, n: u8, is_up: bool) {
        self.up.insert(n, is_up);
        for worker in WORKERS.filter(|_| !is_up) {
            if self.workers[&worker].connection.is_some_and(|(c, _)| c == n) {
                self.breaks(worker);
            }
        }
    }

    /// Every worker is with one coordinator that holds it, and the registry says the same.
    fn all_settled(&self) -> bool {
        self.workers.iter().all(|(n, worker)| {
            let holds = |c: &u8| self.coordinators[c].connection(&id(*n)).is_some();
            let holding: Vec<NodeId> = (0..COORDINATORS).filter(holds).map(id).collect();
            let [home] = holding[..] else { return false };
            worker.seeker.settled() == Some(home) && self.registry.reach(&id(*n)) == Reach::ViaHome(home)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn every_worker_ends_up_at_home_with_one_that_is_there_and_all_believe_it(
        faults in prop::collection::vec((0..3_u8, 0..16_u8, 0..80_u32), 0..24),
        seed: u64,
    ) {
        let mut world = World::new(seed);
        for (kind, whom, steps) in faults {
            match kind {
                0 => world.cut_off(whom % COORDINATORS, false),
                1 => world.cut_off(whom % COORDINATORS, true),
                _ => world.breaks(WORKERS.start + whom % WORKERS.len() as u8),
            }
            (0..steps).for_each(|_| world.step());
        }
        // Not all come back.
        (1..COORDINATORS).for_each(|n| world.cut_off(n, true));
        world.cut_off(0, false);
        let healed = world.now;
        while !world.all_settled() {
            world.step();
            prop_assert!(world.now.since(healed) < SETTLED_WITHIN);
        }
        // And so it stays, longer than anybody waits for anything.
        for _ in 0..200 {
            world.step();
            prop_assert!(world.all_settled());
        }
    }
}
