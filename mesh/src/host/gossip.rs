//! Gossip on libp2p: gossipsub's messages, handed to the core and reported on.

use bytes::Bytes;
use hedgerow_proto::peering::Acceptance;
use libp2p::PeerId;
use libp2p::gossipsub::{Event, Message, MessageAcceptance, PublishError};
use tracing::{debug, trace};

use super::{Host, node_id};

impl Host {
    /// Publishes a record. Whoever does not get it learns of it by synchronisation.
    pub(super) fn publish(&mut self, record: Bytes) {
        let topic = self.names.topic();
        let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() else { return };
        match gossip.publish(topic, record) {
            Ok(_) => {}
            Err(PublishError::Duplicate | PublishError::NoPeersSubscribedToTopic) => {}
            Err(error) => debug!(%error, "a record is not gossiped; it will be synchronised"),
        }
    }

    pub(super) fn on_gossip(&mut self, event: Event) {
        match event {
            Event::Message { propagation_source, message_id, message } => {
                let acceptance = self.gossiped(propagation_source, message);
                if let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() {
                    gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
                }
            }
            other => trace!(event = ?other, "gossip"),
        }
    }

    fn gossiped(&mut self, hop: PeerId, message: Message) -> MessageAcceptance {
        let Some(hop) = node_id(&hop) else { return MessageAcceptance::Reject };
        // Gossipsub has checked the publisher's signature.
        let Some(publisher) = message.source.as_ref().and_then(node_id) else {
            self.tell(|peering, _, now| peering.garbled(now, hop));
            return MessageAcceptance::Reject;
        };
        let record = message.data.into();
        let acceptance = self.tell(|peering, replica, now| peering.gossiped(now, replica, hop, publisher, record));
        match acceptance {
            Some(Acceptance::Accept) => MessageAcceptance::Accept,
            Some(Acceptance::Reject) => MessageAcceptance::Reject,
            Some(Acceptance::Ignore) | None => MessageAcceptance::Ignore,
        }
    }
}
