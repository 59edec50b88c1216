//! What will happen, in order of virtual time, and at one time in the order in which it was put there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub struct Schedule<T> {
    heap: BinaryHeap<Reverse<Scheduled<T>>>,
    count: u64,
}

#[derive(Debug)]
struct Scheduled<T> {
    at: Duration,
    number: u64,
    event: T,
}

impl<T> PartialEq for Scheduled<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl<T> Eq for Scheduled<T> {}
impl<T> PartialOrd for Scheduled<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Scheduled<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), count: 0 }
    }
}

impl<T> Schedule<T> {
    /// This happens then.
    pub fn push(&mut self, at: Duration, event: T) {
        self.count += 1;
        self.heap.push(Reverse(Scheduled { at, number: self.count, event }));
    }

    /// When the next thing happens.
    pub fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(next)| next.at)
    }

    /// The next thing, if it happens by then.
    pub fn pop_until(&mut self, until: Duration) -> Option<(Duration, T)> {
        self.next_at().filter(|at| *at <= until)?;
        self.heap.pop().map(|Reverse(next)| (next.at, next.event))
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
    }
}
