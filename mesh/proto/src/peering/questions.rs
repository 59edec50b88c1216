//! What is asked of the neighbours all at once: to hold what must not be lost, and what they know of an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::requests::Purpose;
use super::{Event, Peering};
use crate::clock::Time;
use crate::id::NodeId;
use crate::peer::{PeerRequest, PeerResponse};

/// Neighbours that are asked at once: what none of these knows is known to nobody near.
const ASKED_AT_ONCE_MAX: usize = 16;
/// Questions that are open at once: each is a call of an agent that waits.
const OPEN_MAX: usize = 1024;
/// Whoever refuses is asked again after this, then after twice as long, and so on: it may only not have heard yet who asks.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Hold these records of this node's own. It is enough when so many do.
    Hold {
        /// The records.
        records: Vec<Bytes>,
        /// How many neighbours are to hold all of them.
        wanted: usize,
    },
    /// What is known of this agent? The first that knows anything is enough.
    Guest(String),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// So many neighbours hold the records.
    Held(usize),
    /// What one of them knows: signed records with their ages in milliseconds. Empty: none knows anything.
    Guest(Vec<(u64, Vec<u8>)>),
}

/// A question, until [`Event::Concluded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuestionId(u64);

/// One that is not concluded yet.
#[derive(Debug)]
struct Open {
    until: Time,
    request: PeerRequest,
    /// Neighbours that have not answered, or have refused to.
    waiting: usize,
    /// Those that have refused, and when they are asked again.
    refused: BTreeSet<NodeId>,
    again_at: Option<Time>,
    again_after: Duration,
    /// What an answer to [`Question::Hold`] says of a neighbour that holds everything, and how many of those are wanted.
    hold: Option<(PeerResponse, usize)>,
    conclusion: Conclusion,
}

impl Open {
    /// Takes an answer in. True: it is enough.
    fn hear(&mut self, response: PeerResponse) -> bool {
        match (&mut self.conclusion, &self.hold, response) {
            (Conclusion::Held(holders), Some((all, wanted)), response) => {
                *holders += usize::from(response == *all);
                *holders >= *wanted
            }
            (Conclusion::Guest(known), _, PeerResponse::Guest(records)) if !records.is_empty() => {
                *known = records;
                true
            }
            _ => false,
        }
    }
}

/// The questions that are open.
#[derive(Debug, Default)]
pub(super) struct Questions {
    last: u64,
    open: BTreeMap<QuestionId, Open>,
}

impl Questions {
    /// When the next one is concluded, whatever has been answered.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.open.values().map(|open| open.until).min()
    }
}

impl Peering {
    /// Asks the neighbours; [`Event::Concluded`] comes when it is enough, all have answered, or `within` is over.
    pub fn ask_neighbours(&mut self, now: Time, question: Question, within: Duration) -> QuestionId {
        self.questions.last += 1;
        let id = QuestionId(self.questions.last);
        let room = self.questions.open.len() < OPEN_MAX;
        let asked: Vec<NodeId> = self.coordinators.iter().take(ASKED_AT_ONCE_MAX).filter(|_| room).copied().collect();
        let (request, hold, conclusion) = match question {
            Question::Hold { records, wanted } => {
                let all = PeerResponse::Taken(u32::try_from(records.len()).unwrap_or(u32::MAX));
                let records = records.into_iter().map(|record| record.to_vec()).collect();
                (PeerRequest::Push(records), Some((all, wanted)), Conclusion::Held(0))
            }
            Question::Guest(worker_id) => (PeerRequest::Guest(worker_id), None, Conclusion::Guest(Vec::new())),
        };
        if asked.is_empty() {
            self.events.push_back(Event::Concluded(id, conclusion));
            return id;
        }
        let open = Open {
            until: now + within,
            request: request.clone(),
            waiting: asked.len(),
            refused: BTreeSet::new(),
            again_at: None,
            again_after: AGAIN_AFTER,
            hold,
            conclusion,
        };
        self.questions.open.insert(id, open);
        for node in asked {
            self.ask(node, request.clone(), Purpose::Question(id));
        }
        id
    }

    /// A neighbour has answered.
    pub(super) fn answered_question(&mut self, now: Time, id: QuestionId, from: NodeId, response: PeerResponse) {
        // It may have been concluded before.
        let Some(open) = self.questions.open.get_mut(&id) else { return };
        if response == PeerResponse::Refused {
            // Both sides of a new connection hear who the other one is, and not at the same moment. Nothing has been answered.
            open.refused.insert(from);
            open.again_at.get_or_insert(now + open.again_after);
            return;
        }
        open.waiting -= 1;
        if open.hear(response) || open.waiting == 0 {
            self.conclude(id);
        }
    }

    /// A neighbour will not answer any more.
    pub(super) fn unanswered_question(&mut self, id: QuestionId) {
        let Some(open) = self.questions.open.get_mut(&id) else { return };
        open.waiting -= 1;
        if open.waiting == 0 {
            self.conclude(id);
        }
    }

    /// Asks those again that have refused, where it is time.
    pub(super) fn ask_again(&mut self, now: Time) {
        let mut refused = Vec::new();
        for (id, open) in &mut self.questions.open {
            if open.again_at.is_some_and(|at| at <= now) {
                open.again_at = None;
                open.again_after *= 2;
                refused.extend(
                    std::mem::take(&mut open.refused).into_iter().map(|node| (*id, node, open.request.clone())),
                );
            }
        }
        for (id, node, request) in refused {
            match self.coordinators.contains(&node) {
                true => self.ask(node, request, Purpose::Question(id)),
                false => self.unanswered_question(id),
            }
        }
    }

    /// What has come until its time is over counts.
    pub(super) fn conclude_overdue(&mut self, now: Time) {
        let overdue: Vec<QuestionId> =
            self.questions.open.iter().filter(|(_, open)| open.until <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.conclude(id);
        }
    }

    fn conclude(&mut self, id: QuestionId) {
        if let Some(open) = self.questions.open.remove(&id) {
            self.events.push_back(Event::Concluded(id, open.conclusion));
        }
    }
}
