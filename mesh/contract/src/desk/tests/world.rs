//! Several coordinators with a registry and a desk each, and messages between them that take a while.

use std::collections::VecDeque;

use super::*;
use hedgerow_proto::registry::Source;

/// A coordinator. It does not forget its registry when it is down: it is on its disk.
pub(super) struct Coordinator {
    pub(super) id: NodeId,
    pub(super) registry: Registry,
    pub(super) desk: Desk,
    pub(super) up: bool,
    voice: Voice,
    epoch: u64,
}

/// All of them. Time goes in steps of [`STEP_S`]; what is said in one step is heard in the next.
pub(super) struct World {
    pub(super) now: u64,
    pub(super) all: Vec<Coordinator>,
    /// Who is cut off from the others.
    pub(super) apart: Option<usize>,
    on_their_way: VecDeque<(usize, usize, Signed)>,
}

pub(super) const STEP_S: u64 = 5;

/// What became of a heartbeat.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Noted,
    /// The one that was asked was down.
    Nobody,
    Unknown,
}

impl World {
    /// So many coordinators that know each other.
    pub(super) fn new(count: usize) -> Self {
        let one = |n: usize| {
            let n = u8::try_from(n).unwrap() + 1;
            let mut registry = Registry::new(FEDERATION, Limits::PRODUCTION);
            registry.meet(at(0), id(n));
            let voice = Voice::new(key(n), FEDERATION, 1, 1, Limits::PRODUCTION);
            Coordinator { id: id(n), registry, desk: desk(0, id(n)), up: true, voice, epoch: 1 }
        };
        let mut world = Self { now: 0, all: (0..count).map(one).collect(), apart: None, on_their_way: VecDeque::new() };
        (0..count).for_each(|n| world.appear(n));
        world.run(30);
        world
    }

    fn appear(&mut self, n: usize) {
        self.say(n, &node(Roles::Coordinator, &[]));
        self.renew(n);
    }

    fn renew(&mut self, n: usize) {
        self.say(n, &Body::Lease(Lease { ttl: SECOND * 60 }));
    }

    pub(super) fn say(&mut self, n: usize, body: &Body) {
        let (now, it) = (at(self.now), &mut self.all[n]);
        let signed = it.voice.sign(body).unwrap();
        it.registry.insert(now, signed.clone(), Source::Own).unwrap();
        let others = (0..self.all.len()).filter(|other| *other != n);
        self.on_their_way.extend(others.map(|other| (n, other, signed.clone())));
    }

    pub(super) fn connected(&self, a: usize, b: usize) -> bool {
        self.all[a].up && self.all[b].up && self.apart != Some(a) && self.apart != Some(b)
    }

    fn hear(&mut self, n: usize, signed: Signed, age: Duration) {
        let (now, it) = (at(self.now), &mut self.all[n]);
        let record = signed.record().clone();
        let outcome = it.registry.insert(now, signed, Source::Passed(age));
        if let (Ok(outcome), Body::Guest(guest)) = (outcome, &record.body)
            && outcome.is_news()
            && let Some(say) = it.desk.met_guest(now, &it.registry, record.writer, &guest.worker_id)
        {
            self.say(n, &say);
        }
    }

    /// Lets this many seconds pass.
    pub(super) fn run(&mut self, seconds: u64) {
        for _ in 0..seconds.div_ceil(STEP_S) {
            self.now += STEP_S;
            let now = at(self.now);
            for (from, to, signed) in std::mem::take(&mut self.on_their_way) {
                if self.connected(from, to) {
                    self.hear(to, signed, Duration::ZERO);
                }
            }
            for n in 0..self.all.len() {
                self.all[n].registry.handle_timeout(now);
                if !self.all[n].up {
                    continue;
                }
                if self.now.is_multiple_of(20) {
                    self.renew(n);
                }
                let it = &mut self.all[n];
                if it.desk.poll_timeout().0 <= now {
                    let say = it.desk.handle_timeout(now, &it.registry);
                    assert!(it.desk.poll_timeout().0 > now, "what was due is done");
                    say.iter().for_each(|body| self.say(n, body));
                }
            }
            // What was lost on the way is asked for now and then.
            if self.now.is_multiple_of(30) {
                self.synchronise();
            }
        }
    }

    fn synchronise(&mut self) {
        let count = self.all.len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            if from == to || !self.connected(from, to) {
                continue;
            }
            let it = &self.all[from];
            let records: Vec<(Signed, Duration)> = self
                .all
                .iter()
                .flat_map(|writer| it.registry.records_of(&writer.id))
                .map(|signed| {
                    let key = signed.record().key();
                    (signed.clone(), it.registry.age(at(self.now), &key).unwrap())
                })
                .collect();
            records.into_iter().for_each(|(signed, age)| self.hear(to, signed, age));
        }
    }

    pub(super) fn crash(&mut self, n: usize) {
        let it = &mut self.all[n];
        it.up = false;
        it.registry.part(at(self.now), it.id);
    }

    pub(super) fn restart(&mut self, n: usize) {
        let now = at(self.now);
        let it = &mut self.all[n];
        it.epoch += 1;
        it.up = true;
        it.voice = Voice::new(key(u8::try_from(n).unwrap() + 1), FEDERATION, it.epoch, it.epoch, Limits::PRODUCTION);
        it.registry.meet(now, it.id);
        it.desk = desk(self.now, it.id);
        it.desk.resume(now, &it.registry);
        self.appear(n);
    }

    /// An agent registers with this coordinator, which passes it on where it must.
    pub(super) fn register(&mut self, n: usize, worker_id: &str) {
        if !self.all[n].up {
            return;
        }
        let registration = Registration::parse(agent(worker_id).to_string().as_bytes()).unwrap();
        let mut at_desk = (n, Elsewhere::Ask);
        loop {
            let (now, it) = (at(self.now), &mut self.all[at_desk.0]);
            match it.desk.register(now, &it.registry, &registration, at_desk.1, || 1).unwrap() {
                Registered::Here { say, .. } => return self.say(at_desk.0, &say),
                Registered::HeldBy(other) => {
                    let holder = self.all.iter().position(|it| it.id == other).unwrap();
                    let asked = at_desk.0 == n && self.connected(n, holder);
                    at_desk = if asked { (holder, Elsewhere::TakeOver) } else { (n, Elsewhere::TakeOver) };
                }
            }
        }
    }

    /// An agent heartbeats to this coordinator, which passes it on where it must.
    pub(super) fn heartbeat(&mut self, n: usize, worker_id: &str, load: u8) -> Fate {
        if !self.all[n].up {
            return Fate::Nobody;
        }
        let body = json!({"worker_id": worker_id, "current_load": load});
        let heartbeat = Heartbeat::parse(body.to_string().as_bytes()).unwrap();
        let (now, mut who, mut hops) = (at(self.now), n, 0);
        let result = loop {
            let it = &mut self.all[who];
            match it.desk.heartbeat(now, &it.registry, &heartbeat) {
                Ok(Heard::HeldBy(other)) => {
                    let holder = self.all.iter().position(|it| it.id == other).unwrap();
                    if !self.connected(who, holder) {
                        let it = &mut self.all[who];
                        break it.desk.adopt(now, &it.registry, &heartbeat).map(Some);
                    }
                    if hops == HEARTBEAT_HOPS_MAX {
                        break Ok(None);
                    }
                    (who, hops) = (holder, hops + 1);
                }
                Ok(Heard::Ok { say }) => break Ok(say),
                Ok(Heard::Adopted { say }) => break Ok(Some(say)),
                Err(error) => break Err(error),
            }
        };
        match result {
            Ok(say) => {
                say.iter().for_each(|body| self.say(who, body));
                Fate::Noted
            }
            Err(ContractError::UnknownWorker { .. }) => {
                let registry = &self.all[who].registry;
                let known = registry.claims_of(worker_id).count() + usize::from(left_behind(registry, worker_id));
                assert_eq!(known, 0, "the registry knows {worker_id}");
                Fate::Unknown
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// An agent goes, and says so to this coordinator, which holds it; the others who hold it are told as well.
    pub(super) fn unregister(&mut self, n: usize, worker_id: &str) {
        let it = &mut self.all[n];
        let done = it.desk.unregister(&it.registry, &super::worker_id(worker_id)).unwrap();
        let Unregistered::Done { say, also, .. } = done else { panic!("{done:?}") };
        say.iter().for_each(|body| self.say(n, body));
        for other in also {
            let other = self.all.iter().position(|it| it.id == other).unwrap();
            if self.connected(n, other) && self.holders(worker_id).contains(&other) {
                self.unregister(other, worker_id);
            }
        }
    }

    /// Who holds a worker.
    pub(super) fn holders(&self, worker_id: &str) -> Vec<usize> {
        (0..self.all.len()).filter(|n| self.all[*n].up && self.all[*n].desk.seen(worker_id).is_some()).collect()
    }
}

fn left_behind(registry: &Registry, worker_id: &str) -> bool {
    guest::left_behind(registry, &super::worker_id(worker_id)).is_some()
}

fn desk(now: u64, me: NodeId) -> Desk {
    Desk::new(at(now), me, DeskConfig::default())
}
