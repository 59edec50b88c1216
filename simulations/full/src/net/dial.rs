//! How a connection comes up: the first packet, sent again while nothing answers, and the answer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::connection::{Connection, Side};
use super::{Event, Network, State, Stream, address, kind};

/// The pause after which the first packet is sent again the first time, doubled each time (Linux).
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How long it is tried (Linux, with its usual six repetitions).
const GIVEN_UP_AFTER: Duration = Duration::from_secs(127);

/// Somebody dials.
pub(super) struct Attempt {
    from: SocketAddr,
    to: SocketAddr,
    from_node: u32,
    began: Duration,
    retry: Duration,
    /// The other end has it.
    connection: Option<u64>,
    outcome: Option<Result<u64, io::ErrorKind>>,
    waker: Option<Waker>,
}

impl Attempt {
    pub(super) fn is_from(&self, node: u32) -> bool {
        self.from_node == node
    }
}

/// A connection that is being dialled. Dropping it gives it up.
pub struct Dial {
    network: Network,
    attempt: u64,
}

impl Dial {
    pub(super) fn new(network: Network, attempt: u64) -> Self {
        Self { network, attempt }
    }
}

impl Future for Dial {
    type Output = io::Result<Stream>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.network.with(|state, _| {
            // A future that is polled after its end.
            let Some(attempt) = state.attempts.get_mut(&self.attempt) else {
                return Some(Err(io::ErrorKind::NotConnected));
            };
            let outcome = attempt.outcome.take();
            match &outcome {
                None => attempt.waker = Some(cx.waker().clone()),
                Some(_) => _ = state.attempts.remove(&self.attempt),
            }
            outcome
        });
        match outcome {
            None => Poll::Pending,
            Some(Ok(connection)) => Poll::Ready(Ok(Stream::new(self.network.clone(), connection, Side::Dialler))),
            Some(Err(kind)) => Poll::Ready(Err(kind.into())),
        }
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let forgotten = self.network.with(|state, now| {
            let attempt = state.attempts.remove(&self.attempt)?;
            if let Some(connection) = attempt.connection {
                state.close(now, connection, Side::Dialler);
            }
            attempt.waker
        });
        // A waker may drop what holds a handle to the network: not under its lock.
        drop(forgotten);
    }
}

impl State {
    pub(super) fn dial(&mut self, now: Duration, node: u32, to: SocketAddr) -> u64 {
        let id = self.number();
        let attempt = Attempt {
            from: address::of(node, self.free_port(node)),
            to,
            from_node: node,
            began: now,
            retry: FIRST_RETRY,
            connection: None,
            outcome: None,
            waker: None,
        };
        self.attempts.insert(id, attempt);
        match address::node(to).filter(|to| (*to as usize) < self.machines.len()) {
            Some(to) => self.send_packet(now, node, to, Event::Knock(id)),
            None => self.fail(id, io::ErrorKind::HostUnreachable),
        }
        id
    }

    /// A packet of the handshake: it carries nothing, and nothing that does goes before it.
    fn send_packet(&mut self, now: Duration, from: u32, to: u32, event: Event) {
        let at = self.links.arrival(now, from, to, 0, &mut Default::default());
        self.schedule(at, event);
    }

    /// It did not get through. It is sent again, or given up.
    fn packet_lost(&mut self, now: Duration, id: u64, event: Event) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let at = now + attempt.retry;
        attempt.retry *= 2;
        if at <= attempt.began + GIVEN_UP_AFTER {
            return self.schedule(at, event);
        }
        let connection = attempt.connection.take();
        self.fail(id, io::ErrorKind::TimedOut);
        if let Some(connection) = connection {
            self.close(now, connection, Side::Dialler);
        }
    }

    fn fail(&mut self, id: u64, kind: io::ErrorKind) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.outcome = Some(Err(kind));
            self.woken.extend(attempt.waker.take());
        }
    }

    /// The machine that dialled is off: nobody is told.
    pub(super) fn give_up_dialling(&mut self, id: u64) {
        let connection = self.attempts.get_mut(&id).and_then(|attempt| attempt.connection.take());
        self.fail(id, io::ErrorKind::NetworkDown);
        if let Some(connection) = connection {
            self.vanish(connection, Side::Dialler);
        }
    }

    pub(super) fn knock(&mut self, now: Duration, id: u64) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let (from, to, from_node) = (attempt.from, attempt.to, attempt.from_node);
        let Some(node) = address::node(to) else { return };
        // What comes in through a NAT unasked is dropped, as if nobody were there.
        let dialable = node == from_node || self.links.place(node).is_dialable();
        if !dialable || self.is_cut(from_node, node) {
            return self.packet_lost(now, id, Event::Knock(id));
        }
        let connection = self.number();
        let Some(listening) = self.listeners.get_mut(&(node, to.port())) else {
            return self.send_packet(now, node, from_node, Event::Refused(id));
        };
        if !listening.has_room() {
            return self.packet_lost(now, id, Event::Knock(id));
        }
        self.woken.extend(listening.push(connection, from));
        self.connections.insert(connection, Connection::new(from_node, node));
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.connection = Some(connection);
        }
        self.send_packet(now, node, from_node, Event::Connected(id));
    }

    pub(super) fn connected(&mut self, now: Duration, id: u64) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let (from, to) = (attempt.from_node, address::node(attempt.to).unwrap_or(attempt.from_node));
        if self.is_cut(to, from) {
            return self.packet_lost(now, id, Event::Connected(id));
        }
        let Some(connection) = attempt.connection.filter(|connection| self.connections.contains_key(connection)) else {
            return self.fail(id, io::ErrorKind::ConnectionReset);
        };
        self.traffic.connections += 1;
        self.trace.event(now, to, from, kind::CONNECTED, &connection.to_be_bytes());
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.outcome = Some(Ok(connection));
            self.woken.extend(attempt.waker.take());
        }
    }

    pub(super) fn refused(&mut self, now: Duration, id: u64) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let (from, to) = (attempt.from_node, address::node(attempt.to).unwrap_or(attempt.from_node));
        if self.is_cut(to, from) {
            return self.packet_lost(now, id, Event::Knock(id));
        }
        self.trace.event(now, to, from, kind::REFUSED, &[]);
        self.fail(id, io::ErrorKind::ConnectionRefused);
    }
}
