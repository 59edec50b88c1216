//! The simulated network: connections with their two directions, what is under way, what a cut holds back, and who finds out
//! when somebody is gone. Everything that will happen is on one schedule.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_sim_model::links::{Direction, Links};
use hedgerow_sim_model::plan::Effect;
use hedgerow_sim_model::schedule::Schedule;
use hedgerow_sim_model::trace::Trace;

use crate::message::{Link, Message, RequestNumber, Sort};

/// A dial that finds nobody who answers.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// What it takes to say that a connection ends.
const CLOSED_BYTES: usize = 40;

/// A connection, by a number that is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(u64);

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    node: u32,
    run: u32,
    /// It does not listen any more.
    closed: bool,
}

#[derive(Debug)]
struct Connection {
    link: Link,
    /// First who dialled.
    ends: [End; 2],
    directions: [Direction; 2],
    /// What came to a cut, in order, with the end that it goes to.
    held: [VecDeque<Item>; 2],
    cut_since: Option<Duration>,
}

/// What travels in a direction of a connection.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Message(Message),
    Closed,
}

/// What a node is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// Its process begins.
    Start,
    /// A connection has come up.
    Connected { connection: ConnectionId, peer: u32, link: Link, dialled: bool },
    /// One that was dialled did not.
    DialFailed { peer: u32, link: Link },
    /// A connection is gone.
    Closed { connection: ConnectionId },
    /// Something came in.
    Message { connection: ConnectionId, message: Message },
    /// It is time, as the node asked.
    Timeout,
    /// A service is done with a request: with the beginning of its answer, and then with all of it.
    Served { request: RequestNumber, attempt: u32, whole: bool },
    /// A request has stood in line for long enough.
    LineOver { request: RequestNumber, attempt: u32 },
    /// A client asks an entry.
    Request(RequestNumber),
    /// That client does not wait any longer.
    Impatient(RequestNumber),
    /// It is told to leave.
    Leave,
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A node is told something, if its process is still the same.
    Tell { node: u32, run: u32, input: Input },
    /// A node deals with what it was told, having had no time for it before.
    Do { node: u32, run: u32, input: Input },
    /// A dial has got there.
    Dialled { from: u32, run: u32, to: u32, link: Link },
    /// Something arrives at an end of a connection.
    Arrives { connection: ConnectionId, end: usize, item: Arrival },
    /// A node's timer.
    Wake { node: u32, run: u32, at: Duration },
    /// A fault begins.
    Begin(usize),
    /// A fault ends.
    End(usize),
    /// Connections that have been cut for too long are given up.
    CutCheck,
    /// Whoever waits for one that stands still gives it up.
    SilenceCheck { node: u32, run: u32, since: Duration },
    /// A process that could not start tries again.
    Restart { node: u32 },
    /// A worker joins, or any node for the first time.
    Join { node: u32 },
    /// A client asks.
    Request,
    /// A client has waited for long enough.
    Impatient(RequestNumber),
    /// How things stand is noted.
    Sample,
}

/// See [`Event::Arrives`].
#[derive(Debug)]
pub(crate) struct Arrival(Item);

/// Whether a node can be talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Up {
    /// Its process runs, in this run of it.
    Running(u32),
    /// It runs and stands still.
    Still(u32),
    /// It does not.
    Down,
}

/// What has been sent so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) gossip_bytes: u64,
    pub(crate) sync_bytes: u64,
}

/// The network.
pub(crate) struct Net {
    pub(crate) now: Duration,
    pub(crate) links: Links,
    pub(crate) trace: Trace,
    pub(crate) traffic: Traffic,
    /// Bytes that each node has sent.
    pub(crate) sent: Vec<u64>,
    schedule: Schedule<Event>,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: u64,
    /// The connections of each node.
    of_node: Vec<Vec<ConnectionId>>,
    up: Vec<Up>,
}

/// Something has come to a node: what the world hands on.
pub(crate) struct Told {
    pub(crate) node: u32,
    pub(crate) run: u32,
    pub(crate) input: Input,
}

impl Net {
    pub(crate) fn new(links: Links, nodes: u32) -> Self {
        Self {
            now: Duration::ZERO,
            links,
            trace: Trace::default(),
            traffic: Traffic::default(),
            sent: vec![0; nodes as usize],
            schedule: Schedule::default(),
            connections: BTreeMap::new(),
            next_connection: 0,
            of_node: vec![Vec::new(); nodes as usize],
            up: vec![Up::Down; nodes as usize],
        }
    }

    /// Says what will happen.
    pub(crate) fn schedule(&mut self, at: Duration, event: Event) {
        self.schedule.push(at.max(self.now), event);
    }

    /// What happens next; virtual time moves there. Nothing, once `until` is reached.
    pub(crate) fn next(&mut self, until: Duration) -> Option<Event> {
        match self.schedule.pop_until(until) {
            Some((at, event)) => {
                self.now = at;
                Some(event)
            }
            None => {
                self.now = self.now.max(until);
                None
            }
        }
    }

    pub(crate) fn up(&self, node: u32) -> Up {
        self.up.get(node as usize).copied().unwrap_or(Up::Down)
    }

    pub(crate) fn set_up(&mut self, node: u32, up: Up) {
        if let Some(slot) = self.up.get_mut(node as usize) {
            *slot = up;
        }
    }

    /// Each pair that has an open connection of this kind, once.
    pub(crate) fn pairs(&self, link: Link) -> Vec<(u32, u32)> {
        let open = self.connections.values().filter(|connection| connection.link == link && connection.is_open());
        let mut pairs: Vec<(u32, u32)> = open
            .map(|connection| {
                let [one, other] = connection.ends.map(|end| end.node);
                (one.min(other), one.max(other))
            })
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// A node wants a connection to another.
    pub(crate) fn dial(&mut self, from: u32, run: u32, to: u32, link: Link) {
        let round_trip = self.links.latency(from, to) * 2;
        let mut there = Direction::default();
        // A handshake takes a round trip and a half, and each packet may be lost.
        let arrives = self.links.arrival(self.now + round_trip, from, to, 200, &mut there);
        let too_late = self.now + DIAL_TIMEOUT;
        match arrives <= too_late {
            true => self.schedule(arrives, Event::Dialled { from, run, to, link }),
            // It was lost again and again.
            false => {
                let failed = Input::DialFailed { peer: to, link };
                self.schedule(too_late, Event::Tell { node: from, run, input: failed });
            }
        }
    }

    /// A dial has got there, or nowhere.
    pub(crate) fn dialled(&mut self, from: u32, run: u32, to: u32, link: Link) -> Vec<Told> {
        // One that stands still finds out when it goes on, and by then it is too late.
        let stands_still = match self.up(from) {
            Up::Running(at_from) if at_from == run => false,
            Up::Still(at_from) if at_from == run => true,
            _ => return Vec::new(),
        };
        let failed = Input::DialFailed { peer: to, link };
        let cut = self.links.is_cut(from, to) || self.links.is_cut(to, from);
        let at_to = match self.up(to) {
            Up::Running(at_to) if !cut && !stands_still && self.links.place(to).is_dialable() => at_to,
            Up::Down if !cut => return vec![Told { node: from, run, input: failed }],
            _ => {
                self.schedule(self.now + DIAL_TIMEOUT, Event::Tell { node: from, run, input: failed });
                return Vec::new();
            }
        };
        self.next_connection += 1;
        let id = ConnectionId(self.next_connection);
        let ends = [(from, run), (to, at_to)].map(|(node, run)| End { node, run, closed: false });
        let directions = [Direction::default(); 2];
        let connection = Connection { link, ends, directions, held: Default::default(), cut_since: None };
        self.connections.insert(id, connection);
        for node in [from, to] {
            if let Some(of_node) = self.of_node.get_mut(node as usize) {
                of_node.push(id);
            }
        }
        self.trace.event(self.now, from, to, 40 + link as u8, &[]);
        let told = |node, run, peer, dialled| Told {
            node,
            run,
            input: Input::Connected { connection: id, peer, link, dialled },
        };
        vec![told(to, at_to, from, false), told(from, run, to, true)]
    }

    /// Sends a message from one end of a connection, if it is still open there.
    pub(crate) fn send(&mut self, id: ConnectionId, from: u32, message: Message) {
        let Some((end, to)) = self.other_end(id, from) else { return };
        let bytes = message.len();
        self.traffic.messages += 1;
        self.traffic.bytes += bytes as u64;
        match message.sort() {
            Sort::Gossip => self.traffic.gossip_bytes += bytes as u64,
            Sort::Sync => self.traffic.sync_bytes += bytes as u64,
            Sort::Other => {}
        }
        if let Some(sent) = self.sent.get_mut(from as usize) {
            *sent += bytes as u64;
        }
        self.put(id, from, to, end, bytes, Item::Message(message));
    }

    /// Closes a connection from one end. The other one finds out when the news arrives.
    pub(crate) fn close(&mut self, id: ConnectionId, from: u32) {
        let Some((end, to)) = self.other_end(id, from) else { return };
        self.say_closed(id, from, to, end);
        self.end_closed(id, 1 - end);
    }

    /// The end opposite to this node's, if the node's own is open.
    fn other_end(&self, id: ConnectionId, from: u32) -> Option<(usize, u32)> {
        let connection = self.connections.get(&id)?;
        let mine = connection.ends.iter().position(|end| end.node == from && !end.closed)?;
        Some((1 - mine, connection.ends[1 - mine].node))
    }

    /// The news that this end's peer is gone. If it is lost again and again, and what was sent before it, nothing gets through any more:
    /// then the end that is left gives up by itself.
    fn say_closed(&mut self, id: ConnectionId, from: u32, to: u32, end: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let arrives = self.links.arrival(self.now, from, to, CLOSED_BYTES, &mut connection.directions[end]);
        self.schedule(arrives.min(self.now + self.links.gives_up_after()), closed(id, end));
    }

    fn put(&mut self, id: ConnectionId, from: u32, to: u32, end: usize, bytes: usize, item: Item) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let arrives = self.links.arrival(self.now, from, to, bytes, &mut connection.directions[end]);
        self.schedule(arrives, Event::Arrives { connection: id, end, item: Arrival(item) });
    }

    /// Something has come to the end of its way, unless that is cut.
    pub(crate) fn arrives(&mut self, id: ConnectionId, end: usize, Arrival(item): Arrival) -> Option<Told> {
        let connection = self.connections.get_mut(&id)?;
        let (from, to) = (connection.ends[1 - end].node, connection.ends[end].node);
        if connection.ends[end].closed {
            return None;
        }
        if self.links.is_cut(from, to) || !connection.held[end].is_empty() {
            connection.held[end].push_back(item);
            return None;
        }
        let run = connection.ends[end].run;
        match item {
            Item::Message(message) => {
                let (kind, bytes) = message.traced();
                self.trace.event(self.now, from, to, kind, &bytes);
                Some(Told { node: to, run, input: Input::Message { connection: id, message } })
            }
            Item::Closed => {
                self.trace.event(self.now, from, to, 50, &[]);
                self.end_closed(id, end);
                Some(Told { node: to, run, input: Input::Closed { connection: id } })
            }
        }
    }

    /// One end does not listen any more; with both of them the connection goes.
    fn end_closed(&mut self, id: ConnectionId, end: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.ends[end].closed = true;
        let node = connection.ends[end].node;
        if connection.ends.iter().all(|end| end.closed) {
            self.connections.remove(&id);
        }
        if let Some(of_node) = self.of_node.get_mut(node as usize) {
            of_node.retain(|other| *other != id);
        }
    }

    /// A process is gone. Its machine tells those that it was connected to, or (`silent`) does not.
    pub(crate) fn gone(&mut self, node: u32, silent: bool) {
        for id in self.of_node.get(node as usize).cloned().unwrap_or_default() {
            let Some((end, to)) = self.other_end(id, node) else { continue };
            if silent {
                let at = self.now + self.links.gives_up_after();
                self.schedule(at, closed(id, end));
            } else {
                self.say_closed(id, node, to, end);
            }
            self.end_closed(id, 1 - end);
        }
    }

    /// A node has stood still for as long as others wait: they give up what they have with it.
    pub(crate) fn given_up(&mut self, node: u32) -> Vec<Told> {
        let ids = self.of_node.get(node as usize).cloned().unwrap_or_default();
        ids.into_iter().flat_map(|id| self.break_off(id)).collect()
    }

    /// Both ends of a connection give it up.
    fn break_off(&mut self, id: ConnectionId) -> Vec<Told> {
        let Some(connection) = self.connections.get(&id) else { return Vec::new() };
        let [one, other] = connection.ends;
        self.trace.event(self.now, one.node, other.node, 51, &[]);
        let open = [0, 1].into_iter().filter(|end| !connection.ends[*end].closed).collect::<Vec<_>>();
        let told = open.iter().map(|end| {
            let End { node, run, .. } = connection.ends[*end];
            Told { node, run, input: Input::Closed { connection: id } }
        });
        let told = told.collect();
        for end in open {
            self.end_closed(id, end);
        }
        told
    }

    /// A fault of the network begins. False: it is none of the network's.
    pub(crate) fn begin(&mut self, incident: u64, effect: &Effect) -> bool {
        let is_ours = self.links.begin(incident, effect);
        if is_ours {
            self.look_at_cuts();
        }
        is_ours
    }

    /// And ends.
    pub(crate) fn end(&mut self, incident: u64) {
        self.links.end(incident);
        self.look_at_cuts();
    }

    /// Notes which connections are cut, and lets go what was held where none is any more.
    fn look_at_cuts(&mut self) {
        let mut released = Vec::new();
        for (id, connection) in &mut self.connections {
            let [one, other] = connection.ends.map(|end| end.node);
            let cut = [self.links.is_cut(other, one), self.links.is_cut(one, other)];
            connection.cut_since = match connection.cut_since {
                _ if cut == [false, false] => None,
                Some(since) => Some(since),
                None => Some(self.now),
            };
            for end in [0, 1] {
                if !cut[end] && !connection.held[end].is_empty() {
                    released.push((*id, end, std::mem::take(&mut connection.held[end])));
                }
            }
        }
        for (id, end, items) in released {
            let Some(ends) = self.connections.get(&id).map(|connection| connection.ends) else { continue };
            let (from, to) = (ends[1 - end].node, ends[end].node);
            for item in items {
                let bytes = match &item {
                    Item::Message(message) => message.len(),
                    Item::Closed => CLOSED_BYTES,
                };
                self.put(id, from, to, end, bytes, item);
            }
        }
        if self.links.has_cuts() {
            self.schedule(self.now + self.links.gives_up_after(), Event::CutCheck);
        }
    }

    /// Connections that have been cut for too long are given up at both ends.
    pub(crate) fn cut_check(&mut self) -> Vec<Told> {
        let (now, patience) = (self.now, self.links.gives_up_after());
        let over: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.cut_since.is_some_and(|since| now - since >= patience))
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().flat_map(|id| self.break_off(id)).collect()
    }
}

/// This end's peer is gone.
fn closed(connection: ConnectionId, end: usize) -> Event {
    Event::Arrives { connection, end, item: Arrival(Item::Closed) }
}

impl Connection {
    fn is_open(&self) -> bool {
        self.ends.iter().all(|end| !end.closed)
    }
}
