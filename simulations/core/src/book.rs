//! What the simulation knows and no node does: who is who, what honest nodes have signed, what became of each request, and what
//! was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::{Kind, RecordHash, Signed, Version};
use hedgerow_proto::registry::Registry;
use hedgerow_proto::retry::Repeat;
use hedgerow_sim_model::results::Violation;

use crate::message::RequestNumber;

/// More of one rule than this are only counted: the first ones tell.
const VIOLATIONS_MAX: usize = 20;

/// A request of a client.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Duration,
    pub(crate) entry: u32,
    pub(crate) service: u32,
    pub(crate) repeat: Repeat,
    /// Where the service has begun to work on it, one after the other.
    pub(crate) ran: Vec<u32>,
    /// How often the client has seen an answer begin.
    pub(crate) began: u32,
    /// What became of it, and when.
    pub(crate) end: Option<(Duration, Ended)>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client has its answer.
    Answered,
    /// The client was told that nothing ran.
    NotRun,
    /// The client was told that it may have run, or the answer broke off.
    Unknown,
    /// The client does not wait any longer.
    Impatient,
    /// The entry has gone.
    EntryGone,
}

/// A key of a record: whose, of what kind, about whom.
pub(crate) type Key = (NodeId, Kind, Vec<u8>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The index of each key; a clone has that of its original.
    pub(crate) index: BTreeMap<NodeId, u32>,
    /// The key of each node, by index.
    ids: Vec<NodeId>,
    /// Everything that honest nodes have signed.
    signed: BTreeSet<RecordHash>,
    /// The newest of each key, and when it was said.
    pub(crate) newest: BTreeMap<Key, (Version, RecordHash, Duration)>,
    /// Nodes whose words are not to be trusted: those that keep no rule, and those whose key two processes have.
    pub(crate) untrusted: BTreeSet<NodeId>,
    /// The requests, by number.
    pub(crate) requests: BTreeMap<RequestNumber, Asked>,
    pub(crate) violations: Vec<Violation>,
    counts: BTreeMap<&'static str, usize>,
    /// How long answers took.
    pub(crate) latencies_ms: Vec<f64>,
    pub(crate) asked: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
}

impl Book {
    /// Nothing has happened yet. The keys of all nodes, in order of index.
    pub(crate) fn new(ids: Vec<NodeId>) -> Self {
        let index = (0..).zip(&ids).map(|(node, id)| (*id, node)).collect();
        Self { index, ids, ..Self::default() }
    }

    /// The key that a node proves to have.
    pub(crate) fn id(&self, node: u32) -> NodeId {
        self.ids.get(node as usize).copied().unwrap_or(NodeId([0; 32]))
    }

    /// One has another's key.
    pub(crate) fn cloned(&mut self, of: u32, node: u32) {
        let id = self.id(of);
        self.index.remove(&self.id(node));
        if let Some(slot) = self.ids.get_mut(node as usize) {
            *slot = id;
        }
        self.untrusted.insert(id);
    }

    /// Something is wrong.
    pub(crate) fn wrong(&mut self, at: Duration, rule: &'static str, node: Option<u32>, what: String) {
        let count = self.counts.entry(rule).or_default();
        *count += 1;
        if *count <= VIOLATIONS_MAX {
            self.violations.push(Violation { rule: rule.to_owned(), at_s: at.as_secs_f64(), node, what });
        }
    }

    /// An honest node has said something: `registry` is its own, in which it stands.
    pub(crate) fn said(&mut self, at: Duration, node: NodeId, registry: &Registry) {
        // A node's own records are few, but for the attachments of a large home.
        for signed in registry.records_of(&node) {
            if self.signed.insert(signed.hash()) {
                self.note(at, signed);
            }
        }
    }

    fn note(&mut self, at: Duration, signed: &Signed) {
        let version = signed.version();
        let key = (signed.writer(), signed.kind(), signed.subject().to_vec());
        let is_newer = self.newest.get(&key).is_none_or(|(newest, ..)| *newest < version);
        if is_newer {
            if signed.kind() == Kind::LEAVE {
                let below: Vec<Key> = self
                    .newest
                    .range((signed.writer(), Kind(0), Vec::new())..)
                    .take_while(|((writer, ..), _)| *writer == signed.writer())
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in &below {
                    self.newest.remove(key);
                }
            }
            self.newest.insert(key, (version, signed.hash(), at));
        }
    }

    /// Whether an honest node has signed this.
    pub(crate) fn has_signed(&self, hash: RecordHash) -> bool {
        self.signed.contains(&hash)
    }

    /// A service has begun to work on a request.
    pub(crate) fn runs(&mut self, at: Duration, number: RequestNumber, node: u32) {
        let Some(asked) = self.requests.get_mut(&number) else { return };
        asked.ran.push(node);
        let times = asked.ran.len();
        if asked.repeat == Repeat::Once && times > 1 {
            let what = format!("request {number} must not run twice, and ran at {:?}", asked.ran);
            self.wrong(at, "ran-twice", Some(node), what);
        }
    }

    /// The client sees an answer begin.
    pub(crate) fn begins(&mut self, at: Duration, number: RequestNumber) {
        let Some(asked) = self.requests.get_mut(&number) else { return };
        asked.began += 1;
        if asked.began > 1 {
            self.wrong(at, "answered-twice", None, format!("the client of request {number} saw a second answer begin"));
        }
    }

    /// A request is over.
    pub(crate) fn ends(&mut self, at: Duration, number: RequestNumber, ended: Ended) {
        let Some(asked) = self.requests.get_mut(&number) else { return };
        if asked.end.is_some() {
            return;
        }
        asked.end = Some((at, ended));
        let (began_at, ran) = (asked.at, asked.ran.len());
        match ended {
            Ended::Answered => {
                self.answered += 1;
                self.latencies_ms.push((at - began_at).as_secs_f64() * 1000.0);
            }
            _ => self.failed += 1,
        }
        if ended == Ended::NotRun && ran > 0 {
            let what = format!("the client of request {number} was told that nothing ran, and it ran");
            self.wrong(at, "not-run-but-ran", None, what);
        }
    }
}
