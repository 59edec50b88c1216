//! A coordinator's connections to others: what the peering says is done, and the gossip between them.
//!
//! Gossip is modelled after gossipsub (Vyzovitis et al., "GossipSub: attack-resilient message propagation", 2020): a publisher
//! sends to all that it is connected to, and whoever takes a message forwards it to a few, once. What that loses stays lost; the
//! lazy part (IHAVE, IWANT) is left out, since the synchronisation makes up for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::peer::{self, PeerResponse};
use hedgerow_proto::peering::{Acceptance, Event, Part, Peering, Replication, Reply, RequestId};
use hedgerow_proto::replica::Core;

use crate::context::Context;
use crate::malice::Mouth;
use crate::message::{Link, Message};
use crate::net::ConnectionId;
use crate::settings::Settings;

/// To how many others a message is forwarded: gossipsub's D, as the hosts set it.
const FORWARDED_TO: usize = 4;
/// For how long a message is known again when it comes once more.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Mesh {
    me: NodeId,
    peering: Peering,
    of_node: BTreeMap<NodeId, Vec<ConnectionId>>,
    of_connection: BTreeMap<ConnectionId, NodeId>,
    dialling: BTreeMap<u32, NodeId>,
    asked: BTreeMap<u64, (RequestId, ConnectionId)>,
    next: u64,
    blocked: BTreeSet<NodeId>,
    heard: BTreeSet<u64>,
    heard_in_order: VecDeque<(Time, u64)>,
    random: fastrand::Rng,
}

impl Mesh {
    pub(crate) fn new(now: Time, me: NodeId, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            me,
            peering: Peering::new(now, me, Replication::Both, random.u64(..)),
            of_node: BTreeMap::new(),
            of_connection: BTreeMap::new(),
            dialling: BTreeMap::new(),
            asked: BTreeMap::new(),
            next: 0,
            blocked: BTreeSet::new(),
            heard: BTreeSet::new(),
            heard_in_order: VecDeque::new(),
            random,
        }
    }

    pub(crate) fn poll_timeout(&self) -> Time {
        self.peering.poll_timeout().0
    }

    /// Connections to others, one each.
    pub(crate) fn connections(&self) -> Vec<ConnectionId> {
        self.of_node.values().filter_map(|connections| connections.first()).copied().collect()
    }

    pub(crate) fn handle_timeout(&mut self, ctx: &mut Context<'_>, core: &mut Core) {
        let now = ctx.now();
        while self.heard_in_order.front().is_some_and(|(at, _)| now.since(*at) > REMEMBERED_FOR) {
            if let Some((_, id)) = self.heard_in_order.pop_front() {
                self.heard.remove(&id);
            }
        }
        if self.poll_timeout() <= now {
            self.peering.handle_timeout(now, core);
            self.drain(ctx, core);
        }
    }

    /// Something that others should know soon.
    pub(crate) fn publish(&mut self, ctx: &mut Context<'_>, core: &mut Core, bytes: Bytes) {
        self.peering.hurry(bytes);
        self.drain(ctx, core);
    }

    /// It coordinates no longer.
    pub(crate) fn end(&mut self, ctx: &mut Context<'_>, core: &mut Core) {
        self.peering.stop(ctx.now(), core);
        for connection in std::mem::take(&mut self.of_connection).into_keys() {
            ctx.close(connection);
        }
    }

    pub(crate) fn connected(&mut self, ctx: &mut Context<'_>, core: &mut Core, connection: ConnectionId, peer: u32) {
        let node = ctx.book.id(peer);
        self.dialling.remove(&peer);
        if self.blocked.contains(&node) || node == self.me {
            return ctx.close(connection);
        }
        self.of_connection.insert(connection, node);
        self.of_node.entry(node).or_default().push(connection);
        self.peering.connected(ctx.now(), core, node, Part::Coordinator);
        self.drain(ctx, core);
    }

    pub(crate) fn dial_failed(&mut self, ctx: &mut Context<'_>, core: &mut Core, peer: u32) {
        if let Some(node) = self.dialling.remove(&peer) {
            self.peering.dial_failed(ctx.now(), node);
            self.drain(ctx, core);
        }
    }

    pub(crate) fn closed(&mut self, ctx: &mut Context<'_>, core: &mut Core, connection: ConnectionId) {
        self.forget(ctx, core, connection);
        self.drain(ctx, core);
    }

    fn forget(&mut self, ctx: &mut Context<'_>, core: &mut Core, connection: ConnectionId) {
        let Some(node) = self.of_connection.remove(&connection) else { return };
        let unanswered: Vec<u64> =
            self.asked.iter().filter(|(_, (_, over))| *over == connection).map(|(number, _)| *number).collect();
        for number in unanswered {
            if let Some((id, _)) = self.asked.remove(&number) {
                self.peering.unanswered(id);
            }
        }
        let Some(connections) = self.of_node.get_mut(&node) else { return };
        connections.retain(|other| *other != connection);
        if connections.is_empty() {
            self.of_node.remove(&node);
            self.peering.disconnected(ctx.now(), core, node);
        }
    }

    pub(crate) fn on_message(
        &mut self,
        ctx: &mut Context<'_>,
        core: &mut Core,
        connection: ConnectionId,
        message: Message,
    ) {
        let Some(from) = self.of_connection.get(&connection).copied() else { return };
        let now = ctx.now();
        match message {
            Message::Gossip { id, publisher, bytes } => self.gossip(ctx, core, from, (id, publisher), bytes),
            Message::Ask { id, bytes } => {
                let response = match peer::decode(&bytes) {
                    Ok(request) => match self.peering.requested(now, core, from, request) {
                        Reply::Now(response) => response,
                        // Agents of the existing contract are not part of this level.
                        Reply::Call(_) => PeerResponse::Refused,
                    },
                    Err(_) => {
                        self.peering.garbled(now, from);
                        PeerResponse::Refused
                    }
                };
                ctx.send(connection, Message::Answer { id, bytes: peer::encode(&response).into() });
            }
            Message::Answer { id, bytes } => {
                let Some((request, _)) = self.asked.remove(&id) else { return };
                match peer::decode(&bytes) {
                    Ok(response) => self.peering.answered(now, core, request, response),
                    Err(_) => {
                        self.peering.garbled(now, from);
                        self.peering.unanswered(request);
                    }
                }
            }
            _ => {}
        }
        self.drain(ctx, core);
    }

    fn gossip(
        &mut self,
        ctx: &mut Context<'_>,
        core: &mut Core,
        hop: NodeId,
        (id, publisher): (u64, NodeId),
        bytes: Bytes,
    ) {
        if !self.remember(ctx.now(), id) || publisher == self.me {
            return;
        }
        let accepted = self.peering.gossiped(ctx.now(), core, hop, publisher, bytes.clone());
        if accepted == Acceptance::Accept {
            let mut others: Vec<ConnectionId> = self
                .of_node
                .iter()
                .filter(|(node, _)| **node != hop && **node != publisher)
                .filter_map(|(_, connections)| connections.first().copied())
                .collect();
            self.random.shuffle(&mut others);
            for connection in others.into_iter().take(FORWARDED_TO) {
                ctx.send(connection, Message::Gossip { id, publisher, bytes: bytes.clone() });
            }
        }
    }

    /// Whether it has not been heard before.
    fn remember(&mut self, now: Time, id: u64) -> bool {
        let new = self.heard.insert(id);
        if new {
            self.heard_in_order.push_back((now, id));
        }
        new
    }

    /// Does what the peering says, until it says nothing more.
    fn drain(&mut self, ctx: &mut Context<'_>, core: &mut Core) {
        while let Some(event) = self.peering.poll_event() {
            let now = ctx.now();
            match event {
                Event::Dial { node, addresses } => match addresses.iter().find_map(|text| Settings::node_at(text)) {
                    Some(index) if index != ctx.me => {
                        self.dialling.insert(index, node);
                        ctx.dial(index, Link::Mesh);
                    }
                    _ => self.peering.dial_failed(now, node),
                },
                Event::Request { id, to, request } => {
                    match self.of_node.get(&to).and_then(|connections| connections.first()).copied() {
                        Some(connection) => {
                            self.next += 1;
                            self.asked.insert(self.next, (id, connection));
                            ctx.send(connection, Message::Ask { id: self.next, bytes: peer::encode(&request).into() });
                        }
                        None => self.peering.unanswered(id),
                    }
                }
                Event::Publish(bytes) => {
                    let (id, publisher) = (self.random.u64(..), self.me);
                    self.remember(now, id);
                    for connection in self.connections() {
                        ctx.send(connection, Message::Gossip { id, publisher, bytes: bytes.clone() });
                    }
                }
                Event::Block(node) => {
                    self.blocked.insert(node);
                    for connection in self.of_node.get(&node).cloned().unwrap_or_default() {
                        ctx.close(connection);
                        self.forget(ctx, core, connection);
                    }
                }
                Event::Unblock(node) => _ = self.blocked.remove(&node),
                Event::SynchronisationEnded(_) | Event::Concluded(..) | Event::Complaint(..) => {}
            }
        }
    }
}

/// The way to others of a coordinator that keeps no rule.
pub(crate) struct Tongue<'a, 'b> {
    pub(crate) ctx: &'a mut Context<'b>,
    pub(crate) mesh: &'a Mesh,
}

impl Mouth for Tongue<'_, '_> {
    fn gossip(&mut self, random: &mut fastrand::Rng, bytes: Bytes) {
        let (id, publisher) = (random.u64(..), self.mesh.me);
        for connection in self.mesh.connections() {
            self.ctx.send(connection, Message::Gossip { id, publisher, bytes: bytes.clone() });
        }
    }

    fn ask(&mut self, random: &mut fastrand::Rng, bytes: Bytes) {
        let id = random.u64(..);
        if let Some(connection) = random.choice(self.mesh.connections()) {
            self.ctx.send(connection, Message::Ask { id, bytes });
        }
    }
}
