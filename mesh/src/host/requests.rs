//! What is asked of neighbours and by them: pushes, turns of a synchronisation, questions about guests, calls passed on.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use hedgerow_proto::peer::{Call, PeerRequest, PeerResponse};
use hedgerow_proto::registry::Source;
use hedgerow_proto::sync::Session;
use hedgerow_proto::wire::DecodeError;
use libp2p::PeerId;
use libp2p::request_response::{Event, Message, OutboundFailure, ResponseChannel};
use tokio::sync::oneshot;
use tracing::{debug, trace};

use super::judge::{self, Fault};
use super::{AskError, CALLS_MAX, CallAnswered, Host, IncomingCall, Registry, node_id};
use crate::replica::NotTaken;

/// What a request was sent for.
pub(super) enum Pending {
    /// A turn of a synchronisation.
    Turn { peer: PeerId, session: Box<Session>, number: u64 },
    /// The introduction to a new neighbour; then they synchronise.
    Introduction { peer: PeerId },
    /// Somebody waits for the answer.
    Asked(oneshot::Sender<Result<PeerResponse, AskError>>),
}

/// The synchronisations that peers have begun, one each, and those that this host has, one each.
#[derive(Default)]
pub(super) struct Sessions {
    answering: HashMap<PeerId, (u64, Session)>,
    begun: HashMap<PeerId, Vec<oneshot::Sender<()>>>,
}

impl Sessions {
    pub(super) fn gone(&mut self, peer: &PeerId) {
        self.answering.remove(peer);
        self.begun.remove(peer);
    }
}

impl Host {
    /// Says to a new neighbour what this node is, in its own words: then it has a standing there.
    pub(super) fn introduce(&mut self, peer: PeerId) {
        let Some(Registry { replica, .. }) = &self.registry else { return };
        let own = replica.introduction();
        self.ask(
            peer,
            PeerRequest::Push(own.iter().map(|record| record.to_vec()).collect()),
            Pending::Introduction { peer },
        );
    }

    pub(super) fn ask(&mut self, peer: PeerId, request: PeerRequest, pending: Pending) {
        match self.swarm.behaviour_mut().peers.as_mut() {
            Some(peers) => {
                let id = peers.send_request(&peer, Ok(request));
                self.pending.insert(id, pending);
            }
            None => self.came_to_nothing(pending, AskError::NotACoordinator),
        }
    }

    /// Begins a synchronisation with one of the neighbours.
    pub(super) fn synchronise_with_somebody(&mut self) {
        let free: Vec<PeerId> =
            self.friends.values().filter(|peer| !self.sessions.begun.contains_key(peer)).copied().collect();
        if let Some(peer) = self.random.choice(free) {
            self.synchronise(peer, None);
        }
    }

    /// Begins a synchronisation with this neighbour, or waits for the one that is under way.
    pub(super) fn synchronise(&mut self, peer: PeerId, done: Option<oneshot::Sender<()>>) {
        if !self.registry.as_ref().is_some_and(|registry| registry.replication.synchronises()) {
            return;
        }
        if let Some(waiting) = self.sessions.begun.get_mut(&peer) {
            waiting.extend(done);
            return;
        }
        self.sessions.begun.insert(peer, done.into_iter().collect());
        let number = self.random.u64(..);
        self.take_turn(peer, Box::new(Session::initiate()), number);
    }

    /// This side's turn.
    fn take_turn(&mut self, peer: PeerId, mut session: Box<Session>, number: u64) {
        let Some(Registry { replica, .. }) = &self.registry else { return };
        let messages = replica.turn(&mut session);
        if messages.is_empty() {
            let traffic = session.traffic();
            trace!(%peer, sent = traffic.records_sent, messages = traffic.messages_sent, "synchronised");
            self.sessions.begun.remove(&peer);
            return;
        }
        self.ask(peer, PeerRequest::Sync { session: number, messages }, Pending::Turn { peer, session, number });
    }

    pub(super) fn on_request_response(&mut self, event: Event<Result<PeerRequest, DecodeError>, PeerResponse>) {
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => match request {
                Ok(request) => self.asked(peer, request, channel),
                Err(error) => {
                    debug!(%peer, %error, "a request that is none");
                    self.fault(peer, Fault::Wrong);
                    self.respond(channel, PeerResponse::Refused);
                }
            },
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(pending) = self.pending.remove(&request_id) {
                    self.answered(pending, response);
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                trace!(%peer, %error, "a request came to nothing");
                if let OutboundFailure::Io(error) = &error
                    && error.kind() == std::io::ErrorKind::InvalidData
                {
                    self.fault(peer, Fault::Wrong);
                }
                if let Some(pending) = self.pending.remove(&request_id) {
                    self.came_to_nothing(pending, AskError::Failed(error.to_string()));
                }
            }
            other => trace!(event = ?other, "requests"),
        }
    }

    fn came_to_nothing(&mut self, pending: Pending, error: AskError) {
        match pending {
            Pending::Turn { peer, .. } => drop(self.sessions.begun.remove(&peer)),
            Pending::Introduction { .. } => {}
            // Whoever asked may have gone.
            Pending::Asked(answer) => drop(answer.send(Err(error))),
        }
    }

    fn answered(&mut self, pending: Pending, response: PeerResponse) {
        match (pending, response) {
            (Pending::Asked(answer), response) => drop(answer.send(Ok(response))),
            (Pending::Introduction { peer }, _) => self.synchronise(peer, None),
            (Pending::Turn { peer, mut session, number }, PeerResponse::Sync(messages)) => {
                if self.hear(peer, &mut session, &messages) {
                    self.take_turn(peer, session, number);
                } else {
                    self.sessions.begun.remove(&peer);
                }
            }
            (pending @ Pending::Turn { .. }, _) => {
                self.came_to_nothing(pending, AskError::Failed("another answer than a turn".into()));
            }
        }
    }

    /// Takes the messages of a peer's turn. False: the session is over before its time.
    fn hear(&mut self, peer: PeerId, session: &mut Session, messages: &[Vec<u8>]) -> bool {
        let Some((Registry { replica, .. }, node)) = self.registry.as_ref().zip(node_id(&peer)) else { return false };
        for message in messages {
            let received = replica
                .receive_if(session, message, |registry, record| judge::may_synchronise(registry, &node, record));
            if let Err(error) = received {
                debug!(%peer, %error, "a synchronisation broke off");
                self.fault(peer, Fault::Wrong);
                return false;
            }
        }
        true
    }

    fn asked(&mut self, peer: PeerId, request: PeerRequest, channel: ResponseChannel<PeerResponse>) {
        let response = match request {
            // Only who is of the federation is heard at all.
            _ if !self.status.borrow().peers.contains(&peer) => PeerResponse::Refused,
            PeerRequest::Push(records) => self.pushed(peer, records),
            PeerRequest::Sync { session, messages } => self.answer_turn(peer, session, &messages),
            PeerRequest::Guest(worker_id) => self.registry.as_ref().map_or(PeerResponse::Refused, |registry| {
                PeerResponse::Guest(registry.replica.guest_records(&worker_id))
            }),
            PeerRequest::Call(call) => return self.called(peer, call, channel),
        };
        self.respond(channel, response);
    }

    pub(super) fn respond(&mut self, channel: ResponseChannel<PeerResponse>, response: PeerResponse) {
        if let Some(peers) = self.swarm.behaviour_mut().peers.as_mut() {
            // An error says that the peer does not wait any more.
            let _ = peers.send_response(channel, response);
        }
    }

    fn pushed(&mut self, peer: PeerId, records: Vec<Vec<u8>>) -> PeerResponse {
        let Some((Registry { replica, .. }, node)) = self.registry.as_ref().zip(node_id(&peer)) else {
            return PeerResponse::Refused;
        };
        let (now, judge) = (replica.now(), &mut self.judge);
        let mut held = 0;
        let mut faults = Vec::new();
        for record in records {
            let taken = replica.insert_if(Bytes::from(record), Source::Passed(Duration::ZERO), |registry, record| {
                judge.published(now, registry, &node, record)
            });
            match taken {
                Ok(_) => held += 1,
                Err(NotTaken::Bad(_)) => faults.push(Fault::Wrong),
                Err(NotTaken::Objection(_)) => faults.push(Fault::Useless),
                Err(NotTaken::Refused(refused)) => debug!(%peer, %refused, "a pushed record is not taken"),
            }
        }
        for fault in faults {
            self.fault(peer, fault);
        }
        PeerResponse::Taken(held)
    }

    /// The other side of a synchronisation.
    fn answer_turn(&mut self, peer: PeerId, number: u64, messages: &[Vec<u8>]) -> PeerResponse {
        if !self.registry.as_ref().is_some_and(|registry| registry.replication.synchronises()) {
            return PeerResponse::Refused;
        }
        let mut session = match self.sessions.answering.remove(&peer) {
            Some((same, session)) if same == number => session,
            _ => Session::respond(),
        };
        if !self.hear(peer, &mut session, messages) {
            return PeerResponse::Refused;
        }
        let Some(Registry { replica, .. }) = &self.registry else { return PeerResponse::Refused };
        let messages = replica.turn(&mut session);
        if !session.is_finished() {
            self.sessions.answering.insert(peer, (number, session));
        }
        PeerResponse::Sync(messages)
    }

    /// A call of the existing contract, from a neighbour that believes its agent to be held here.
    fn called(&mut self, peer: PeerId, call: Call, channel: ResponseChannel<PeerResponse>) {
        let friend = node_id(&peer).filter(|node| self.friends.contains_key(node));
        let (Some(from), Some(registry)) = (friend, &self.registry) else {
            return self.respond(channel, PeerResponse::Refused);
        };
        let (answer, answered) = oneshot::channel();
        let room = self.calls.len() < CALLS_MAX;
        if !room || registry.calls.try_send(IncomingCall { from, call, answer }).is_err() {
            return self.respond(channel, PeerResponse::Refused);
        }
        let answer = async move {
            match answered.await {
                Ok(CallAnswered { status, body, records }) => (channel, PeerResponse::Called { status, body, records }),
                Err(_) => (channel, PeerResponse::Refused),
            }
        };
        self.calls.push(answer.boxed());
    }
}
