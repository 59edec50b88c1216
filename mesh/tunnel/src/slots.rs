//! How many requests a service gets at once, and the connections to it that are kept between them. Never more connections than
//! slots: a service that takes its connections one by one is not blocked by an idle one of ours.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::serve::{BoxIo, Slot, is_quiet};

/// Kept connections of one service at most, whatever its capacity: below the number of requests at once, each of the others
/// costs a connection of its own (simulations/BENCHMARKS.md), and idle ones go after seconds.
pub const KEPT_MAX: usize = 256;

/// Requests that stand in line for one service at most; others are refused as if they had not asked to. An entry has no more
/// there than the service has slots, so that this is many entries; and each costs a stream.
pub const IN_LINE_MAX: usize = 256;

/// Slots and kept connections of one service. Nothing but [`Slots::take_in_line`] waits.
pub struct Slots {
    capacity: u32,
    kept_for: Duration,
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
    /// It is taken while this lives.
    pub slot: Box<Taken>,
    /// A connection that has served before, was quiet a moment ago, and may serve again.
    pub kept: Option<BoxIo>,
}

/// All slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Slots {
    /// For a service that takes `capacity` requests at once. Connections are kept idle for so long at most.
    pub fn new(capacity: u32, kept_for: Duration) -> Arc<Self> {
        let slots = Semaphore::new((capacity as usize).min(Semaphore::MAX_PERMITS));
        Arc::new(Self { capacity, kept_for, slots, line: Semaphore::new(IN_LINE_MAX), kept: Mutex::default() })
    }

    /// Slots taken now.
    pub fn used(&self) -> u32 {
        self.capacity.saturating_sub(u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX))
    }

    /// Takes a slot, if one is free, and with `reuse` a kept connection if there is a live one.
    pub fn take(self: &Arc<Self>, reuse: bool) -> Result<Granted, Full> {
        self.slots.try_acquire().map_err(|_| Full)?.forget();
        Ok(self.granted(reuse))
    }

    /// The same, and stands in line for a slot, for so long at most. Dropping the future leaves the line.
    pub async fn take_in_line(self: &Arc<Self>, reuse: bool, patience: Duration) -> Result<Granted, Full> {
        let _place = self.line.try_acquire().map_err(|_| Full)?;
        let slot = timeout(patience, self.slots.acquire()).await;
        slot.map_err(|_| Full)?.map_err(|_| Full)?.forget();
        Ok(self.granted(reuse))
    }

    /// A slot has been taken: the connection that goes with it.
    fn granted(self: &Arc<Self>, reuse: bool) -> Granted {
        let slot = Box::new(Taken { slots: self.clone(), gives_back: true });
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
            if kept.since.elapsed() < self.kept_for && is_quiet(&mut kept.io) {
                return Granted { slot, kept: Some(kept.io) };
            }
            candidate = self.lock().pop_back();
        }
        Granted { slot, kept: None }
    }

    /// Closes what has been idle for too long. To be called every second or few.
    pub fn sweep(&self) {
        let swept: Vec<Kept> = {
            let mut all = self.lock();
            let (live, dead) = all.drain(..).partition(|kept: &Kept| kept.since.elapsed() < self.kept_for);
            *all = Vec::into(live);
            dead
        };
        drop(swept);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        // Nothing panics while it is held; and if it did, a connection that is lost beats a node that serves no more.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, taken while this lives.
pub struct Taken {
    slots: Arc<Slots>,
    gives_back: bool,
}

impl Slot for Taken {
    fn keep(mut self: Box<Self>, io: BoxIo) {
        self.gives_back = false;
        let kept = Kept { io, since: Instant::now() };
        let _surplus = {
            let mut all = self.slots.lock();
            all.push_back(kept);
            if all.len() > KEPT_MAX { all.pop_front() } else { None }
        };
        // In this order: who gets the slot finds the connection.
        self.slots.slots.add_permits(1);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.gives_back {
            self.slots.slots.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const LONG: Duration = Duration::from_secs(60);
    const KEPT_FOR: Duration = Duration::from_secs(4);

    fn slots(capacity: u32) -> Arc<Slots> {
        Slots::new(capacity, KEPT_FOR)
    }

    fn connection() -> (BoxIo, DuplexStream) {
        let (ours, theirs) = duplex(64);
        (Box::new(ours), theirs)
    }

    fn take(slots: &Arc<Slots>, reuse: bool) -> Granted {
        slots.take(reuse).expect("a free slot")
    }

    /// A request has been served, and its connection may serve again.
    fn keep_one(slots: &Arc<Slots>) -> DuplexStream {
        let (io, theirs) = connection();
        take(slots, false).slot.keep(io);
        theirs
    }

    fn kept(slots: &Slots) -> usize {
        slots.lock().len()
    }

    #[tokio::test]
    async fn there_are_never_more_requests_than_slots() {
        let slots = slots(2);
        let (first, _second) = (take(&slots, true), take(&slots, false));
        assert_eq!(slots.take(true).err(), Some(Full));
        drop(first);
        let _third = take(&slots, true);
        assert_eq!(slots.used(), 2);
    }

    #[tokio::test]
    async fn a_kept_connection_serves_again_unless_a_fresh_one_is_asked_for() {
        let slots = slots(2);
        let _theirs = keep_one(&slots);
        assert_eq!((slots.used(), kept(&slots)), (0, 1));
        let fresh = take(&slots, false);
        assert!(fresh.kept.is_none());
        assert_eq!(kept(&slots), 1);
        let again = take(&slots, true);
        assert!(again.kept.is_some());
        assert_eq!((slots.used(), kept(&slots)), (2, 0));
    }

    #[tokio::test]
    async fn a_closed_or_talking_connection_is_not_used_again() {
        let slots = slots(4);
        drop(keep_one(&slots));
        let mut theirs = keep_one(&slots);
        theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n").await.unwrap();
        assert!(take(&slots, true).kept.is_none());
        assert_eq!(kept(&slots), 0);
    }

    #[tokio::test]
    async fn connections_never_outnumber_slots() {
        let slots = slots(1);
        let mut theirs = keep_one(&slots);
        let _taken = take(&slots, false);
        assert_eq!(kept(&slots), 0, "a service that takes one connection at a time would wait for ever");
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_in_time() {
        let slots = slots(1);
        let _theirs = keep_one(&slots);
        slots.sweep();
        assert_eq!(kept(&slots), 1);
        tokio::time::advance(KEPT_FOR).await;
        slots.sweep();
        assert_eq!(kept(&slots), 0);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let slots = slots(1000);
        let _theirs: Vec<_> = (0..KEPT_MAX + 10).map(|_| keep_one(&slots)).collect();
        assert_eq!(kept(&slots), KEPT_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_in_line_is_not_overtaken() {
        let slots = slots(1);
        let first = take(&slots, false);
        let (mut second, mut third) =
            (Box::pin(slots.take_in_line(false, LONG)), Box::pin(slots.take_in_line(false, LONG)));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(first);
        assert_eq!(slots.take(false).err(), Some(Full), "the slot is the second one's");
        assert!((&mut third).now_or_never().is_none());
        drop(second.await.ok().unwrap());
        let _third = third.await.ok().unwrap();
        assert_eq!(slots.used(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_takes_no_slot_with_him() {
        let slots = slots(1);
        let first = take(&slots, false);
        assert_eq!(slots.take_in_line(false, LONG).await.err(), Some(Full), "not for ever");
        {
            let mut leaves = Box::pin(slots.take_in_line(false, LONG));
            assert!((&mut leaves).now_or_never().is_none());
            drop(first);
        }
        let _next = slots.take(false).expect("given to one who had gone");
        assert_eq!(slots.used(), 1);
    }

    #[tokio::test]
    async fn the_line_is_bounded() {
        let slots = slots(1);
        let _first = take(&slots, false);
        let mut line: Vec<_> = (0..IN_LINE_MAX).map(|_| Box::pin(slots.take_in_line(false, LONG))).collect();
        for waits in &mut line {
            assert!(waits.now_or_never().is_none());
        }
        assert_eq!(slots.take_in_line(false, LONG).await.err(), Some(Full));
        line.pop();
        assert!(slots.take_in_line(false, LONG).now_or_never().is_none(), "there is a place again");
    }

    #[tokio::test]
    async fn who_stands_in_line_gets_the_connection_that_is_given_back() {
        let slots = slots(1);
        let (io, _theirs) = connection();
        let first = take(&slots, true);
        let mut waits = Box::pin(slots.take_in_line(true, LONG));
        assert!((&mut waits).now_or_never().is_none());
        first.slot.keep(io);
        assert!(waits.await.ok().unwrap().kept.is_some());
    }
}
