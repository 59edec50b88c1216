//! What will happen, in order of virtual time, and at one time in the order in which it was put there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub struct Schedule<T> {
    /// When, the how-manieth that was put there, and where it is kept: what is moved about in the heap is small, whatever an event is.
    heap: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    count: u64,
    events: Vec<Option<T>>,
    /// Places among the events that are empty.
    free: Vec<usize>,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), count: 0, events: Vec::new(), free: Vec::new() }
    }
}

impl<T> Schedule<T> {
    /// This happens then.
    pub fn push(&mut self, at: Duration, event: T) {
        self.count += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.heap.push(Reverse((at, self.count, place)));
    }

    /// When the next thing happens.
    pub fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next thing, if it happens by then.
    pub fn pop_until(&mut self, until: Duration) -> Option<(Duration, T)> {
        self.next_at().filter(|at| *at <= until)?;
        let Reverse((at, _, place)) = self.heap.pop()?;
        self.free.push(place);
        self.events[place].take().map(|event| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_in_order_of_time_and_then_of_when_they_were_said() {
        let mut schedule = Schedule::default();
        for (at, event) in [(3, 'd'), (1, 'a'), (2, 'b'), (2, 'c'), (9, 'e')] {
            schedule.push(Duration::from_secs(at), event);
        }
        let until = Duration::from_secs(3);
        let happened: String = std::iter::from_fn(|| schedule.pop_until(until)).map(|(_, event)| event).collect();
        assert_eq!((happened.as_str(), schedule.next_at()), ("abcd", Some(Duration::from_secs(9))));
        schedule.push(Duration::from_secs(8), 'f');
        assert_eq!(schedule.pop_until(Duration::MAX), Some((Duration::from_secs(8), 'f')));
        assert_eq!(schedule.events.len(), 5, "places are used again");
    }
}
