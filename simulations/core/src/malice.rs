//! What coordinators do that keep no rule, at whichever level. Beside it they do what all do: so they are let in, and have a standing.
//! What carries their words is the level's: see [`Mouth`].

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::peer::{self, PeerRequest};
use hedgerow_proto::record::{
    Attachment, AttachmentState, Body, Candidacy, Hardware, Home, Kind, NodeRecord, Roles, Signed, Version,
};
use hedgerow_proto::replica::Core;
use hedgerow_sim_model::scenario::Malice;

/// How often it does all of it.
const INTERVAL: Duration = Duration::from_secs(1);
/// Records of others that it remembers.
const REMEMBERED_MAX: usize = 512;
/// Things of each kind that it does at once.
const AT_ONCE: usize = 4;
/// Made-up records in one push.
const INVENTED_AT_ONCE: usize = 256;
/// Above every number that an honest run reaches.
const EQUIVOCATED: u64 = 1 << 40;

/// The ways to others. What there is to choose is drawn from `random`.
pub trait Mouth {
    /// Gossips this to all that are connected, whatever it is.
    fn gossip(&mut self, random: &mut fastrand::Rng, bytes: Bytes);
    /// Asks this of one of them, if there is one.
    fn ask(&mut self, random: &mut fastrand::Rng, bytes: Bytes);
}

/// See the module.
pub struct Evil {
    malice: Vec<Malice>,
    invents_per_second: f64,
    key: SecretKey,
    overheard: VecDeque<Bytes>,
    next_at: Time,
    invented: u64,
    owed: f64,
    said: u64,
    random: fastrand::Rng,
}

impl Evil {
    /// One that has this key, does all of this, and invents so many others a second. `seed` is for its choices.
    pub fn new(now: Time, malice: Vec<Malice>, invents_per_second: f64, key: SecretKey, seed: u64) -> Self {
        Self {
            malice,
            invents_per_second,
            key,
            overheard: VecDeque::new(),
            next_at: now + INTERVAL,
            invented: 0,
            owed: 0.0,
            said: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// When to call [`Evil::handle_timeout`].
    pub fn poll_timeout(&self) -> Time {
        self.next_at
    }

    /// Something that others gossip has come by.
    pub fn overhears(&mut self, bytes: &Bytes) {
        if self.overheard.len() >= REMEMBERED_MAX {
            let forgotten = self.random.usize(..self.overheard.len());
            self.overheard.swap_remove_back(forgotten);
        }
        self.overheard.push_back(bytes.clone());
    }

    /// Does what is due. `core` is its own replica.
    pub fn handle_timeout(&mut self, now: Time, core: &mut Core, mouth: &mut impl Mouth) {
        if self.next_at > now {
            return;
        }
        self.next_at = self.next_at.max(now) + INTERVAL;
        for malice in self.malice.clone() {
            match malice {
                Malice::Replay => self.replays(mouth, |_, bytes| bytes),
                Malice::Forge => self.replays(mouth, |random, bytes| {
                    let mut bytes = bytes.to_vec();
                    let at = random.usize(..bytes.len().max(1));
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random.u8(..8);
                    }
                    bytes.into()
                }),
                Malice::Refresh => {
                    let leases = core.registry().coordinators().flat_map(|view| {
                        let of = core.registry().records_of(&view.record.writer);
                        of.filter(|signed| signed.kind() == Kind::LEASE).map(|signed| signed.bytes().to_vec())
                    });
                    let leases: Vec<Vec<u8>> = leases.collect();
                    self.push(mouth, leases);
                }
                Malice::Garbage => {
                    for _ in 0..AT_ONCE {
                        let bytes: Vec<u8> = (0..self.random.usize(1..200)).map(|_| self.random.u8(..)).collect();
                        mouth.gossip(&mut self.random, bytes.clone().into());
                        mouth.ask(&mut self.random, bytes.into());
                    }
                }
                Malice::Equivocate => self.equivocates(core, mouth),
                Malice::ClaimWorkers => self.claims(now, core),
            }
        }
        self.owed += self.invents_per_second * INTERVAL.as_secs_f64();
        while self.owed >= 1.0 {
            let many = (self.owed as usize).min(INVENTED_AT_ONCE);
            self.owed -= many as f64;
            let federation = core.registry().federation();
            let invented = (0..many).filter_map(|_| self.invents(federation)).collect();
            self.push(mouth, invented);
        }
    }

    /// Others' old words, as they were or a little changed, in gossip and in pushes.
    fn replays(&mut self, mouth: &mut impl Mouth, change: impl Fn(&mut fastrand::Rng, Bytes) -> Bytes) {
        let mut again = Vec::new();
        for _ in 0..AT_ONCE.min(self.overheard.len()) {
            let at = self.random.usize(..self.overheard.len());
            again.push(change(&mut self.random, self.overheard[at].clone()));
        }
        again.iter().for_each(|bytes| mouth.gossip(&mut self.random, bytes.clone()));
        self.push(mouth, again.iter().map(|bytes| bytes.to_vec()).collect());
    }

    /// Two different things in one place, each to others.
    fn equivocates(&mut self, core: &Core, mouth: &mut impl Mouth) {
        self.said += 1;
        let version = Version { epoch: core.epoch(), seq: EQUIVOCATED + self.said };
        for location in ["here", "there"] {
            let body = Body::Node(NodeRecord { location: location.into(), ..record(Roles::Coordinator, None) });
            if let Ok(signed) = Signed::sign(&self.key, core.registry().federation(), 1, version, &body) {
                self.push(mouth, vec![signed.bytes().to_vec()]);
            }
        }
    }

    /// Workers of others, at the move that they count or a later one.
    fn claims(&mut self, now: Time, core: &mut Core) {
        let workers = core.registry().workers().map(|worker| (worker.record.writer, worker.node.home));
        let workers: Vec<_> = workers.collect();
        let Some((worker, home)) = self.random.choice(workers) else { return };
        let home_seq = home.map_or(1, |home| home.home_seq) + self.random.u64(..2);
        let attachment = Attachment { worker, home_seq, state: AttachmentState::Attached };
        // Beyond its quota it finds no room, even with itself.
        drop(core.say(now, Body::Attachment(attachment)));
    }

    /// A worker that is not there, at home with this one.
    fn invents(&mut self, federation: FederationId) -> Option<Vec<u8>> {
        self.invented += 1;
        let mut seed = self.key.id().0;
        seed[..8].copy_from_slice(&self.invented.to_be_bytes());
        let home = Home { coordinator: self.key.id(), home_seq: 1 };
        let body = Body::Node(record(Roles::Worker, Some(home)));
        let signed = Signed::sign(&SecretKey::from_seed(seed), federation, 1, Version { epoch: 1, seq: 1 }, &body);
        Some(signed.ok()?.bytes().to_vec())
    }

    fn push(&mut self, mouth: &mut impl Mouth, records: Vec<Vec<u8>>) {
        if !records.is_empty() {
            mouth.ask(&mut self.random, peer::encode(&PeerRequest::Push(records)).into());
        }
    }
}

/// A record that says no more than this.
pub fn record(roles: Roles, home: Option<Home>) -> NodeRecord {
    NodeRecord {
        roles,
        location: String::new(),
        version: "1".into(),
        services: Vec::new(),
        multiaddrs: Vec::new(),
        home,
        candidacy: Candidacy::Fixed,
        hardware: Hardware::default(),
    }
}
