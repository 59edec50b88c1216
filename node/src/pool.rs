//! The slots of one service, and the connections to it that are kept between requests. Never more connections than slots:
//! a service that takes its connections one by one is not blocked by an idle one of ours.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hedgerow_tunnel::BoxIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// Kept connections of one service at most, whatever its capacity: below the number of requests at once, each of the others
/// costs a connection of its own (simulations/BENCHMARKS.md), and idle ones go after seconds.
pub const KEPT_MAX: usize = 256;
/// How long a connection is kept idle. Below what common servers allow (Node and uvicorn close after 5 s), so that it is
/// seldom they who close, just as a request is on its way.
pub const KEPT_FOR: Duration = Duration::from_secs(4);

/// Requests that stand in line for one service at most; others are refused as if they had not asked to. An entry has no more
/// there than the service has slots, so that this is many entries; and each costs a stream.
pub const IN_LINE_MAX: usize = 256;

/// Slots and kept connections.
pub struct Pool {
    capacity: u32,
    /// Fair: a slot that is given back goes to the head of the line, and nobody overtakes.
    slots: Semaphore,
    /// Places in line.
    line: Semaphore,
    /// Oldest first.
    kept: Mutex<VecDeque<Kept>>,
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
        let slots = Semaphore::new((capacity as usize).min(Semaphore::MAX_PERMITS));
        Self { capacity, slots, line: Semaphore::new(IN_LINE_MAX), kept: Mutex::default() }
    }

    /// How many requests it takes at once.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots taken now.
    pub fn used(&self) -> u32 {
        self.capacity.saturating_sub(u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX))
    }

    /// Kept connections now.
    pub fn kept(&self) -> usize {
        self.lock().len()
    }

    /// Takes a slot, and with `reuse` a kept connection if there is a live one. Give the slot back with [`Pool::free`] or
    /// [`Pool::keep`].
    pub fn take(&self, reuse: bool) -> Result<Granted, Full> {
        self.slots.try_acquire().map_err(|_| Full)?.forget();
        Ok(self.granted(reuse))
    }

    /// The same, and stands in line for a slot, for so long at most. Dropping the future leaves the line.
    pub async fn take_in_line(&self, reuse: bool, patience: Duration) -> Result<Granted, Full> {
        let _place = self.line.try_acquire().map_err(|_| Full)?;
        let slot = timeout(patience, self.slots.acquire()).await;
        slot.map_err(|_| Full)?.map_err(|_| Full)?.forget();
        Ok(self.granted(reuse))
    }

    /// A slot has been taken: the connection that goes with it.
    fn granted(&self, reuse: bool) -> Granted {
        let (mut candidate, surplus) = {
            let mut kept = self.lock();
            let candidate = if reuse { kept.pop_back() } else { None };
            // The fresh connection would be one too many: the oldest idle one makes room.
            let over = candidate.is_none() && self.used() as usize + kept.len() > self.capacity as usize;
            let surplus = if over { kept.pop_front() } else { None };
            (candidate, surplus)
        };
        drop(surplus);
        while let Some(mut kept) = candidate {
            if kept.since.elapsed() < KEPT_FOR && is_quiet(&mut kept.io) {
                return Granted { kept: Some(kept.io) };
            }
            candidate = self.lock().pop_back();
        }
        Granted { kept: None }
    }

    /// Gives a slot back. Its connection has been closed before.
    pub fn free(&self) {
        self.slots.add_permits(1);
    }

    /// Gives a slot back, and a connection that may serve again.
    pub fn keep(&self, io: BoxIo) {
        let kept = Kept { io, since: Instant::now() };
        let _surplus = {
            let mut all = self.lock();
            all.push_back(kept);
            if all.len() > KEPT_MAX { all.pop_front() } else { None }
        };
        // In this order: who gets the slot finds the connection.
        self.free();
    }

    /// Closes what has been idle for too long, or has been closed by the service. To be called about once a second.
    pub fn sweep(&self) {
        let swept: Vec<Kept> = {
            let mut all = self.lock();
            let (live, dead) = all.drain(..).partition(|kept: &Kept| kept.since.elapsed() < KEPT_FOR);
            *all = Vec::into(live);
            dead
        };
        drop(swept);
    }

    /// Closes all kept connections.
    pub fn clear(&self) {
        let kept = std::mem::take(&mut *self.lock());
        drop(kept);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        // Nothing panics while it is held; and if it did, a connection that is lost beats a node that serves no more.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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
    use futures_util::poll;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    const LONG: Duration = Duration::from_secs(60);

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

    #[tokio::test(start_paused = true)]
    async fn who_stands_in_line_is_not_overtaken() {
        let pool = Pool::new(1);
        pool.take(false).ok().unwrap();
        let second = pool.take_in_line(false, LONG);
        let third = pool.take_in_line(false, LONG);
        tokio::pin!(second, third);
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        pool.free();
        assert_eq!(pool.take(false).err(), Some(Full), "the slot is the second one's");
        assert!(poll!(&mut third).is_pending());
        second.await.ok().unwrap();
        pool.free();
        third.await.ok().unwrap();
        assert_eq!(pool.used(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_takes_no_slot_with_him() {
        let pool = Pool::new(1);
        pool.take(false).ok().unwrap();
        assert_eq!(pool.take_in_line(false, LONG).await.err(), Some(Full), "not for ever");
        {
            let leaves = pool.take_in_line(false, LONG);
            tokio::pin!(leaves);
            assert!(poll!(&mut leaves).is_pending());
            pool.free();
        }
        assert!(pool.take(false).is_ok(), "given to one who had gone");
        assert_eq!(pool.used(), 1);
    }

    #[tokio::test]
    async fn the_line_is_bounded() {
        let pool = Pool::new(1);
        pool.take(false).ok().unwrap();
        let mut line: Vec<_> = (0..IN_LINE_MAX).map(|_| Box::pin(pool.take_in_line(false, LONG))).collect();
        for waits in &mut line {
            assert!(poll!(waits).is_pending());
        }
        assert_eq!(pool.take_in_line(false, LONG).await.err(), Some(Full));
        line.pop();
        assert!(poll!(Box::pin(pool.take_in_line(false, LONG))).is_pending(), "there is a place again");
    }

    #[tokio::test]
    async fn who_stands_in_line_gets_the_connection_that_is_given_back() {
        let pool = Pool::new(1);
        let (io, _theirs) = connection();
        pool.take(true).ok().unwrap();
        let waits = pool.take_in_line(true, LONG);
        tokio::pin!(waits);
        assert!(poll!(&mut waits).is_pending());
        pool.keep(io);
        assert!(waits.await.unwrap().kept.is_some());
    }
}
