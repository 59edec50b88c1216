//! Who can be asked for what, as one entry sees it: from the nodes that have a tunnel there and the joined registry to the
//! services of each, with the way to it.
//!
//! | way | when |
//! |---|---|
//! | [`Way::Tunnel`] | the node has a tunnel here and does not leave: its own freshest word counts, not the registry's |
//! | [`Way::ViaCoordinator`] | it has none, its home holds it, and the home has a tunnel here and does not leave |
//! | a URL | a guest, without a key of ours: [`guest_fault`], and the entry's own probe |
//!
//! Pure. Which of those that can be asked is asked is [`crate::attempts`]'s to say; who of them may answer for a bare name is
//! [`crate::route::ServicePolicy`]'s.

use crate::id::NodeId;
use crate::members::{Member, Members};
use crate::record::{GuestStatus, NodeRecord, ServiceHealth, ServiceOffer};
use crate::registry::{GuestView, Presence, Reach, Registry};

/// What a node is to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It has a tunnel here.
    Up,
    /// It has one, and has said that it leaves.
    Leaving,
    /// It has none, and its home has one: requests take that way.
    AtHome,
    /// It has none, and may come back.
    Away,
}

/// How requests reach a node.
#[derive(Debug)]
pub enum Way<'a, C, S> {
    /// Down its own tunnel: over one of the connections of this member.
    Tunnel(&'a Member<C, S>),
    /// Down the tunnel of its home, which passes them on.
    ViaCoordinator {
        /// The home.
        home: NodeId,
        /// The first connection of the home's tunnel.
        tunnel: &'a C,
    },
}

impl<C, S> Clone for Way<'_, C, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C, S> Copy for Way<'_, C, S> {}

/// One node, as an entry sees it.
#[derive(Debug)]
pub struct Seen<'a, C, S> {
    /// The node.
    pub id: NodeId,
    /// What it says of itself.
    pub record: &'a NodeRecord,
    /// What it is here.
    pub state: NodeState,
    /// How requests reach it, if they do.
    pub way: Option<Way<'a, C, S>>,
}

impl<'a, C, S> Seen<'a, C, S> {
    /// What it can be asked for. What a node's own probe has found to be down is left out.
    pub fn offers(&self) -> impl Iterator<Item = &'a ServiceOffer> + use<'a, C, S> {
        let reached = self.way.is_some();
        self.record.services.iter().filter(move |offer| reached && offer.health == ServiceHealth::Up)
    }
}

/// Every node that has a tunnel here, and every one that the registry shows; each once, both in order of id.
pub fn nodes<'a, C, S: Ord + Copy>(
    members: &'a Members<C, S>,
    registry: &'a Registry,
) -> impl Iterator<Item = Seen<'a, C, S>> {
    let here = members.iter().map(|(id, member)| Seen {
        id: *id,
        record: &member.record,
        state: if member.leaving { NodeState::Leaving } else { NodeState::Up },
        way: (!member.leaving).then_some(Way::Tunnel(member)),
    });
    let others = registry.nodes().filter(|record| members.node(&record.writer).is_none());
    let others = others.filter_map(|record| {
        let (id, record) = (record.writer, record.node()?);
        let home = home_here(members, registry, &id);
        let state = if home.is_some() { NodeState::AtHome } else { NodeState::Away };
        // What is no worker offers nothing down here, whatever its record says of a home.
        Some(Seen { id, record, state, way: home.filter(|_| record.roles.works()) })
    });
    here.chain(others)
}

/// By way of a worker's home, if that holds it and takes requests.
fn home_here<'a, C, S: Ord + Copy>(
    members: &'a Members<C, S>,
    registry: &Registry,
    worker: &NodeId,
) -> Option<Way<'a, C, S>> {
    let Reach::ViaHome(home) = registry.reach(worker) else { return None };
    let member = members.node(&home).filter(|member| !member.leaving)?;
    member.lanes().next().map(|lane| Way::ViaCoordinator { home, tunnel: &lane.connection })
}

/// Why a guest gets no requests, whatever its URL answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestFault {
    /// The coordinator that speaks for it is not there.
    CoordinatorAway,
    /// That one says that it is not well, or that its heartbeats are overdue.
    Degraded,
}

/// What speaks against asking a guest, as the registry shows it.
pub fn guest_fault(view: &GuestView<'_>) -> Option<GuestFault> {
    if view.presence != Presence::Here {
        return Some(GuestFault::CoordinatorAway);
    }
    (view.guest.details.status != GuestStatus::Healthy).then_some(GuestFault::Degraded)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::clock::Time;
    use crate::members::{Arrival, Lane, MemberLimits};
    use crate::record::{AttachmentState, Body, Roles, Signed};
    use crate::registry::tests::{
        at, attachment, coordinator, guest, id, insert, lease, node, registry, say, worker_of,
    };

    const LIMITS: MemberLimits = MemberLimits { nodes_max: 10, nodes_per_source_max: 10, lanes_max: 2 };

    struct Entry {
        members: Members<&'static str, u8>,
        registry: Registry,
        now: Time,
        seq: u64,
    }

    impl Entry {
        fn new() -> Self {
            Self { members: Members::new(LIMITS), registry: registry(), now: at(Duration::ZERO), seq: 0 }
        }

        fn says(&mut self, n: u8, body: &Body) -> Signed {
            self.seq += 1;
            let signed = say(n, 1, self.seq, body);
            insert(&mut self.registry, self.now, &signed);
            signed
        }

        /// A tunnel comes up.
        fn dials(&mut self, n: u8, body: &Body, connection: &'static str) {
            let signed = self.says(n, body);
            let record = signed.record().clone();
            let arrival = Arrival { node: id(n), incarnation: 1, version: record.version, lane: 0, source: None };
            let lane = Lane { id: self.seq, shard: 0, connection };
            self.members.join(&arrival, lane, signed, record.node().unwrap().clone()).unwrap();
            self.registry.meet(self.now, id(n));
        }

        /// Each node by its number: what it is, how it is reached, and what it can be asked for.
        fn sees(&self) -> BTreeMap<u8, (NodeState, Option<&'static str>, usize)> {
            let number = |node: &NodeId| (0..=255).find(|n| id(*n) == *node).unwrap();
            let seen = nodes(&self.members, &self.registry).map(|seen| {
                let way = seen.way.map(|way| match way {
                    Way::Tunnel(member) => member.lanes().next().unwrap().connection,
                    Way::ViaCoordinator { tunnel, .. } => *tunnel,
                });
                (number(&seen.id), (seen.state, way, seen.offers().count()))
            });
            seen.collect()
        }
    }

    #[test]
    fn a_worker_is_asked_down_its_own_tunnel_else_by_way_of_its_home_while_that_holds_it() {
        let mut entry = Entry::new();
        entry.dials(0, &coordinator(), "home");
        entry.says(0, &lease());
        entry.says(5, &worker_of(0, 3));
        assert_eq!(entry.sees()[&5], (NodeState::Away, None, 0), "nobody has said that it is there");
        entry.says(0, &attachment(5, 2, AttachmentState::Attached));
        assert_eq!(entry.sees()[&5], (NodeState::Away, None, 0), "at an earlier move");
        entry.says(0, &attachment(5, 3, AttachmentState::Attached));
        assert_eq!(entry.sees()[&5], (NodeState::AtHome, Some("home"), 1));
        entry.dials(5, &worker_of(0, 3), "its own");
        assert_eq!(entry.sees()[&5], (NodeState::Up, Some("its own"), 1));
        assert_eq!(entry.sees()[&0], (NodeState::Up, Some("home"), 0));
        assert_eq!(entry.sees().len(), 2, "each once");
    }

    #[test]
    fn who_leaves_gets_nothing_new_and_neither_do_those_whom_it_holds() {
        let mut entry = Entry::new();
        entry.dials(0, &coordinator(), "home");
        entry.says(5, &worker_of(0, 3));
        entry.says(0, &attachment(5, 3, AttachmentState::Attached));
        entry.dials(6, &node(Roles::Worker, None), "its own");
        assert_eq!(entry.sees()[&5], (NodeState::AtHome, Some("home"), 1));
        assert!(entry.members.leave(&id(0), 1) && entry.members.leave(&id(6), 1));
        assert_eq!(entry.sees()[&5], (NodeState::Away, None, 0));
        assert_eq!(entry.sees()[&6], (NodeState::Leaving, None, 0));
    }

    #[test]
    fn a_service_that_is_down_is_known_and_not_asked() {
        let mut entry = Entry::new();
        let Body::Node(mut record) = node(Roles::Worker, None) else { unreachable!() };
        record.services[0].health = ServiceHealth::Down;
        entry.dials(5, &Body::Node(record), "its own");
        assert_eq!(entry.sees()[&5], (NodeState::Up, Some("its own"), 0));
    }

    #[test]
    fn a_guest_is_asked_while_it_is_well_and_its_coordinator_is_there() {
        let mut entry = Entry::new();
        entry.says(0, &coordinator());
        entry.says(0, &lease());
        entry.says(0, &guest("a", GuestStatus::Healthy));
        entry.says(0, &guest("b", GuestStatus::Degraded));
        let fault = |entry: &Entry, id: &str| guest_fault(&entry.registry.guest(id).unwrap());
        assert_eq!(fault(&entry, "a"), Some(GuestFault::CoordinatorAway), "its lease may be old news");
        entry.registry.meet(entry.now, id(0));
        assert_eq!((fault(&entry, "a"), fault(&entry, "b")), (None, Some(GuestFault::Degraded)));
    }
}
