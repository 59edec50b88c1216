//! Holes: from the question where this node's own datagrams come from to the moment when both send.

use std::net::SocketAddr;
use std::time::Duration;

use super::own::Standing;
use super::{
    ASKED_MAX, ASKED_WINDOW, ATTEMPT_MAX, Appoints, DIALS_AFTER, Event, FOLLOWS_AFTER, Hole, PUNCH_PAUSES,
    PUNCHES_AT_ONCE_MAX, PUNCHES_MAX, Peer, ReplyId, Shortcuts, Side, Tries, Why,
};
use crate::appointment::{ADDRESSES_MAX, Answer, Appointment, Unable, usable};
use crate::clock::Time;
use crate::id::NodeId;

impl Shortcuts {
    /// Begins to punch a hole to this peer.
    pub(super) fn begin(&mut self, now: Time, node: NodeId) {
        let busy = self.punching() >= PUNCHES_AT_ONCE_MAX;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if busy {
            peer.punch.next = Some(now + FOLLOWS_AFTER);
            return;
        }
        peer.punch.next = None;
        peer.hole = Hole::ToAsk;
        peer.until = Some(now + ATTEMPT_MAX);
        self.look(now);
        self.seen(now);
    }

    pub(super) fn punching(&self) -> usize {
        self.peers.values().filter(|peer| peer.hole != Hole::None).count()
    }

    /// Goes on with those that wait for this node's own address, once all has been said of it that will be.
    pub(super) fn seen(&mut self, now: Time) {
        if self.own.is_asking() {
            return;
        }
        let standing = self.own.standing();
        if standing != self.standing {
            self.standing = standing.clone();
            if let Standing::At(addresses) = &standing {
                self.is_at(now, addresses);
            }
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            match std::mem::replace(&mut peer.hole, Hole::None) {
                Hole::ToAsk => match &standing {
                    Standing::At(addresses) => {
                        peer.hole = Hole::Asked;
                        let addresses = addresses.clone();
                        self.events.push_back(Event::Ask(node, Appointment { addresses }));
                    }
                    // It is asked again when that changes.
                    _ => {
                        peer.until = None;
                        peer.punch.next = None;
                    }
                },
                Hole::ToAnswer(reply, theirs) => self.agree(now, node, reply, theirs, &standing),
                other => peer.hole = other,
            }
        }
    }

    /// This node's own address is known, and was not before. If it is another one, what was tried in vain may work.
    fn is_at(&mut self, now: Time, addresses: &[SocketAddr]) {
        let moved = self.was_at != addresses;
        self.was_at = addresses.to_vec();
        for (node, peer) in &mut self.peers {
            if moved {
                peer.punch = Tries::default();
            }
            let wanted = peer.by_entry && peer.appoints == Appoints::Yes && peer.hole == Hole::None;
            if wanted && peer.punch.times < PUNCHES_MAX && peer.punch.next.is_none() {
                peer.punch.next = Some(if self.me < *node { now } else { now + FOLLOWS_AFTER });
            }
        }
    }

    /// Nothing came through.
    pub fn not_punched(&mut self, now: Time, node: NodeId) {
        self.failed(now, node, Why::Unanswered);
    }

    fn failed(&mut self, now: Time, node: NodeId, why: Why) {
        let leads = self.me < node;
        let jitter = self.random.f32();
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.hole != Hole::None) else { return };
        self.events.extend(turned_down(peer));
        peer.hole = Hole::None;
        peer.until = None;
        peer.punch.failed(now, why, &PUNCH_PAUSES, jitter);
        // The other one asks again; and who cannot now says so itself when it can.
        let hopeless = matches!(why, Why::Refused(Unable::NoAddress | Unable::Symmetric));
        if !leads || hopeless {
            peer.punch.next = None;
        }
    }

    /// A peer has answered, or the request has come to nothing.
    pub fn answered(&mut self, now: Time, node: NodeId, answer: Option<Answer>) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.hole == Hole::Asked) else { return };
        let Standing::At(ours) = &self.standing else { return self.failed(now, node, Why::Unanswered) };
        match answer {
            Some(Answer::Agreed { addresses }) => {
                let theirs = usable(&addresses, ours);
                if theirs.is_empty() {
                    return self.failed(now, node, Why::NoCommonAddress);
                }
                peer.hole = Hole::Soon(now, theirs);
                self.punch(now, node);
            }
            Some(Answer::Refused(unable)) => self.failed(now, node, Why::Refused(unable)),
            None => self.failed(now, node, Why::NoAnswer),
        }
    }

    /// A peer asks. The answer is given by [`Event::Answer`], once, and soon.
    pub fn asked(&mut self, now: Time, node: NodeId, asked: Appointment, reply: ReplyId) {
        let full = self.punching() >= PUNCHES_AT_ONCE_MAX;
        // Two that ask each other at once both answer, and their own questions come to nothing.
        let free = |peer: &Peer| match peer.hole {
            Hole::None => !full,
            Hole::ToAsk | Hole::Asked => true,
            Hole::ToAnswer(..) | Hole::Soon(..) | Hole::Punching => false,
        };
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.by_entry && free(peer)) else {
            return self.events.push_back(Event::Answer(reply, Answer::Refused(Unable::NotNow)));
        };
        let (count, since) = peer.asked;
        peer.asked =
            if since + ASKED_WINDOW <= now || count == 0 { (1, now) } else { (count.saturating_add(1), since) };
        if peer.asked.0 > ASKED_MAX {
            return self.events.push_back(Event::Answer(reply, Answer::Refused(Unable::NotNow)));
        }
        let addresses: Vec<SocketAddr> = asked.addresses.into_iter().take(ADDRESSES_MAX).collect();
        if peer.told != addresses {
            // It is somewhere else: what was tried in vain may work.
            peer.told.clone_from(&addresses);
            peer.punch.times = 0;
        }
        peer.punch.next = None;
        peer.until = Some(now + ATTEMPT_MAX);
        peer.hole = Hole::ToAnswer(reply, addresses);
        self.look(now);
        self.seen(now);
    }

    fn agree(&mut self, now: Time, node: NodeId, reply: ReplyId, theirs: Vec<SocketAddr>, standing: &Standing) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let refused = match standing {
            Standing::At(ours) => {
                let theirs = usable(&theirs, ours);
                if !theirs.is_empty() {
                    let answer = Answer::Agreed { addresses: ours.clone() };
                    self.events.push_back(Event::Answer(reply, answer));
                    // It hears of it in half a round trip.
                    let wait = if self.me < node { DIALS_AFTER } else { Duration::ZERO };
                    peer.hole = Hole::Soon(now + wait, theirs);
                    return if wait.is_zero() {
                        self.punch(now, node)
                    };
                }
                Unable::NotNow
            }
            Standing::Symmetric => Unable::Symmetric,
            Standing::NoObserver | Standing::Unknown | Standing::Unseen => Unable::NoAddress,
        };
        peer.until = None;
        self.events.push_back(Event::Answer(reply, Answer::Refused(refused)));
    }

    pub(super) fn punch(&mut self, now: Time, node: NodeId) {
        let side = if self.me < node { Side::Dials } else { Side::Awaits };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Hole::Soon(_, addresses) = std::mem::replace(&mut peer.hole, Hole::Punching) {
            peer.until = Some(now + ATTEMPT_MAX);
            self.events.push_back(Event::Punch { node, addresses, side });
        }
    }
}

/// A peer that waits for an answer gets one, whatever became of it.
pub(super) fn turned_down(peer: &mut Peer) -> Option<Event> {
    match std::mem::replace(&mut peer.hole, Hole::None) {
        Hole::ToAnswer(reply, _) => Some(Event::Answer(reply, Answer::Refused(Unable::NotNow))),
        other => {
            peer.hole = other;
            None
        }
    }
}
