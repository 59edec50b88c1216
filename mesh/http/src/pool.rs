//! Idle connections down the tunnels, for one thread: streams that carry one exchange after another, each with its
//! HTTP/1.1 client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use crate::connection::Connection;

/// The pool of one thread.
pub(crate) struct Pool {
    idle: RefCell<HashMap<u64, Vec<Idle>>>,
    idle_max: usize,
    timeout: Duration,
}

struct Idle {
    connection: Connection,
    since: Duration,
}

impl Pool {
    pub(crate) fn new(idle_max: usize, timeout: Duration) -> Self {
        Self { idle: RefCell::default(), idle_max, timeout }
    }

    /// The connection of this tunnel that was used last: its RELEASE is in front of the next OPEN, and the others may
    /// age and go.
    pub(crate) fn take(&self, tunnel: u64) -> Option<Connection> {
        let mut pool = self.idle.borrow_mut();
        let idle = pool.get_mut(&tunnel)?;
        while let Some(Idle { connection, .. }) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    pub(crate) fn put(&self, tunnel: u64, connection: Connection, now: Duration) {
        let mut pool = self.idle.borrow_mut();
        let idle = pool.entry(tunnel).or_default();
        if idle.len() < self.idle_max {
            idle.push(Idle { connection, since: now });
        }
    }

    /// Lets go of those that are closed or have been idle for too long.
    pub(crate) fn sweep(&self, now: Duration) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|idle| idle.connection.is_ready() && now.saturating_sub(idle.since) < self.timeout);
            !idle.is_empty()
        });
    }
}
