//! What the registry shows: whoever has not lapsed, in order of id.

use super::Registry;
use super::writer::Writer;
use crate::clock::Time;
use crate::id::NodeId;
use crate::record::{Body, Guest, GuestStatus, Kind, NodeRecord, Record, Signed};

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Presence {
    /// No tunnel, no lease that runs.
    #[default]
    Absent,
    /// A lease runs that may be old news: worth dialling, not worth sending requests.
    Provisional,
    /// A tunnel is up, or a lease runs that has been seen to advance.
    Here,
}

/// A coordinator that may be there.
#[derive(Debug, Clone, Copy)]
pub struct Coordinator<'a> {
    /// What it said of itself, as it signed it.
    pub signed: &'a Signed,
    /// The same, read.
    pub record: &'a Record,
    /// What it says of itself.
    pub node: &'a NodeRecord,
    /// [`Presence::Here`] or [`Presence::Provisional`].
    pub presence: Presence,
}

/// The way to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A tunnel of its own is up.
    Tunnel,
    /// Its home is there, and holds it.
    ViaHome(NodeId),
    /// There is none for now.
    None,
}

/// A worker that has not lapsed.
#[derive(Debug, Clone, Copy)]
pub struct Worker<'a> {
    /// What it said of itself, as it signed it.
    pub signed: &'a Signed,
    /// The same, read.
    pub record: &'a Record,
    /// What it says of itself.
    pub node: &'a NodeRecord,
    /// The way to it: it is routable if there is one.
    pub reach: Reach,
}

/// An agent without a key of ours.
#[derive(Debug, Clone, Copy)]
pub struct GuestView<'a> {
    /// The coordinator that speaks for it.
    pub coordinator: NodeId,
    /// Whether that one is there.
    pub presence: Presence,
    /// What it says of the agent.
    pub guest: &'a Guest,
}

impl Registry {
    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Record> {
        self.shown().filter_map(|(_, writer)| Some(writer.node()?.0))
    }

    /// One node.
    pub fn node(&self, id: &NodeId) -> Option<&Record> {
        Some(self.writers.get(id).filter(|writer| !writer.lapsed)?.node()?.0)
    }

    /// What a node said of itself, as it signed it.
    pub fn signed_node(&self, id: &NodeId) -> Option<&Signed> {
        self.node(id)?;
        Some(&self.writers.get(id)?.entry(Kind::NODE, &[])?.signed)
    }

    /// All that a node has said, as it signed it.
    pub fn records_of(&self, id: &NodeId) -> impl Iterator<Item = &Signed> {
        self.writers.get(id).into_iter().flat_map(|writer| writer.entries.iter()).map(|entry| &entry.signed)
    }

    /// The coordinators that may be there.
    pub fn coordinators(&self) -> impl Iterator<Item = Coordinator<'_>> {
        self.coordinating().filter_map(|writer| {
            let presence = writer.presence();
            let (record, node) = writer.node()?;
            let signed = &writer.entry(Kind::NODE, &[])?.signed;
            let there = node.roles.coordinates() && presence != Presence::Absent;
            there.then_some(Coordinator { signed, record, node, presence })
        })
    }

    /// What the nodes said of themselves that say that they coordinate, whether or not they are there.
    pub fn coordinator_nodes(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        let nodes = self.coordinating().filter_map(Writer::node);
        nodes.filter(|(_, node)| node.roles.coordinates()).map(|(record, node)| (record.writer, node))
    }

    /// What those said of themselves that coordinated, could be dialled, and have lapsed without a word: for as long as their marks are kept
    /// they may only be out of reach. The last ones only, as many as there may be coordinators.
    pub fn lapsed_coordinators(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        let marks = self.quotas.last_marks_without_sponsor().take(self.limits.coordinators_max);
        let lapsed =
            marks.filter_map(|id| self.writers.get(id)).filter(|writer| writer.lapsed && writer.left().is_none());
        let nodes = lapsed.filter_map(|writer| writer.node());
        let worth_dialling = |node: &NodeRecord| node.roles.coordinates() && !node.multiaddrs.is_empty();
        nodes.filter(move |(_, node)| worth_dialling(node)).map(|(record, node)| (record.writer, node))
    }

    /// How many coordinators there are that have not lapsed: what a lease's time to live depends on.
    pub fn coordinators_known(&self) -> usize {
        self.quotas.coordinators().len()
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = Worker<'_>> {
        self.shown().filter_map(|(id, writer)| {
            let (record, node) = writer.node()?;
            let signed = &writer.entry(Kind::NODE, &[])?.signed;
            node.roles.works().then(|| Worker { signed, record, node, reach: self.reach(id) })
        })
    }

    /// The way to a node: its own tunnel first.
    pub fn reach(&self, id: &NodeId) -> Reach {
        match self.writers.get(id) {
            Some(writer) if writer.met > 0 => Reach::Tunnel,
            _ => match self.home_holds(id) {
                Some((home, Presence::Here)) => Reach::ViaHome(home),
                _ => Reach::None,
            },
        }
    }

    /// Whether a node is there, as its tunnel and its lease say.
    pub fn presence(&self, id: &NodeId) -> Presence {
        self.writers.get(id).map_or(Presence::Absent, |writer| writer.presence())
    }

    /// The guests that have not gone, of coordinators that may be there. One that calls itself by the id of a node
    /// that is here is not shown: it speaks for itself.
    pub fn guests(&self) -> impl Iterator<Item = GuestView<'_>> {
        self.guest_claims().filter(|view| view.presence != Presence::Absent)
    }

    /// What every coordinator that has not lapsed says of guests that have not gone: as [`Registry::guests`], and what
    /// those say who are away. A guest can be named by several of them.
    pub fn guest_claims(&self) -> impl Iterator<Item = GuestView<'_>> {
        self.shown().flat_map(move |(id, writer)| {
            let presence = writer.presence();
            let guests = writer.guests().filter(move |guest| !self.shadows(guest));
            guests.map(move |guest| GuestView { coordinator: *id, presence, guest })
        })
    }

    /// Those of [`Registry::guest_claims`] that are about one guest.
    pub fn claims_of<'a>(&'a self, worker_id: &str) -> impl Iterator<Item = GuestView<'a>> + use<'a> {
        // Few speak for guests: the others are passed over without a look at what they said.
        let speakers = self.shown().filter(|(_, writer)| writer.count(Kind::GUEST) > 0);
        let subject = worker_id.as_bytes().to_vec();
        speakers.filter_map(move |(id, writer)| {
            let guest = standing_guest(writer.entry(Kind::GUEST, &subject)?.record())?;
            let view = GuestView { coordinator: *id, presence: writer.presence(), guest };
            (!self.shadows(guest)).then_some(view)
        })
    }

    /// What coordinators that have not lapsed said last of a guest of which they say that it has gone.
    pub fn gone_guests<'a>(&'a self, worker_id: &str) -> impl Iterator<Item = &'a Guest> + use<'a> {
        let subject = worker_id.as_bytes().to_vec();
        self.coordinating().filter_map(move |writer| match &writer.entry(Kind::GUEST, &subject)?.record().body {
            Body::Guest(guest) if guest.details.status == GuestStatus::Gone => Some(guest),
            _ => None,
        })
    }

    /// The guests that have not gone for which one coordinator speaks, also while it is away or has lapsed.
    pub fn guests_of(&self, coordinator: &NodeId) -> impl Iterator<Item = &Guest> {
        self.writers.get(coordinator).into_iter().flat_map(|writer| writer.guests())
    }

    /// The guest of this id. If several coordinators speak for it, one that is there, and of those the one with the
    /// smallest id, so that everybody says the same.
    pub fn guest(&self, worker_id: &str) -> Option<GuestView<'_>> {
        self.claims_of(worker_id)
            .filter(|view| view.presence != Presence::Absent)
            .max_by_key(|view| (view.presence, std::cmp::Reverse(view.coordinator)))
    }

    /// All that coordinators have said of the agent of this id, as they signed it, with the ages.
    pub fn guest_records(&self, now: Time, worker_id: &str) -> impl Iterator<Item = (&Signed, std::time::Duration)> {
        let subject = worker_id.as_bytes();
        self.writers.values().filter_map(move |writer| {
            let entry = writer.entry(Kind::GUEST, subject)?;
            Some((&entry.signed, self.age_of(now, writer, entry)))
        })
    }

    /// How often a writer has said two different things in one place, of late, in thousandths: one time counts a
    /// thousand, and half of that after ten minutes.
    pub fn contradictions(&self, now: Time, id: &NodeId) -> u32 {
        let conflicts = self.writers.get(id).and_then(|writer| writer.conflicts.as_deref());
        conflicts.map_or(0, |conflicts| conflicts.thousandths(now))
    }

    fn shadows(&self, guest: &Guest) -> bool {
        guest.worker_id.parse().is_ok_and(|id| self.node(&id).is_some())
    }

    /// Those that count as coordinators: none of them has lapsed.
    fn coordinating(&self) -> impl Iterator<Item = &Writer> {
        self.quotas.coordinators().iter().filter_map(|id| Some(&**self.writers.get(id)?))
    }

    fn shown(&self) -> impl Iterator<Item = (&NodeId, &Writer)> {
        self.writers.iter().map(|(id, writer)| (id, &**writer)).filter(|(_, writer)| !writer.lapsed)
    }
}

impl Writer {
    /// The guests that have not gone for which it speaks.
    fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.entries.of_kind(Kind::GUEST).iter().filter_map(|entry| standing_guest(entry.record()))
    }
}

/// The guest that a record is about, unless the record is its tombstone.
fn standing_guest(record: &Record) -> Option<&Guest> {
    match &record.body {
        Body::Guest(guest) if guest.details.status != GuestStatus::Gone => Some(guest),
        _ => None,
    }
}
