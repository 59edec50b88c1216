//! Better ways to those who are connected only by way of an entry: what is tried, when, and when it is given up. Sans I/O.
//!
//! ```text
//!   by_entry(node) ─▶ Dial(node, its own addresses)                      once, later seldom
//!                  ─▶ Look(entry) … observed ─▶ Ask(node) … answered ─▶ Punch(node)     a few times
//!   asked(node)    ─▶ Look(entry) … observed ─▶ Answer(…), Punch(node)
//!   better(node)   ─▶ done, until that way is lost
//! ```
//!
//! Of two nodes the one with the smaller id asks, so that they do not ask each other at once; the other asks only when its own address
//! has changed. What cannot work is not tried: behind a symmetric NAT, and where no datagram comes out, nobody asks and nobody agrees.
//! After [`PUNCHES_MAX`] attempts in vain a pair rests until an address changes or a better way that there was is lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::appointment::{Answer, Appointment};
use crate::clock::Time;
use crate::id::NodeId;

mod hole;
mod outlook;
mod own;

pub use outlook::{Outlook, Why};

use hole::turned_down;
use own::{Own, Standing};

/// Attempts to punch a hole to one peer: a lost packet or two are no reason to give up, and more than that it is the NAT.
pub const PUNCHES_MAX: u8 = 3;
/// The pauses between them.
const PUNCH_PAUSES: [Duration; PUNCHES_MAX as usize - 1] = [Duration::from_secs(2), Duration::from_secs(15)];
/// The pauses after attempts at a peer's own addresses. Then it rests until it names others: a firewall changes its mind seldom.
const DIRECT_PAUSES: [Duration; 3] =
    [Duration::from_secs(30), Duration::from_secs(5 * 60), Duration::from_secs(30 * 60)];
/// How soon a way that was lost is sought again: what took it may take its time.
const AFTER_LOSS: Duration = Duration::from_secs(1);
/// The one with the greater id leaves it to the other one to ask for so long.
const FOLLOWS_AFTER: Duration = Duration::from_secs(2);
/// Who dials lets the other one's NAT open first: a round trip, mostly. One that comes too early is sent again after a second.
const DIALS_AFTER: Duration = Duration::from_millis(200);
/// Holes that are being punched at once, the rest waits: each is some ten small packets a second.
const PUNCHES_AT_ONCE_MAX: usize = 16;
/// No attempt takes so long, whatever becomes of it.
const ATTEMPT_MAX: Duration = Duration::from_secs(20);
/// Questions of one peer that are listened to …
const ASKED_MAX: u8 = 12;
/// … in so long: whoever asks chooses where this node's datagrams go.
const ASKED_WINDOW: Duration = Duration::from_secs(10 * 60);
/// How often this node's own address is looked at while some peer could be reached better by it: it may have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(120);
/// Peers that have gone and whose attempts are remembered, so that whoever comes again and again is not tried again and again.
const REMEMBERED_MAX: usize = 1024;

/// A request of a peer that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// What a side does for a hole. QUIC has a client and a server, and both must agree on who is which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Dials, as a client.
    Dials,
    /// Sends datagrams that mean nothing, and waits as a server.
    Awaits,
}

/// Whether a peer makes appointments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appoints {
    /// It does.
    Yes,
    /// It is of an older version, or listens nowhere.
    No,
}

/// Whether a peer's own addresses have just been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directly {
    /// They have, and did not answer.
    InVain,
    /// They have not.
    Untried,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Dial this peer at its own addresses. Then comes [`Shortcuts::better`], or [`Shortcuts::not_dialled`].
    Dial(NodeId, Vec<String>),
    /// Ask this entry from where this node's datagrams come. Then comes [`Shortcuts::observed`].
    Look(SocketAddr),
    /// Ask this peer. Then comes [`Shortcuts::answered`].
    Ask(NodeId, Appointment),
    /// Answer a peer's request.
    Answer(ReplyId, Answer),
    /// Punch a hole to this peer. Then comes [`Shortcuts::better`], or [`Shortcuts::not_punched`].
    Punch {
        /// To whom.
        node: NodeId,
        /// From where its datagrams come.
        addresses: Vec<SocketAddr>,
        /// Who is the client.
        side: Side,
    },
}

/// Attempts of one kind at one peer.
#[derive(Debug, Clone, Default)]
struct Tries {
    times: u8,
    /// When the next one is due. `None`: it rests.
    next: Option<Time>,
    last: Option<Why>,
}

impl Tries {
    /// One has come to nothing. The next one comes after the pause of this number, if there is one.
    fn failed(&mut self, now: Time, why: Why, pauses: &[Duration], jitter: f32) {
        let pause = pauses.get(usize::from(self.times));
        self.next = pause.map(|pause| now + pause.mul_f32(0.75 + 0.5 * jitter));
        self.times = self.times.saturating_add(1);
        self.last = Some(why);
    }
}

/// How far a hole is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hole {
    None,
    /// This node's own address is looked at, for the question to the peer …
    ToAsk,
    /// … or for the answer to its own.
    ToAnswer(ReplyId, Vec<SocketAddr>),
    /// The peer has been asked.
    Asked,
    /// Its NAT is left time to open.
    Soon(Time, Vec<SocketAddr>),
    /// Both send.
    Punching,
}

#[derive(Debug)]
struct Peer {
    /// Connected, and only by way of an entry.
    by_entry: bool,
    appoints: Appoints,
    /// Its own addresses, as it has signed them.
    addresses: Vec<String>,
    direct: Tries,
    /// It is being dialled; counts as failed then.
    dialling: Option<Time>,
    punch: Tries,
    hole: Hole,
    /// The hole counts as failed then.
    until: Option<Time>,
    /// From where it last said that its datagrams come.
    told: Vec<SocketAddr>,
    /// Its questions that were listened to, and since when they are counted.
    asked: (u8, Time),
    /// There was a better way, which may have been lost.
    had_better: bool,
}

impl Peer {
    fn new() -> Self {
        Self {
            by_entry: false,
            appoints: Appoints::No,
            addresses: Vec::new(),
            direct: Tries::default(),
            dialling: None,
            punch: Tries::default(),
            hole: Hole::None,
            until: None,
            told: Vec::new(),
            asked: (0, Time::ORIGIN),
            had_better: false,
        }
    }
}

/// The better ways that this node seeks.
#[derive(Debug)]
pub struct Shortcuts {
    me: NodeId,
    own: Own,
    /// What is known of this node's own address.
    standing: Standing,
    /// Where it was when that was last known.
    was_at: Vec<SocketAddr>,
    look_at: Time,
    peers: BTreeMap<NodeId, Peer>,
    random: fastrand::Rng,
    events: VecDeque<Event>,
}

impl Shortcuts {
    /// Nobody is connected yet. `seed` is for the jitter.
    pub fn new(now: Time, me: NodeId, seed: u64) -> Self {
        Self {
            me,
            own: Own::default(),
            standing: Standing::NoObserver,
            was_at: Vec::new(),
            look_at: now + LOOK_INTERVAL,
            peers: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            events: VecDeque::new(),
        }
    }

    /// What is to be done, one after the other.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Shortcuts::handle_timeout`]. `None`: not before something else happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        let of_peer = |peer: &Peer| {
            let soon = if let Hole::Soon(at, _) = peer.hole { Some(at) } else { None };
            let direct = peer.direct.next.filter(|_| peer.dialling.is_none());
            let punch = peer.punch.next.filter(|_| peer.hole == Hole::None);
            [soon, direct, punch, peer.until, peer.dialling].into_iter().flatten().min()
        };
        let by_entry = self.peers.values().filter(|peer| peer.by_entry);
        by_entry.filter_map(|peer| of_peer(peer).into_iter().chain([self.look_at]).min()).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let nodes: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| peer.by_entry).map(|(node, _)| *node).collect();
        for node in &nodes {
            self.look_after(now, *node);
        }
        if self.look_at <= now {
            self.look_at = now + LOOK_INTERVAL;
            if !nodes.is_empty() {
                self.look(now);
            }
        }
    }

    fn look_after(&mut self, now: Time, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.dialling.is_some_and(|until| until <= now) {
            self.not_dialled(now, node);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.until.is_some_and(|until| until <= now) {
            self.not_punched(now, node);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.dialling.is_none() && peer.direct.next.is_some_and(|at| at <= now) {
            peer.direct.next = None;
            peer.dialling = Some(now + ATTEMPT_MAX);
            self.events.push_back(Event::Dial(node, peer.addresses.clone()));
        }
        match &peer.hole {
            Hole::Soon(at, _) if *at <= now => self.punch(now, node),
            Hole::None if peer.punch.next.is_some_and(|at| at <= now) => self.begin(now, node),
            _ => {}
        }
    }

    fn look(&mut self, now: Time) {
        self.events.extend(self.own.ask(now).into_iter().map(Event::Look));
    }

    /// These entries see from where this node's datagrams come. To be called again when a tunnel has come up: it may be at another
    /// line now.
    pub fn observers(&mut self, now: Time, all: &[SocketAddr]) {
        if self.own.observers(all) {
            self.own.expire();
            if self.peers.values().any(|peer| peer.by_entry) {
                self.look(now);
            }
            self.seen(now);
        }
    }

    /// An entry has said from where a datagram of this node's came; `None`: it has not answered.
    pub fn observed(&mut self, now: Time, observer: SocketAddr, seen: Option<SocketAddr>) {
        self.own.told(now, observer, seen);
        self.seen(now);
    }

    /// A coordinator is connected, and only by way of an entry. May be said again.
    pub fn by_entry(&mut self, now: Time, node: NodeId, appoints: Appoints, directly: Directly, addresses: &[String]) {
        self.forget_some();
        let peer = self.peers.entry(node).or_insert_with(Peer::new);
        let was = std::mem::replace(&mut peer.by_entry, true);
        let leads = self.me < node;
        let first = if std::mem::take(&mut peer.had_better) {
            // It may have been lost because this node is seen somewhere else now.
            self.own.expire();
            now + AFTER_LOSS
        } else {
            now
        };
        if (!was || peer.appoints != appoints) && appoints == Appoints::Yes && peer.punch.times < PUNCHES_MAX {
            // Who follows has nothing to say before the other one has asked.
            peer.punch.next = leads.then_some(first.max(peer.punch.next.unwrap_or(first)));
        }
        peer.appoints = appoints;
        if first > now && !peer.addresses.is_empty() {
            peer.direct.next = Some(first);
        }
        if directly == Directly::InVain && peer.direct.times == 0 && !addresses.is_empty() {
            peer.addresses = addresses.to_vec();
            peer.direct.failed(now, Why::Unanswered, &DIRECT_PAUSES, self.random.f32());
        }
        self.names(now, node, addresses);
    }

    /// A peer names these addresses of its own.
    pub fn names(&mut self, now: Time, node: NodeId, addresses: &[String]) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.addresses != addresses
        {
            peer.addresses = addresses.to_vec();
            peer.direct = Tries::default();
            peer.direct.next = (!addresses.is_empty()).then_some(now);
        }
    }

    /// Those that are connected only by way of an entry.
    pub fn by_entries(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.by_entry).map(|(node, _)| *node)
    }

    /// A better way to this peer is there. When it is lost, everything begins anew.
    pub fn better(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.by_entry) {
            self.events.extend(turned_down(peer));
            let addresses = std::mem::take(&mut peer.addresses);
            *peer = Peer { addresses, asked: peer.asked, had_better: true, ..Peer::new() };
        }
    }

    /// The last connection to this peer has gone. What was tried is remembered.
    pub fn gone(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            self.events.extend(turned_down(peer));
            peer.by_entry = false;
            peer.dialling = None;
            peer.hole = Hole::None;
            peer.until = None;
        }
    }

    fn forget_some(&mut self) {
        while self.peers.len() >= REMEMBERED_MAX {
            let gone = self.peers.iter().find(|(_, peer)| !peer.by_entry).map(|(node, _)| *node);
            // Those that are connected are bounded by the connections.
            let Some(gone) = gone else { return };
            self.peers.remove(&gone);
        }
    }

    /// The peer's own addresses do not answer.
    pub fn not_dialled(&mut self, now: Time, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.dialling.is_some()) {
            peer.dialling = None;
            peer.direct.failed(now, Why::Unanswered, &DIRECT_PAUSES, self.random.f32());
        }
    }

    /// How it stands with a better way to this peer. `None`: there is one, or it is not connected.
    pub fn outlook(&self, node: &NodeId) -> Option<Outlook> {
        let peer = self.peers.get(node).filter(|peer| peer.by_entry)?;
        Some(outlook::of(peer, &self.standing))
    }
}

#[cfg(test)]
mod tests;
