//! Requests on libp2p: those that the core sends and those that the rest of the node does; what peers ask, and calls that they
//! pass on.

use futures_util::FutureExt;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::peer::{Call, PeerRequest, PeerResponse};
use hedgerow_proto::peering::{Reply, RequestId};
use hedgerow_proto::wire::DecodeError;
use libp2p::PeerId;
use libp2p::request_response::{Event, Message, OutboundFailure, ResponseChannel};
use tokio::sync::oneshot;
use tracing::{debug, trace};

use super::{AskError, CALLS_MAX, CallAnswered, Host, IncomingCall, node_id};

/// Who waits for the answer to a request.
pub(super) enum Asker {
    /// The core.
    Core(RequestId),
    /// Some other part of the node.
    Other(oneshot::Sender<Result<PeerResponse, AskError>>),
}

impl Host {
    pub(super) fn ask(&mut self, peer: PeerId, request: PeerRequest, asker: Asker) {
        match self.swarm.behaviour_mut().peers.as_mut() {
            Some(peers) => {
                let id = peers.send_request(&peer, Ok(request));
                self.asked.insert(id, asker);
            }
            None => self.unanswered(asker, AskError::NotACoordinator),
        }
    }

    fn unanswered(&mut self, asker: Asker, error: AskError) {
        match asker {
            Asker::Core(id) => _ = self.tell(|peering, _, _| peering.unanswered(id)),
            // Whoever asked may have gone.
            Asker::Other(answer) => drop(answer.send(Err(error))),
        }
    }

    pub(super) fn on_request_response(&mut self, event: Event<Result<PeerRequest, DecodeError>, PeerResponse>) {
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => match request {
                Ok(request) => self.requested(peer, request, channel),
                Err(error) => {
                    debug!(%peer, %error, "a request that is none");
                    self.garbled(&peer);
                    self.respond(channel, PeerResponse::Refused);
                }
            },
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                match self.asked.remove(&request_id) {
                    Some(Asker::Core(id)) => {
                        self.tell(|peering, replica, now| peering.answered(now, replica, id, response));
                    }
                    Some(Asker::Other(answer)) => drop(answer.send(Ok(response))),
                    None => {}
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                trace!(%peer, %error, "a request came to nothing");
                if let OutboundFailure::Io(error) = &error
                    && error.kind() == std::io::ErrorKind::InvalidData
                {
                    self.garbled(&peer);
                }
                if let Some(asker) = self.asked.remove(&request_id) {
                    self.unanswered(asker, AskError::Failed(error.to_string()));
                }
            }
            other => trace!(event = ?other, "requests"),
        }
    }

    fn garbled(&mut self, peer: &PeerId) {
        if let Some(node) = node_id(peer) {
            self.tell(|peering, _, now| peering.garbled(now, node));
        }
    }

    fn requested(&mut self, peer: PeerId, request: PeerRequest, channel: ResponseChannel<PeerResponse>) {
        let from = node_id(&peer);
        let reply = from.and_then(|from| {
            let reply = self.tell(|peering, replica, now| peering.requested(now, replica, from, request));
            Some((from, reply?))
        });
        match reply {
            Some((_, Reply::Now(response))) => self.respond(channel, response),
            Some((from, Reply::Call(call))) => self.called(from, call, channel),
            None => self.respond(channel, PeerResponse::Refused),
        }
    }

    pub(super) fn respond(&mut self, channel: ResponseChannel<PeerResponse>, response: PeerResponse) {
        if let Some(peers) = self.swarm.behaviour_mut().peers.as_mut() {
            // An error says that the peer does not wait any more.
            let _ = peers.send_response(channel, response);
        }
    }

    /// A call of the existing contract, from a neighbour that believes its agent to be held here.
    fn called(&mut self, from: NodeId, call: Call, channel: ResponseChannel<PeerResponse>) {
        let (answer, answered) = oneshot::channel();
        let call = IncomingCall { from, call, answer };
        let room = self.calls.len() < CALLS_MAX;
        let taken = self.registry.as_ref().is_some_and(|registry| room && registry.calls.try_send(call).is_ok());
        if !taken {
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
