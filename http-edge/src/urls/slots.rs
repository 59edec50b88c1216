//! How many requests a guest gets at once, and the connections to it that are kept between them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_tunnel::serve::is_quiet;
use hedgerow_tunnel::{BoxIo, Slot};
use tokio::time::Instant;

/// Requests that a guest gets at once from this entry, and connections to it: what a node has whose operator says nothing.
pub(crate) const SLOTS: u32 = 16;
/// How long a connection is kept idle. A new one costs a lookup and two handshakes over the internet, and what stands in
/// front of agents keeps theirs for minutes; who closes sooner is noticed before the connection is used again.
const KEPT_FOR: Duration = Duration::from_secs(15);

/// The slots of one guest. All methods are short and none waits.
#[derive(Default)]
pub(crate) struct Slots(Mutex<State>);

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

/// A slot, and a connection that has served before and may serve again.
pub(crate) struct Granted {
    pub(crate) slot: Box<Taken>,
    pub(crate) kept: Option<BoxIo>,
}

impl Slots {
    /// Takes a slot, if one is free; with `reuse`, together with a connection that is fit for another request. Kept
    /// connections and slots together are never more than there are slots.
    pub(crate) fn take(self: &Arc<Self>, reuse: bool) -> Option<Granted> {
        let (mut candidate, _surplus) = {
            let mut state = self.lock();
            if state.used >= SLOTS {
                return None;
            }
            state.used += 1;
            let candidate = if reuse { state.kept.pop_back() } else { None };
            let over = candidate.is_none() && state.used as usize + state.kept.len() > SLOTS as usize;
            let surplus = if over { state.kept.pop_front() } else { None };
            (candidate, surplus)
        };
        let slot = Box::new(Taken { slots: self.clone(), gives_back: true });
        while let Some(mut kept) = candidate {
            if kept.since.elapsed() < KEPT_FOR && is_quiet(&mut kept.io) {
                return Some(Granted { slot, kept: Some(kept.io) });
            }
            candidate = self.lock().kept.pop_back();
        }
        Some(Granted { slot, kept: None })
    }

    /// Whether requests are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().used > 0
    }

    /// Closes what has been idle for too long. To be called every few seconds.
    pub(crate) fn sweep(&self) {
        let swept: Vec<Kept> = {
            let mut state = self.lock();
            let (live, old) = state.kept.drain(..).partition(|kept: &Kept| kept.since.elapsed() < KEPT_FOR);
            state.kept = Vec::into(live);
            old
        };
        drop(swept);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot that is taken while this lives.
pub(crate) struct Taken {
    slots: Arc<Slots>,
    gives_back: bool,
}

impl Slot for Taken {
    fn keep(mut self: Box<Self>, io: BoxIo) {
        self.gives_back = false;
        let mut state = self.slots.lock();
        state.used = state.used.saturating_sub(1);
        state.kept.push_back(Kept { io, since: Instant::now() });
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.gives_back {
            let mut state = self.slots.lock();
            state.used = state.used.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    fn connection() -> (BoxIo, DuplexStream) {
        let (ours, theirs) = duplex(64);
        (Box::new(ours), theirs)
    }

    fn take(slots: &Arc<Slots>, reuse: bool) -> Granted {
        slots.take(reuse).expect("a free slot")
    }

    #[tokio::test]
    async fn there_are_never_more_requests_than_slots() {
        let slots = Arc::new(Slots::default());
        let mut held: Vec<_> = (0..SLOTS).map(|_| take(&slots, true)).collect();
        assert!(slots.take(true).is_none() && slots.is_busy());
        held.pop();
        assert!(slots.take(true).is_some());
        held.clear();
        assert!(!slots.is_busy());
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_serves_again_while_it_is_young_and_open() {
        let slots = Arc::new(Slots::default());
        let (io, _theirs) = connection();
        take(&slots, true).slot.keep(io);
        assert!(take(&slots, false).kept.is_none(), "a fresh one was asked for");
        let again = take(&slots, true);
        again.slot.keep(again.kept.expect("the kept one"));
        tokio::time::advance(KEPT_FOR).await;
        slots.sweep();
        assert!(take(&slots, true).kept.is_none());

        let (io, theirs) = connection();
        take(&slots, true).slot.keep(io);
        drop(theirs);
        assert!(take(&slots, true).kept.is_none());
    }

    #[tokio::test]
    async fn connections_never_outnumber_slots() {
        let slots = Arc::new(Slots::default());
        let (io, mut theirs) = connection();
        take(&slots, false).slot.keep(io);
        let _held: Vec<_> = (0..SLOTS).map(|_| take(&slots, false)).collect();
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "the idle one has made room");
    }
}
