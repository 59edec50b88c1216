//! Gossip: what this node says goes out at once; what others say is taken, or not, before it is forwarded.

use std::time::Duration;

use bytes::Bytes;

use super::judge::Fault;
use super::{Complaint, Event, Peering, Replica};
use crate::clock::Time;
use crate::id::NodeId;
use crate::registry::{Outcome, Source};
use crate::replica::NotTaken;

/// What becomes of a gossiped message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It is news: forward it.
    Accept,
    /// It is not, or not for its publisher to say: let it lie.
    Ignore,
    /// No honest program publishes or forwards it.
    Reject,
}

impl Peering {
    /// This node says something that others should know soon. Whoever does not get it learns of it by synchronisation.
    pub fn hurry(&mut self, record: Bytes) {
        if self.replication.gossips() {
            self.events.push_back(Event::Publish(record));
        }
    }

    /// A record has come in that `publisher` has published (whose signature of the message has been checked), by way of `hop`.
    pub fn gossiped(
        &mut self,
        now: Time,
        replica: &mut impl Replica,
        hop: NodeId,
        publisher: NodeId,
        record: Bytes,
    ) -> Acceptance {
        let judge = &mut self.judge;
        let taken = replica.insert_if(now, record, Source::Passed(Duration::ZERO), |registry, record| {
            judge.published(now, registry, &publisher, record)
        });
        match taken {
            Ok(outcome) if outcome.is_news() => Acceptance::Accept,
            Ok(outcome) => {
                // Older than what is here: it may only be late. Who repeats it all the time does so on purpose.
                if matches!(outcome, Outcome::Older | Outcome::Left | Outcome::Known) {
                    self.fault(now, publisher, Fault::Useless);
                }
                Acceptance::Ignore
            }
            Err(NotTaken::Bad(error)) => {
                self.complain(publisher, Complaint::NoRecord(error));
                self.fault(now, publisher, Fault::Wrong);
                if hop != publisher {
                    self.fault(now, hop, Fault::Wrong);
                }
                Acceptance::Reject
            }
            Err(NotTaken::Objection(objection)) => {
                self.complain(publisher, Complaint::Objection(objection));
                self.fault(now, publisher, Fault::Useless);
                Acceptance::Ignore
            }
            Err(NotTaken::Refused(refused)) => {
                self.complain(publisher, Complaint::Refused(refused));
                Acceptance::Ignore
            }
        }
    }
}
