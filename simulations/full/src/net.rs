//! The simulated network: byte streams between nodes, in virtual time, over the links of the model.
//!
//! ```text
//!  libp2p, tunnels, hyper ── Stream ──▶ connection ── segments ──▶ heap of events, by (time, number) ──▶ the other end
//!                                          │                              │
//!                            model::Links: when it arrives, who is cut    driver: one task, sleeps until the next event
//! ```
//!
//! A connection is like one of TCP: each direction arrives in order, with latency, bandwidth and losses as the model has them;
//! what a cut or a dead machine holds back is sent again, ever more seldom, until it gets through or the connection is given
//! up; who sends to an end that is gone gets a reset. Everything that arrives goes into the trace.
//!
//! One lock, since libp2p wants its transports to be `Send`; there is one thread. Nothing is woken or dropped under it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hedgerow_sim_model::links::Links;
use hedgerow_sim_model::plan::Effect;
use hedgerow_sim_model::schedule::Schedule;
use hedgerow_sim_model::trace::Trace;
use tokio::time::{Instant, Sleep};

use crate::time;

pub mod address;
mod connection;
mod dial;
mod link;
mod listener;
mod stream;
pub mod transport;

use connection::{Connection, Side};
use dial::Attempt;
pub use dial::Dial;
use link::Association;
pub use link::{SimLink, accept_link, dial_link};
use listener::Listening;
pub use listener::{Accepted, Listener};
pub use stream::Stream;

/// What has happened on the network until now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that came up.
    pub connections: u64,
    /// Sends that arrived.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Connections that were given up.
    pub given_up: u64,
}

/// What may happen next.
enum Event {
    /// The next segment that this side has sent arrives.
    Arrive(u64, Side),
    /// What is held back of this side's is sent again.
    Retry(u64, Side),
    /// This side may write again.
    Window(u64, Side),
    /// This side's bytes have not been acknowledged since then.
    Unheard(u64, Side, Duration),
    /// The first packet of a connection arrives.
    Knock(u64),
    /// The answer to it arrives: there is a connection.
    Connected(u64),
    /// The answer to it arrives: nobody listens.
    Refused(u64),
    /// A link may have been silent for too long.
    Idle(u64),
}

/// What the trace calls things.
mod kind {
    pub(super) const BYTES: u8 = 1;
    pub(super) const END: u8 = 2;
    pub(super) const RESET: u8 = 3;
    pub(super) const CONNECTED: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
    pub(super) const GIVEN_UP: u8 = 6;
    /// Something that the simulation says of itself.
    pub(super) const NOTE: u8 = 7;
    /// Nobody reads a stream any more.
    pub(super) const STOP: u8 = 8;
}

/// A machine on the network.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// Whether it answers at all.
    up: bool,
    next_port: u16,
}

struct State {
    links: Links,
    machines: Vec<Machine>,
    connections: BTreeMap<u64, Connection>,
    attempts: BTreeMap<u64, Attempt>,
    listeners: BTreeMap<(u32, u16), Listening>,
    /// By the number of their first connection.
    associations: BTreeMap<u64, Association>,
    events: Schedule<Event>,
    /// Numbers connections and attempts.
    count: u64,
    /// When the driver looks again, and what wakes it before.
    looks_at: Duration,
    driver: Option<Waker>,
    /// To be woken when the lock is free again.
    woken: Vec<Waker>,
    trace: Trace,
    traffic: Traffic,
}

/// The network. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

impl Network {
    /// One for so many nodes, over these links.
    pub fn new(links: Links, nodes: u32) -> Self {
        Self(Arc::new(Mutex::new(State {
            links,
            machines: vec![Machine { up: true, next_port: address::EPHEMERAL_PORTS.start }; nodes as usize],
            connections: BTreeMap::new(),
            attempts: BTreeMap::new(),
            listeners: BTreeMap::new(),
            associations: BTreeMap::new(),
            events: Schedule::default(),
            count: 0,
            looks_at: Duration::MAX,
            driver: None,
            woken: Vec::new(),
            trace: Trace::default(),
            traffic: Traffic::default(),
        })))
    }

    /// Does something with the state, then wakes those who wait for what came of it.
    fn with<T>(&self, work: impl FnOnce(&mut State, Duration) -> T) -> T {
        let now = time::now().since_origin();
        let (result, woken) = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut state, now);
            (result, std::mem::take(&mut state.woken))
        };
        woken.into_iter().for_each(Waker::wake);
        result
    }

    /// Lets happen what happens, for as long as it is polled: to be run in a task of its own.
    pub async fn drive(self) {
        let began = Instant::now() - time::now().since_origin();
        let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        poll_fn(|cx| self.poll_drive(cx, began, sleep.as_mut())).await
    }

    fn poll_drive(&self, cx: &mut Context<'_>, began: Instant, mut sleep: std::pin::Pin<&mut Sleep>) -> Poll<()> {
        loop {
            let next = self.with(|state, now| {
                while let Some((_, event)) = state.events.pop_until(now) {
                    state.happen(now, event);
                }
                let next = state.events.next_at();
                state.looks_at = next.unwrap_or(Duration::MAX);
                state.driver = Some(cx.waker().clone());
                next
            });
            let Some(at) = next else { return Poll::Pending };
            sleep.as_mut().reset(began + at);
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// A fault of the network begins. False: it is none of the network's.
    pub fn begin(&self, incident: u64, effect: &Effect) -> bool {
        self.with(|state, _| state.links.begin(incident, effect))
    }

    /// And is over.
    pub fn end(&self, incident: u64) {
        self.with(|state, now| {
            state.links.end(incident);
            state.heard_again(now);
        });
    }

    /// The machine loses its power: its connections are gone, and nobody is told.
    pub fn power_off(&self, node: u32) {
        self.with(|state, _| state.power_off(node));
    }

    /// It is there again, and knows nothing of its connections.
    pub fn power_on(&self, node: u32) {
        self.with(|state, _| {
            if let Some(machine) = state.machines.get_mut(node as usize) {
                machine.up = true;
            }
        });
    }

    /// The process ends without a word: the other ends of its tunnels find out by themselves, as over QUIC. Its connections of
    /// TCP are closed by the system when they are dropped.
    pub fn silence_links(&self, node: u32) {
        self.with(|state, _| state.silence_links(node));
    }

    /// Puts something that the simulation says of itself into the trace.
    pub fn note(&self, node: u32, what: &[u8]) {
        self.with(|state, now| state.trace.event(now, node, node, kind::NOTE, what));
    }

    /// What has happened until now.
    pub fn traffic(&self) -> Traffic {
        self.with(|state, _| state.traffic)
    }

    /// The hash of all that has happened, and of how many events it is.
    pub fn trace(&self) -> (String, u64) {
        self.with(|state, _| (state.trace.hash(), state.trace.events()))
    }

    /// Dials. The address of the one that dials is `from`'s, with a port of its own.
    pub fn dial(&self, from: u32, to: SocketAddr) -> Dial {
        let attempt = self.with(|state, now| state.dial(now, from, to));
        Dial::new(self.clone(), attempt)
    }

    /// Listens on a port of this node; 0 takes one that is free.
    pub fn listen(&self, node: u32, port: u16) -> std::io::Result<Listener> {
        let port = self.with(|state, _| state.listen(node, port))?;
        Ok(Listener::new(self.clone(), node, port))
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.events.push(at, event);
        if at < self.looks_at {
            self.woken.extend(self.driver.take());
        }
    }

    fn happen(&mut self, now: Duration, event: Event) {
        match event {
            Event::Arrive(connection, side) => self.arrive(now, connection, side),
            Event::Retry(connection, side) => self.retry(now, connection, side),
            Event::Window(connection, side) => self.window(connection, side),
            Event::Unheard(connection, side, since) => self.unheard(now, connection, side, since),
            Event::Knock(attempt) => self.knock(now, attempt),
            Event::Connected(attempt) => self.connected(now, attempt),
            Event::Refused(attempt) => self.refused(now, attempt),
            Event::Idle(link) => self.idle(now, link),
        }
    }

    /// Whether what the one sends now does not get to the other.
    fn is_cut(&self, from: u32, to: u32) -> bool {
        !self.is_up(to) || self.links.is_cut(from, to)
    }

    fn is_up(&self, node: u32) -> bool {
        self.machines.get(node as usize).is_some_and(|machine| machine.up)
    }

    /// A port for a connection that begins here, or for a listener that does not care.
    fn free_port(&mut self, node: u32) -> u16 {
        let Some(machine) = self.machines.get_mut(node as usize) else { return address::EPHEMERAL_PORTS.start };
        let port = machine.next_port;
        let next = port.checked_add(1).filter(|next| address::EPHEMERAL_PORTS.contains(next));
        machine.next_port = next.unwrap_or(address::EPHEMERAL_PORTS.start);
        port
    }
}
