//! What is asked of neighbours and by them: pushes, turns of a synchronisation, questions about guests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::judge::{self, Fault};
use super::{Complaint, Event, Peering, QuestionId, Replica, Reply, RequestId};
use crate::clock::Time;
use crate::id::NodeId;
use crate::peer::{PeerRequest, PeerResponse};
use crate::registry::Source;
use crate::replica::NotTaken;
use crate::sync::Session;

/// Of so many synchronisations one is with anybody who is connected.
const ANYBODY_EVERY: u8 = 8;

/// What a request was sent for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The introduction to a new neighbour; then they synchronise.
    Introduction,
    /// A turn of a synchronisation.
    Turn { session: Box<Session>, number: u64 },
    /// A question to all neighbours.
    Question(QuestionId),
}

/// What is under way: at most one synchronisation in each direction with each peer, and the requests for those.
#[derive(Debug, Default)]
pub(super) struct Requests {
    last: u64,
    pending: BTreeMap<RequestId, (NodeId, Purpose)>,
    /// The synchronisations that peers have begun.
    answering: BTreeMap<NodeId, (u64, Session)>,
    /// The peers with whom this node has begun one.
    begun: BTreeSet<NodeId>,
}

impl Peering {
    /// Says to a new neighbour what this node is, in its own words: then it has a standing there.
    pub(super) fn introduce(&mut self, replica: &impl Replica, to: NodeId) {
        let own = replica.introduction().iter().map(|record| record.to_vec()).collect();
        self.ask(to, PeerRequest::Push(own), Purpose::Introduction);
    }

    pub(super) fn ask(&mut self, to: NodeId, request: PeerRequest, purpose: Purpose) {
        self.requests.last += 1;
        let id = RequestId(self.requests.last);
        self.requests.pending.insert(id, (to, purpose));
        self.events.push_back(Event::Request { id, to, request });
    }

    /// Begins a synchronisation with one of the neighbours: of the near ones, but now and then of all, so that who has chosen its
    /// key to be near this node's cannot keep others from it.
    pub(super) fn synchronise_with_somebody(&mut self, now: Time, replica: &mut impl Replica) {
        let near = match self.random.u8(..ANYBODY_EVERY) {
            0 => BTreeSet::new(),
            _ => self.neighbours.near(&self.coordinators),
        };
        let free_of = |of: &BTreeSet<NodeId>| of.difference(&self.requests.begun).copied().collect::<Vec<NodeId>>();
        let mut free = free_of(&near);
        if free.is_empty() {
            free = free_of(&self.coordinators);
        }
        if let Some(node) = self.random.choice(free) {
            self.synchronise(now, replica, node);
        }
    }

    /// Begins a synchronisation with a connected coordinator, if none is under way. False: there is none, and will be none.
    /// Otherwise [`Event::SynchronisationEnded`] comes, however it ends.
    pub fn synchronise(&mut self, now: Time, replica: &mut impl Replica, node: NodeId) -> bool {
        if !self.replication.synchronises() || !self.coordinators.contains(&node) {
            return false;
        }
        if self.requests.begun.insert(node) {
            let number = self.random.u64(..);
            self.take_turn(now, replica, node, Box::new(Session::initiate()), number);
        }
        true
    }

    /// This side's turn.
    fn take_turn(
        &mut self,
        now: Time,
        replica: &mut impl Replica,
        with: NodeId,
        mut session: Box<Session>,
        number: u64,
    ) {
        let messages = replica.turn(now, &mut session);
        if messages.is_empty() {
            return self.ended(with);
        }
        self.ask(with, PeerRequest::Sync { session: number, messages }, Purpose::Turn { session, number });
    }

    fn ended(&mut self, with: NodeId) {
        if self.requests.begun.remove(&with) {
            self.events.push_back(Event::SynchronisationEnded(with));
        }
    }

    /// A peer has gone, and all that was under way with it.
    pub(super) fn break_off(&mut self, with: &NodeId) {
        self.requests.answering.remove(with);
        let pending = &self.requests.pending;
        let lost: Vec<RequestId> = pending.iter().filter(|(_, (to, _))| to == with).map(|(id, _)| *id).collect();
        for id in lost {
            self.unanswered(id);
        }
        self.ended(*with);
    }

    /// A request has been answered.
    pub fn answered(&mut self, now: Time, replica: &mut impl Replica, id: RequestId, response: PeerResponse) {
        let Some((from, purpose)) = self.requests.pending.remove(&id) else { return };
        match (purpose, response) {
            (Purpose::Introduction, _) => _ = self.synchronise(now, replica, from),
            (Purpose::Turn { mut session, number }, PeerResponse::Sync(messages)) => {
                if self.hear(now, replica, from, &mut session, &messages) {
                    self.take_turn(now, replica, from, session, number);
                } else {
                    self.ended(from);
                }
            }
            (Purpose::Question(question), response) => self.answered_question(now, question, from, response),
            // Another answer than a turn.
            (Purpose::Turn { .. }, _) => self.ended(from),
        }
    }

    /// A request has come to nothing, or has been answered by something that is no response (then see also [`Peering::garbled`]).
    pub fn unanswered(&mut self, id: RequestId) {
        match self.requests.pending.remove(&id) {
            Some((to, Purpose::Turn { .. })) => self.ended(to),
            Some((_, Purpose::Question(question))) => self.unanswered_question(question),
            // It will be met again.
            Some((_, Purpose::Introduction)) | None => {}
        }
    }

    /// A peer asks. A call of the existing contract is not for this core to answer.
    pub fn requested(&mut self, now: Time, replica: &mut impl Replica, from: NodeId, request: PeerRequest) -> Reply {
        Reply::Now(match request {
            // Only who is of the federation is heard at all.
            _ if !self.peers.contains(&from) => PeerResponse::Refused,
            PeerRequest::Push(records) => self.pushed(now, replica, from, records),
            PeerRequest::Sync { session, messages } => self.answer_turn(now, replica, from, session, &messages),
            PeerRequest::Guest(worker_id) => PeerResponse::Guest(replica.guest_records(now, &worker_id)),
            PeerRequest::Call(call) if self.coordinators.contains(&from) => return Reply::Call(call),
            PeerRequest::Call(_) => PeerResponse::Refused,
        })
    }

    fn pushed(&mut self, now: Time, replica: &mut impl Replica, from: NodeId, records: Vec<Vec<u8>>) -> PeerResponse {
        let mut held = 0;
        for record in records {
            let judge = &mut self.judge;
            let taken =
                replica.insert_if(now, Bytes::from(record), Source::Passed(Duration::ZERO), |registry, record| {
                    judge.published(now, registry, &from, record)
                });
            let (complaint, fault) = match taken {
                Ok(_) => {
                    held += 1;
                    continue;
                }
                Err(NotTaken::Bad(error)) => (Complaint::NoRecord(error), Some(Fault::Wrong)),
                Err(NotTaken::Objection(objection)) => (Complaint::Objection(objection), Some(Fault::Useless)),
                Err(NotTaken::Refused(refused)) => (Complaint::Refused(refused), None),
            };
            self.complain(from, complaint);
            if fault.is_some_and(|fault| self.fault(now, from, fault)) {
                // It is cut off; a push of a megabyte of nothing is not read to its end.
                break;
            }
        }
        PeerResponse::Taken(held)
    }

    /// The other side of a synchronisation.
    fn answer_turn(
        &mut self,
        now: Time,
        replica: &mut impl Replica,
        from: NodeId,
        number: u64,
        messages: &[Vec<u8>],
    ) -> PeerResponse {
        if !self.replication.synchronises() {
            return PeerResponse::Refused;
        }
        let mut session = match self.requests.answering.remove(&from) {
            Some((same, session)) if same == number => session,
            _ => Session::respond(),
        };
        if !self.hear(now, replica, from, &mut session, messages) {
            return PeerResponse::Refused;
        }
        let messages = replica.turn(now, &mut session);
        if !session.is_finished() {
            self.requests.answering.insert(from, (number, session));
        }
        PeerResponse::Sync(messages)
    }

    /// Takes the messages of a peer's turn. False: the session is over before its time.
    fn hear(
        &mut self,
        now: Time,
        replica: &mut impl Replica,
        from: NodeId,
        session: &mut Session,
        messages: &[Vec<u8>],
    ) -> bool {
        let patience = self.judge.patience(now, &from);
        session.be_patient(patience);
        let (mut passed_over, mut failed) = (0, None);
        for message in messages {
            let received = replica
                .receive_if(now, session, message, |registry, record| judge::may_synchronise(registry, &from, record));
            match received {
                Ok(received) => passed_over += received.passed_over,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        // Also of who ends with a message that is none: what came before it has been verified.
        self.judge.try_patience(now, from, patience.saturating_sub(session.patience()));
        if let Some(error) = failed {
            self.complain(from, Complaint::Synchronisation(error));
            self.fault(now, from, Fault::Wrong);
            return false;
        }
        // An honest peer whose registry holds other things than this one has room for asks no more often than once in a while.
        passed_over == 0 || !self.fault(now, from, Fault::Useless)
    }
}
