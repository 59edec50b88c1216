//! The slots of one service, and the connections to it that are kept between requests. Never more connections than slots:
//! a service that takes its connections one by one is not blocked by an idle one of ours.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hedgerow_tunnel::BoxIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

/// Kept connections of one service at most, whatever its capacity: below the number of requests at once, each of the others
/// costs a connection of its own (simulations/BENCHMARKS.md), and idle ones go after seconds.
pub const KEPT_MAX: usize = 256;
/// How long a connection is kept idle. Below what common servers allow (Node and uvicorn close after 5 s), so that it is
/// seldom they who close, just as a request is on its way.
pub const KEPT_FOR: Duration = Duration::from_secs(4);

/// Slots and kept connections. All methods are short and none waits.
pub struct Pool {
    capacity: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: u32,
    /// Oldest first.
    kept: VecDeque<Kept>,
}

struct Kept {
    io: BoxIo,
    since: Instant,
}

/// A slot was free.
pub struct Granted {
    /// A connection that has served before, was quiet a moment ago, and may serve again.
    pub kept: Option<BoxIo>,
}

/// All slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Pool {
    /// For a service that takes `capacity` requests at once.
    pub fn new(capacity: u32) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// How many requests it takes at once.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots taken now.
    pub fn used(&self) -> u32 {
        self.lock().used
    }

    /// Kept connections now.
    pub fn kept(&self) -> usize {
        self.lock().kept.len()
    }

    /// Takes a slot, and with `reuse` a kept connection if there is a live one. Give the slot back with [`Pool::free`] or
    /// [`Pool::keep`].
    pub fn take(&self, reuse: bool) -> Result<Granted, Full> {
        let (mut candidate, surplus) = {
            let mut state = self.lock();
            if state.used >= self.capacity {
                return Err(Full);
            }
            state.used += 1;
            let candidate = if reuse { state.kept.pop_back() } else { None };
            // The fresh connection would be one too many: the oldest idle one makes room.
            let over = candidate.is_none() && state.used as usize + state.kept.len() > self.capacity as usize;
            let surplus = if over { state.kept.pop_front() } else { None };
            (candidate, surplus)
        };
        drop(surplus);
        while let Some(mut kept) = candidate {
            if kept.since.elapsed() < KEPT_FOR && is_quiet(&mut kept.io) {
                return Ok(Granted { kept: Some(kept.io) });
            }
            candidate = self.lock().kept.pop_back();
        }
        Ok(Granted { kept: None })
    }

    /// Gives a slot back. Its connection has been closed before.
    pub fn free(&self) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(1);
    }

    /// Gives a slot back, and a connection that may serve again.
    pub fn keep(&self, io: BoxIo) {
        let kept = Kept { io, since: Instant::now() };
        let _surplus = {
            let mut state = self.lock();
            state.used = state.used.saturating_sub(1);
            state.kept.push_back(kept);
            if state.kept.len() > KEPT_MAX { state.kept.pop_front() } else { None }
        };
    }

    /// Closes what has been idle for too long, or has been closed by the service. To be called about once a second.
    pub fn sweep(&self) {
        let swept: Vec<Kept> = {
            let mut state = self.lock();
            let (live, dead) = state.kept.drain(..).partition(|kept: &Kept| kept.since.elapsed() < KEPT_FOR);
            state.kept = Vec::into(live);
            dead
        };
        drop(swept);
    }

    /// Closes all kept connections.
    pub fn clear(&self) {
        let kept = std::mem::take(&mut self.lock().kept);
        drop(kept);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; and if it did, a count that is off by one beats a node that serves no more.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a connection has neither bytes to read nor ended.
fn is_quiet(io: &mut BoxIo) -> bool {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let read = std::future::poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut buffer));
    // Without this, a task that has used up its turn would be told "pending" of a connection that is closed.
    let read = std::pin::pin!(tokio::task::unconstrained(read));
    matches!(read.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    fn connection() -> (BoxIo, DuplexStream) {
        let (ours, theirs) = duplex(64);
        (Box::new(ours), theirs)
    }

    #[tokio::test]
    async fn there_are_never_more_slots_than_the_capacity() {
        let pool = Pool::new(2);
        assert!(pool.take(true).is_ok());
        assert!(pool.take(false).is_ok());
        assert_eq!(pool.take(true).err(), Some(Full));
        pool.free();
        assert!(pool.take(true).is_ok());
        assert_eq!(pool.used(), 2);
    }

    #[tokio::test]
    async fn a_kept_connection_serves_again_unless_a_fresh_one_is_asked_for() {
        let pool = Pool::new(2);
        let (io, _theirs) = connection();
        assert!(pool.take(true).unwrap().kept.is_none());
        pool.keep(io);
        assert_eq!((pool.used(), pool.kept()), (0, 1));
        assert!(pool.take(false).unwrap().kept.is_none());
        assert_eq!(pool.kept(), 1);
        assert!(pool.take(true).unwrap().kept.is_some());
        assert_eq!((pool.used(), pool.kept()), (2, 0));
    }

    #[tokio::test]
    async fn a_closed_or_talking_connection_is_not_used_again() {
        let pool = Pool::new(4);
        let (closed, theirs) = connection();
        drop(theirs);
        let (talking, mut theirs) = connection();
        theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n").await.unwrap();
        for io in [closed, talking] {
            pool.take(true).ok().unwrap();
            pool.keep(io);
        }
        assert!(pool.take(true).unwrap().kept.is_none());
        assert_eq!(pool.kept(), 0);
    }

    #[tokio::test]
    async fn connections_never_outnumber_slots() {
        let pool = Pool::new(1);
        let (io, mut theirs) = connection();
        pool.take(true).ok().unwrap();
        pool.keep(io);
        pool.take(false).ok().unwrap();
        assert_eq!(pool.kept(), 0, "a service that takes one connection at a time would wait for ever");
        assert_eq!(tokio::io::AsyncReadExt::read(&mut theirs, &mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_in_time() {
        let pool = Pool::new(1);
        let (io, _theirs) = connection();
        pool.take(true).ok().unwrap();
        pool.keep(io);
        pool.sweep();
        assert_eq!(pool.kept(), 1);
        tokio::time::advance(KEPT_FOR).await;
        pool.sweep();
        assert_eq!(pool.kept(), 0);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let pool = Pool::new(1000);
        let mut theirs = Vec::new();
        for _ in 0..KEPT_MAX + 10 {
            pool.take(false).ok().unwrap();
            let (io, end) = connection();
            theirs.push(end);
            pool.keep(io);
        }
        assert_eq!(pool.kept(), KEPT_MAX);
    }
}
