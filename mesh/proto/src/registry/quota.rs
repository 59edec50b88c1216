//! How much of the registry one sponsor, one source prefix, and all together may take. Keys are free, so nothing is
//! bounded by counting keys alone.
//!
//! A worker's sponsor is the coordinator that it names as its home, if that is one that is known here. What is over a
//! limit is refused by name; marks, which nobody waits for, make room by age instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::writer::Writer;
use crate::clock::Time;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::record::{Kind, NodeRecord, Record, RecordError};

/// Where a node came in from: an IPv4 /24 or an IPv6 /48, about what one subscriber or one site has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourcePrefix {
    /// The first three bytes.
    V4([u8; 3]),
    /// The first six bytes.
    V6([u8; 6]),
}

impl SourcePrefix {
    /// The prefix of this address. An IPv4 address in IPv6 form is an IPv4 address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, ..] = address.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/24"),
            Self::V6([a, b, c, d, e, g]) => write!(f, "{a:02x}{b:02x}:{c:02x}{d:02x}:{e:02x}{g:02x}::/48"),
        }
    }
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no good.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It has been dead for so long that its mark is gone too.
    #[error("the record has been dead for longer than marks are kept")]
    Expired,
    /// The registry is full.
    #[error("{max} coordinators are registered, the limit (coordinators_max)")]
    Coordinators {
        /// The limit.
        max: usize,
    },
    /// The registry is full.
    #[error("{max} workers are registered, the limit (workers_max)")]
    Workers {
        /// The limit.
        max: usize,
    },
    /// The sponsor has too many.
    #[error("{max} workers have {sponsor:?} as their home, the limit (workers_per_sponsor_max)")]
    WorkersOfSponsor {
        /// Their home.
        sponsor: NodeId,
        /// The limit.
        max: usize,
    },
    /// Too many without a sponsor.
    #[error("{max} workers have no known home, the limit (workers_without_sponsor_max)")]
    WorkersWithoutSponsor {
        /// The limit.
        max: usize,
    },
    /// Too many from one place.
    #[error("{max} nodes came in from {prefix}, the limit (nodes_per_prefix_max)")]
    Prefix {
        /// From where.
        prefix: SourcePrefix,
        /// The limit.
        max: usize,
    },
    /// All together say too much, and this one has its share of it.
    #[error(
        "{writer:?} has its share of all that may be said beside what nodes are, {share} records (extra_records_max)"
    )]
    Share {
        /// Who.
        writer: NodeId,
        /// How many records that is.
        share: usize,
    },
    /// The writer says too much.
    #[error("{writer:?} has {max} {what}, the limit")]
    PerWriter {
        /// Who.
        writer: NodeId,
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

/// What a writer counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Class {
    /// It has no record here.
    #[default]
    None,
    /// It has a lease, speaks for others, or says that it coordinates.
    Coordinator,
    /// Any other that has not lapsed.
    Worker { sponsor: Option<NodeId> },
    /// It has lapsed or left: what is here of it are marks, until then.
    Mark { sponsor: Option<NodeId>, until: Time },
}

/// What `writer` counts as, with `more` in addition to what it has said. Its sponsor is only the one that it names.
pub(super) fn speaks_as(writer: Option<&Writer>, more: Option<&Record>) -> Class {
    let says = |kind| writer.is_some_and(|writer| writer.count(kind) > 0);
    let more_kind = more.map(|record| record.body.kind());
    let for_others =
        [Kind::LEASE, Kind::ATTACHMENT, Kind::GUEST].into_iter().any(|kind| says(kind) || more_kind == Some(kind));
    let node: Option<&NodeRecord> =
        more.and_then(Record::node).or_else(|| writer.and_then(Writer::node).map(|(_, node)| node));
    if for_others || node.is_some_and(|node| node.roles.coordinates()) {
        return Class::Coordinator;
    }
    Class::Worker { sponsor: node.and_then(|node| node.home).map(|home| home.coordinator) }
}

/// Whether a record is beside what every node says of itself.
pub(super) fn is_extra(kind: Kind) -> bool {
    !matches!(kind, Kind::NODE | Kind::LEASE | Kind::LEAVE)
}

/// What each may have of the records beside that, once all together have as many as there may be: a coordinator a part of them, anybody else
/// one, since only coordinators speak for others.
pub(super) fn share(limits: &Limits, kind: Kind) -> usize {
    let of_a_coordinator = (limits.extra_records_max / limits.coordinators_max.max(1)).max(1);
    if kind.is_known() { of_a_coordinator } else { 1 }
}

/// What has been used.
#[derive(Debug, Clone, Default)]
pub(super) struct Quotas {
    extra: usize,
    /// By id, so that nobody has to look for them among the workers.
    coordinators: BTreeSet<NodeId>,
    workers: usize,
    sponsored: BTreeMap<Option<NodeId>, usize>,
    prefixes: BTreeMap<SourcePrefix, usize>,
    marks: BTreeMap<Option<NodeId>, BTreeSet<(Time, NodeId)>>,
    marks_total: usize,
}

impl Quotas {
    pub(super) fn coordinators(&self) -> &BTreeSet<NodeId> {
        &self.coordinators
    }

    /// A record beside what nodes say of themselves has come.
    pub(super) fn add_extra(&mut self) {
        self.extra += 1;
    }

    /// One of them has gone.
    pub(super) fn remove_extra(&mut self) {
        self.extra = self.extra.saturating_sub(1);
    }

    /// Whether there are as many of them as there may be.
    pub(super) fn extra_is_full(&self, limits: &Limits) -> bool {
        self.extra >= limits.extra_records_max
    }

    /// Those that are marks and have no sponsor, the last one to be forgotten first.
    pub(super) fn last_marks_without_sponsor(&self) -> impl Iterator<Item = &NodeId> {
        self.marks.get(&None).into_iter().flat_map(|marks| marks.iter().rev().map(|(_, id)| id))
    }

    /// Whether a writer may go from one class to another.
    pub(super) fn check(&self, limits: &Limits, from: Class, to: Class) -> Result<(), Refused> {
        match to {
            Class::Coordinator if from != to && self.coordinators.len() >= limits.coordinators_max => {
                Err(Refused::Coordinators { max: limits.coordinators_max })
            }
            Class::Worker { sponsor } if from != to => {
                if !matches!(from, Class::Worker { .. }) && self.workers >= limits.workers_max {
                    return Err(Refused::Workers { max: limits.workers_max });
                }
                let used = self.sponsored.get(&sponsor).copied().unwrap_or(0);
                match sponsor {
                    Some(sponsor) if used >= limits.workers_per_sponsor_max => {
                        Err(Refused::WorkersOfSponsor { sponsor, max: limits.workers_per_sponsor_max })
                    }
                    None if used >= limits.workers_without_sponsor_max => {
                        Err(Refused::WorkersWithoutSponsor { max: limits.workers_without_sponsor_max })
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether one more may come in from there.
    pub(super) fn check_prefix(&self, limits: &Limits, prefix: SourcePrefix) -> Result<(), Refused> {
        let max = limits.nodes_per_prefix_max;
        if self.prefixes.get(&prefix).is_some_and(|&used| used >= max) {
            return Err(Refused::Prefix { prefix, max });
        }
        Ok(())
    }

    pub(super) fn add_prefix(&mut self, prefix: SourcePrefix) {
        *self.prefixes.entry(prefix).or_default() += 1;
    }

    pub(super) fn remove_prefix(&mut self, prefix: SourcePrefix) {
        subtract(&mut self.prefixes, prefix);
    }

    /// Moves a writer from one class to another.
    pub(super) fn change(&mut self, id: NodeId, from: Class, to: Class) {
        if from == to {
            return;
        }
        match from {
            Class::None => {}
            Class::Coordinator => _ = self.coordinators.remove(&id),
            Class::Worker { sponsor } => {
                self.workers -= 1;
                subtract(&mut self.sponsored, sponsor);
            }
            Class::Mark { sponsor, until } => {
                let marks = self.marks.entry(sponsor).or_default();
                self.marks_total -= usize::from(marks.remove(&(until, id)));
                if marks.is_empty() {
                    self.marks.remove(&sponsor);
                }
            }
        }
        match to {
            Class::None => {}
            Class::Coordinator => _ = self.coordinators.insert(id),
            Class::Worker { sponsor } => {
                self.workers += 1;
                *self.sponsored.entry(sponsor).or_default() += 1;
            }
            Class::Mark { sponsor, until } => {
                self.marks_total += usize::from(self.marks.entry(sponsor).or_default().insert((until, id)));
            }
        }
    }

    /// A mark that must go: the oldest of this sponsor, if it has too many, or, if all together are too many, the oldest of
    /// the sponsor that has most: whoever floods loses its own.
    pub(super) fn surplus_mark(&self, limits: &Limits, sponsor: Option<NodeId>) -> Option<NodeId> {
        let oldest = |marks: &BTreeSet<(Time, NodeId)>| marks.first().map(|&(_, id)| id);
        // Those without a sponsor are bounded only by what all may have together.
        if sponsor.is_some()
            && let Some(marks) = self.marks.get(&sponsor)
            && marks.len() > limits.marks_per_sponsor_max
        {
            return oldest(marks);
        }
        if self.marks_total <= limits.marks_max {
            return None;
        }
        self.marks.values().max_by_key(|marks| marks.len()).and_then(oldest)
    }
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}
