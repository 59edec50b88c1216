//! Listeners: connections that have come up and wait to be taken.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use super::connection::Side;
use super::{Network, State, Stream, address};

/// Connections that may wait: as many as Linux lets (`net.core.somaxconn`).
const BACKLOG: usize = 4096;

/// A port on which somebody listens.
pub(super) struct Listening {
    /// A later process may listen where an earlier one did.
    id: u64,
    waiting: VecDeque<(u64, SocketAddr)>,
    waker: Option<Waker>,
}

impl Listening {
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < BACKLOG
    }

    /// Takes in a connection; whoever waits for one is to be woken.
    pub(super) fn push(&mut self, connection: u64, from: SocketAddr) -> Option<Waker> {
        self.waiting.push_back((connection, from));
        self.waker.take()
    }

    pub(super) fn into_waker(self) -> Option<Waker> {
        self.waker
    }
}

/// A connection that has come in, and from where.
pub type Accepted = (Stream, SocketAddr);

/// Listens until it is dropped.
pub struct Listener {
    network: Network,
    node: u32,
    port: u16,
    id: u64,
}

impl Listener {
    pub(super) fn new(network: Network, node: u32, (port, id): (u16, u64)) -> Self {
        Self { network, node, port, id }
    }

    /// Where.
    pub fn address(&self) -> SocketAddr {
        address::of(self.node, self.port)
    }

    /// The next connection.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let waiting = self.network.with(|state, _| {
            let listening =
                state.listeners.get_mut(&(self.node, self.port)).filter(|listening| listening.id == self.id);
            // The machine may have lost its power, and its listeners with it.
            let listening = listening.ok_or(io::ErrorKind::NotConnected)?;
            let next = listening.waiting.pop_front();
            if next.is_none() {
                listening.waker = Some(cx.waker().clone());
            }
            Ok::<_, io::Error>(next)
        })?;
        match waiting {
            Some((connection, from)) => {
                Poll::Ready(Ok((Stream::new(self.network.clone(), connection, Side::Listener), from)))
            }
            None => Poll::Pending,
        }
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Accepted> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let forgotten = self.network.with(|state, now| {
            let place = (self.node, self.port);
            state.listeners.get(&place).filter(|listening| listening.id == self.id)?;
            let listening = state.listeners.remove(&place)?;
            for (connection, _) in &listening.waiting {
                state.close(now, *connection, Side::Listener);
            }
            listening.into_waker()
        });
        // A waker may drop what holds a handle to the network: not under its lock.
        drop(forgotten);
    }
}

impl State {
    pub(super) fn listen(&mut self, node: u32, port: u16) -> io::Result<(u16, u64)> {
        if !self.is_up(node) {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        let port = if port == 0 { self.free_port(node) } else { port };
        if self.listeners.contains_key(&(node, port)) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = self.number();
        self.listeners.insert((node, port), Listening { id, waiting: VecDeque::new(), waker: None });
        Ok((port, id))
    }
}
