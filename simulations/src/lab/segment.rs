//! The public segment: a switch, to each of whose ports leads a line with delay, jitter, loss and a rate. Pure: frames and time come in,
//! frames come out when they are due.
//!
//! ```text
//! alder ══ line ══▶ port │ cut? whose is the address? │ port ══ line ══▶ birch
//!          loss, rate, delay                                     loss, rate, delay
//! ```
//!
//! A frame goes along two lines, so what is between two places is the sum of both. The kernel has a queue that does this (netem), and
//! not every kernel has it built in.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use hedgerow_sim_model::span::Span;

use super::traffic::{KINDS, Kind};

/// Frames on their way at once. More than a gigabit and 100 ms: what is beyond that is a loop and no traffic.
const FRAMES_MAX: usize = 16_384;
/// Each port has one device with one address; a guest that makes up more is not believed.
const ADDRESSES_MAX: usize = 1024;
/// Destination, source, type.
const HEADER_BYTES: usize = 14;

/// A line between a place and the segment, the same both ways.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Line {
    /// One way.
    pub(super) delay: Span,
    /// On top of it, for each frame: from nothing up to so much.
    pub(super) jitter: Span,
    /// Whether jitter lets frames overtake each other.
    pub(super) reorder: bool,
    /// The share of the frames that is lost, each way.
    pub(super) loss: f64,
    /// Each way, in kbit/s; 0 is without bound.
    pub(super) rate_kbit: u64,
    /// A frame that would wait longer for the rate is dropped.
    pub(super) queue: Span,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            delay: Span::millis(0),
            jitter: Span::millis(0),
            reorder: false,
            loss: 0.0,
            rate_kbit: 0,
            queue: Span::millis(200),
        }
    }
}

impl Line {
    /// Whether there can be such a line.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0.0..=0.9).contains(&self.loss) {
            return Err(format!("a line loses {} of its frames, and it must be from 0 to 0.9", self.loss));
        }
        if self.delay.0 + self.jitter.0 > Duration::from_secs(10) {
            return Err("a line is longer than 10s: nothing would get through it in time".to_owned());
        }
        Ok(())
    }
}

/// Which port of the segment.
pub(super) type Port = usize;

/// What does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cut {
    /// What this port sends.
    From(Port),
    /// What would go to this port.
    To(Port),
    /// What goes from these ports to others, or comes from there.
    Apart(BTreeSet<Port>),
    /// What this port sends or would receive, tunnels to the entry over QUIC aside.
    AllButTunnels(Port),
}

impl Cut {
    fn stops(&self, from: Port, to: Port, kind: Kind) -> bool {
        match self {
            Self::From(port) => from == *port,
            Self::To(port) => to == *port,
            Self::Apart(ports) => ports.contains(&from) != ports.contains(&to),
            // Who has which address must be known for any of it.
            Self::AllButTunnels(port) => (from == *port || to == *port) && !matches!(kind, Kind::Tunnel | Kind::Other),
        }
    }
}

/// Of one port, since the beginning, with the headers of Ethernet: what the device in the place counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Bytes that the place has sent.
    pub(super) sent_bytes: u64,
    /// Bytes that have reached it.
    pub(super) received_bytes: u64,
    /// Both together, of each kind, in the order of [`KINDS`].
    pub(super) bytes_of: [u64; KINDS.len()],
    /// Frames to or from it that the line has lost.
    pub(super) lost: u64,
}

/// One direction of a line.
#[derive(Debug, Default)]
struct Way {
    /// When the rate lets the next frame begin.
    free: Duration,
    /// When the last frame arrives that was sent.
    arrived_last: Duration,
}

#[derive(Debug)]
struct Plug {
    line: Line,
    up: Way,
    down: Way,
    counters: Counters,
}

/// A frame on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Travelling {
    due: Duration,
    /// Of two that are due at once the one that was sent first comes first.
    number: u64,
    from: Port,
    /// Where to, once it is on the second line.
    to: Option<Port>,
    frame: Box<[u8]>,
}

/// The segment.
#[derive(Debug)]
pub(super) struct Segment {
    plugs: Vec<Plug>,
    addresses: BTreeMap<[u8; 6], Port>,
    travelling: BinaryHeap<Reverse<Travelling>>,
    sent: u64,
    cuts: BTreeMap<u64, Cut>,
    cuts_made: u64,
    random: fastrand::Rng,
    entry_port: u16,
}

impl Counters {
    fn count(&mut self, frame: &[u8], entry_port: u16) {
        let kind = Kind::of(frame, entry_port);
        for (count, _) in self.bytes_of.iter_mut().zip(KINDS).filter(|(_, of)| *of == kind) {
            *count += frame.len() as u64;
        }
    }
}

impl Segment {
    /// One with a port for each of these lines. `entry_port` is what tells the entry's traffic from the rest.
    pub(super) fn new(lines: impl IntoIterator<Item = Line>, seed: u64, entry_port: u16) -> Self {
        let plug = |line| Plug { line, up: Way::default(), down: Way::default(), counters: Counters::default() };
        Self {
            plugs: lines.into_iter().map(plug).collect(),
            addresses: BTreeMap::new(),
            travelling: BinaryHeap::new(),
            sent: 0,
            cuts: BTreeMap::new(),
            cuts_made: 0,
            random: fastrand::Rng::with_seed(seed),
            entry_port,
        }
    }

    /// From now on this does not pass, nor what is on its way. The number is for [`Segment::mend`].
    pub(super) fn cut(&mut self, cut: Cut) -> u64 {
        self.cuts_made += 1;
        self.cuts.insert(self.cuts_made, cut);
        self.cuts_made
    }

    /// Undoes a cut.
    pub(super) fn mend(&mut self, number: u64) {
        self.cuts.remove(&number);
    }

    /// What a port has seen.
    pub(super) fn counters(&self, port: Port) -> Counters {
        self.plugs.get(port).map(|plug| plug.counters).unwrap_or_default()
    }

    /// A place has sent this.
    pub(super) fn take(&mut self, now: Duration, from: Port, frame: &[u8]) {
        let Some(source) = frame.get(6..12).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) else {
            return;
        };
        let Some(plug) = self.plugs.get_mut(from).filter(|_| frame.len() >= HEADER_BYTES) else {
            return;
        };
        plug.counters.sent_bytes += frame.len() as u64;
        plug.counters.count(frame, self.entry_port);
        if self.addresses.len() < ADDRESSES_MAX || self.addresses.contains_key(&source) {
            self.addresses.insert(source, from);
        }
        self.send(now, from, None, frame.into());
    }

    /// When the next frame is due, if any is on its way.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.travelling.peek().map(|next| next.0.due)
    }

    /// The next frame that has arrived by now, and at which port.
    pub(super) fn next_arrived(&mut self, now: Duration) -> Option<(Port, Box<[u8]>)> {
        loop {
            if self.next_due()? > now {
                return None;
            }
            let Travelling { due, from, to, frame, .. } = self.travelling.pop()?.0;
            match to {
                None => self.switch(due, from, frame),
                Some(to) if self.is_cut(from, to, &frame) => self.lose(to),
                Some(to) => {
                    if let Some(plug) = self.plugs.get_mut(to) {
                        plug.counters.received_bytes += frame.len() as u64;
                        plug.counters.count(&frame, self.entry_port);
                    }
                    return Some((to, frame));
                }
            }
        }
    }

    /// At the end of the first line: to the port of its address, or to all others where nobody is known to have it.
    fn switch(&mut self, now: Duration, from: Port, frame: Box<[u8]>) {
        let destination = frame.get(..6).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).unwrap_or([0xff; 6]);
        let known = self.addresses.get(&destination).copied().filter(|_| destination[0] & 1 == 0);
        if let Some(to) = known {
            if to != from {
                self.send(now, from, Some(to), frame);
            }
            return;
        }
        for to in (0..self.plugs.len()).filter(|to| *to != from) {
            self.send(now, from, Some(to), frame.clone());
        }
    }

    /// Puts a frame on a line: `from`'s own, or the one to `to`.
    fn send(&mut self, now: Duration, from: Port, to: Option<Port>, frame: Box<[u8]>) {
        let at = to.unwrap_or(from);
        let cut = to.is_some_and(|to| self.is_cut(from, to, &frame));
        let Some(plug) = self.plugs.get_mut(at) else {
            return;
        };
        let way = if to.is_some() { &mut plug.down } else { &mut plug.up };
        let arrives = way.arrives(&plug.line, now, frame.len(), &mut self.random);
        let Some(due) = arrives.filter(|_| !cut && self.travelling.len() < FRAMES_MAX) else {
            self.lose(at);
            return;
        };
        self.sent += 1;
        self.travelling.push(Reverse(Travelling { due, number: self.sent, from, to, frame }));
    }

    fn is_cut(&self, from: Port, to: Port, frame: &[u8]) -> bool {
        !self.cuts.is_empty() && {
            let kind = Kind::of(frame, self.entry_port);
            self.cuts.values().any(|cut| cut.stops(from, to, kind))
        }
    }

    fn lose(&mut self, port: Port) {
        if let Some(plug) = self.plugs.get_mut(port) {
            plug.counters.lost += 1;
        }
    }
}

impl Way {
    /// When a frame arrives that is sent now; not at all if it is lost or the queue is full.
    fn arrives(&mut self, line: &Line, now: Duration, bytes: usize, random: &mut fastrand::Rng) -> Option<Duration> {
        if line.loss > 0.0 && random.f64() < line.loss {
            return None;
        }
        let mut left = now;
        if line.rate_kbit > 0 {
            let begins = self.free.max(now);
            if begins - now > line.queue.0 {
                return None;
            }
            left = begins + Duration::from_secs_f64(bytes as f64 * 8.0 / (line.rate_kbit as f64 * 1000.0));
            self.free = left;
        }
        let arrives = left + line.delay.0 + line.jitter.0.mul_f64(random.f64());
        if line.reorder {
            return Some(arrives);
        }
        self.arrived_last = self.arrived_last.max(arrives);
        Some(self.arrived_last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// From the address with the number `from` to the one with the number `to`; 255 is everybody.
    fn frame(from: u8, to: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES + payload];
        frame[..6].fill(if to == 255 { 255 } else { 0 });
        frame[5] = to;
        frame[11] = from;
        frame
    }

    fn segment<const N: usize>(lines: [Line; N]) -> Segment {
        let mut segment = Segment::new(lines, 7, 443);
        // Everybody is heard once, so that the switch knows where they are.
        for port in 0..N {
            segment.addresses.insert([0, 0, 0, 0, 0, port as u8], port);
        }
        segment
    }

    /// All that arrives until then.
    fn arrivals(segment: &mut Segment, until: Duration) -> Vec<(Duration, Port, usize)> {
        let mut all = Vec::new();
        while let Some(due) = segment.next_due().filter(|due| *due <= until) {
            while let Some((port, frame)) = segment.next_arrived(due) {
                all.push((due, port, frame.len()));
            }
        }
        all
    }

    #[test]
    fn a_frame_is_as_late_as_both_of_its_lines_are_long() {
        let line = |delay| Line { delay: Span::millis(delay), ..Line::default() };
        let mut segment = segment([line(20), line(5), line(0)]);
        segment.take(ms(100), 0, &frame(0, 1, 100));
        assert_eq!(arrivals(&mut segment, ms(1000)), [(ms(125), 1, 114)]);
        assert_eq!(segment.counters(0).sent_bytes, 114);
        assert_eq!(segment.counters(1).received_bytes, 114);
        assert_eq!(segment.counters(2), Counters::default());
    }

    #[test]
    fn what_is_for_everybody_or_for_somebody_unknown_goes_to_all_others() {
        let mut segment = segment([Line::default(); 3]);
        segment.take(ms(0), 0, &frame(0, 255, 0));
        segment.take(ms(0), 1, &frame(1, 99, 0));
        let ports: Vec<Port> = arrivals(&mut segment, ms(1)).into_iter().map(|(_, port, _)| port).collect();
        assert_eq!(ports, [1, 2, 0, 2]);
    }

    #[test]
    fn jitter_lets_nothing_overtake_unless_it_is_meant_to() {
        let line = |reorder| Line { jitter: Span::millis(50), reorder, ..Line::default() };
        for reorder in [false, true] {
            let mut segment = segment([line(reorder), Line::default()]);
            for number in 0..200 {
                segment.take(ms(number as u64), 0, &frame(0, 1, number));
            }
            let lengths: Vec<usize> =
                arrivals(&mut segment, ms(1000)).into_iter().map(|(_, _, length)| length).collect();
            assert_eq!(lengths.len(), 200);
            assert_eq!(lengths.is_sorted(), !reorder);
        }
    }

    #[test]
    fn a_rate_is_kept_and_what_would_wait_too_long_is_dropped() {
        // 1,000 bytes take 10 ms, so 20 of them are in the queue, and one is on the line.
        let line = Line { rate_kbit: 800, queue: Span::millis(200), ..Line::default() };
        let mut segment = segment([line, Line::default()]);
        for _ in 0..100 {
            segment.take(ms(0), 0, &frame(0, 1, 1000 - HEADER_BYTES));
        }
        let arrived = arrivals(&mut segment, ms(10_000));
        assert_eq!(arrived.len(), 21);
        assert_eq!(arrived[20].0, ms(210));
        assert_eq!(segment.counters(0).lost, 79);
    }

    #[test]
    fn the_share_that_is_lost_is_the_one_that_was_asked_for() {
        let mut segment = segment([Line { loss: 0.1, ..Line::default() }, Line::default()]);
        for number in 0..10_000 {
            segment.take(ms(number), 0, &frame(0, 1, 0));
            while segment.next_arrived(ms(number)).is_some() {}
        }
        assert!((900..1100).contains(&segment.counters(0).lost), "{:?}", segment.counters(0));
    }

    #[test]
    fn a_cut_stops_one_direction_and_what_is_on_its_way() {
        let mut segment = segment([Line { delay: Span::millis(10), ..Line::default() }, Line::default()]);
        segment.take(ms(0), 0, &frame(0, 1, 0));
        let cut = segment.cut(Cut::From(0));
        segment.take(ms(1), 0, &frame(0, 1, 0));
        segment.take(ms(1), 1, &frame(1, 0, 0));
        assert_eq!(arrivals(&mut segment, ms(100)), [(ms(11), 0, 14)]);
        segment.mend(cut);
        segment.take(ms(200), 0, &frame(0, 1, 0));
        assert_eq!(arrivals(&mut segment, ms(300)), [(ms(210), 1, 14)]);
    }

    #[test]
    fn two_parts_that_are_apart_hear_nothing_of_each_other() {
        let mut segment = segment([Line::default(); 4]);
        segment.cut(Cut::Apart([0, 1].into()));
        segment.take(ms(0), 0, &frame(0, 255, 0));
        segment.take(ms(0), 3, &frame(3, 255, 0));
        let ports: Vec<Port> = arrivals(&mut segment, ms(1)).into_iter().map(|(_, port, _)| port).collect();
        assert_eq!(ports, [1, 2]);
    }

    #[test]
    fn no_frame_is_too_short_or_from_too_far() {
        let mut segment = segment([Line::default(); 2]);
        segment.take(ms(0), 0, &[]);
        segment.take(ms(0), 0, &[0; 13]);
        segment.take(ms(0), 9, &frame(0, 1, 0));
        assert_eq!(segment.next_due(), None);
    }
}
