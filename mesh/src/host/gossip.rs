//! Gossip: what this node says goes out at once; what others say is taken, or not, before it is forwarded.

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::gossipsub::{Event, Message, MessageAcceptance, MessageId, PublishError};
use tracing::{debug, trace};

use super::judge::Fault;
use super::{Host, Registry, node_id};
use crate::replica::NotTaken;
use hedgerow_proto::registry::{Outcome, Source};
use std::time::Duration;

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
                self.report(propagation_source, &message_id, acceptance);
            }
            other => trace!(event = ?other, "gossip"),
        }
    }

    /// Takes a record that somebody has published, if it is worth it.
    fn gossiped(&mut self, hop: PeerId, message: Message) -> MessageAcceptance {
        let Some(Registry { replica, .. }) = &self.registry else { return MessageAcceptance::Ignore };
        // Gossipsub has checked the publisher's signature.
        let Some((publisher, source)) = message.source.and_then(|peer| Some((node_id(&peer)?, peer))) else {
            self.fault(hop, Fault::Wrong);
            return MessageAcceptance::Reject;
        };
        let (now, judge) = (replica.now(), &mut self.judge);
        let taken = replica.insert_if(message.data.into(), Source::Passed(Duration::ZERO), |registry, record| {
            judge.published(now, registry, &publisher, record)
        });
        match taken {
            Ok(outcome) if outcome.is_news() => MessageAcceptance::Accept,
            Ok(outcome) => {
                // Older than what is here: it may only be late. Who repeats it all the time does so on purpose.
                if matches!(outcome, Outcome::Older | Outcome::Left | Outcome::Known) {
                    self.fault(source, Fault::Useless);
                }
                MessageAcceptance::Ignore
            }
            Err(NotTaken::Bad(error)) => {
                debug!(%publisher, %error, "what was gossiped is no record");
                self.fault(source, Fault::Wrong);
                if hop != source {
                    self.fault(hop, Fault::Wrong);
                }
                MessageAcceptance::Reject
            }
            Err(NotTaken::Objection(objection)) => {
                trace!(%publisher, %objection, "a gossiped record is not taken");
                self.fault(source, Fault::Useless);
                MessageAcceptance::Ignore
            }
            Err(NotTaken::Refused(refused)) => {
                debug!(%publisher, %refused, "a gossiped record is not taken");
                MessageAcceptance::Ignore
            }
        }
    }

    fn report(&mut self, hop: PeerId, id: &MessageId, acceptance: MessageAcceptance) {
        if let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() {
            gossip.report_message_validation_result(id, &hop, acceptance);
        }
    }
}
