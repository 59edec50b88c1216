//! What becomes of that which is on its way: it arrives, it is held back and sent again, or the connection is given up.

use std::io;
use std::time::Duration;

use super::{Broken, Held, Item, Side};
use crate::net::{Event, State, kind};

/// The first pause before what got lost is sent again, on top of the round trip …
const RTO_MIN: Duration = Duration::from_millis(200);
/// … and the longest.
const RTO_MAX: Duration = Duration::from_secs(60);

impl State {
    pub(in crate::net) fn arrive(&mut self, now: Duration, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = connection.ends(side);
        // What is held back goes first.
        if from.held.is_some() || from.on_its_way.is_empty() {
            return;
        }
        let (from_node, to_node) = (from.node, to.node);
        if self.is_cut(from_node, to_node) {
            let rto = RTO_MIN + 2 * self.links.latency(from_node, to_node);
            self.hold(id, side, Held { since: now, rto }, now);
            return;
        }
        self.deliver(now, id, side);
    }

    fn hold(&mut self, id: u64, side: Side, held: Held, now: Duration) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.end(side).held = Some(held);
            self.schedule(now + held.rto, Event::Retry(id, side));
        }
    }

    pub(in crate::net) fn retry(&mut self, now: Duration, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = connection.ends(side);
        let (from_node, to_node) = (from.node, to.node);
        let Some(Held { since, rto }) = from.held.take() else { return };
        if !self.is_cut(from_node, to_node) {
            return self.deliver(now, id, side);
        }
        if now >= since + self.links.gives_up_after() {
            return self.give_up(now, id);
        }
        self.hold(id, side, Held { since, rto: (rto * 2).min(RTO_MAX) }, now);
    }

    /// Whatever is due of this side's arrives.
    fn deliver(&mut self, now: Duration, id: u64, side: Side) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let (from, to) = connection.ends(side);
            let Some(segment) = from.on_its_way.pop_front_if(|segment| segment.arrives <= now) else { break };
            let at = segment.arrives;
            match segment.item {
                Item::Bytes(bytes) => {
                    self.trace.event(at, from.node, to.node, kind::BYTES, &bytes);
                    self.traffic.messages += 1;
                    self.traffic.bytes += bytes.len() as u64;
                    let (dead, link) = (to.is_dead(), connection.link);
                    if let Some(link) = link {
                        self.link_hears(now, link, side.other());
                    }
                    if dead {
                        match link {
                            None => self.answer_with_reset(now, id, side.other()),
                            Some(link) => self.answer_for_link(link, side.other()),
                        }
                        continue;
                    }
                    let Some(connection) = self.connections.get_mut(&id) else { return };
                    let (_, to) = connection.ends(side);
                    to.arrived.push_back(bytes.freeze());
                    self.woken.extend(to.reader.take());
                    self.check_heard(now, id, side);
                }
                Item::End => {
                    self.trace.event(at, from.node, to.node, kind::END, &[]);
                    to.ended = true;
                    self.woken.extend(to.reader.take());
                }
                Item::Reset(code) => {
                    let broken = code.map_or(Broken::Kind(io::ErrorKind::ConnectionReset), Broken::Reset);
                    self.trace.event(at, from.node, to.node, kind::RESET, &code.unwrap_or_default().to_be_bytes());
                    self.break_off(id, side.other(), broken);
                }
                Item::Stop(code) => {
                    self.trace.event(at, from.node, to.node, kind::STOP, &code.to_be_bytes());
                    to.unwanted.get_or_insert(code);
                    self.woken.extend(to.stopped.take());
                    self.woken.extend(to.writer.take());
                }
                Item::Open(link) => {
                    self.trace.event(at, from.node, to.node, kind::CONNECTED, &id.to_be_bytes());
                    self.stream_arrives(now, link, side.other(), id);
                }
                Item::Farewell(code, reason) => {
                    self.trace.event(at, from.node, to.node, kind::END, &code.to_be_bytes());
                    self.link_ends(id, side.other(), Some(code), reason);
                }
            }
        }
        self.forget_if_over(id);
    }

    /// Something arrived where nobody is any more.
    fn answer_with_reset(&mut self, now: Duration, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let answered = connection.end(side).on_its_way.back().is_some_and(|last| matches!(last.item, Item::Reset(_)));
        if !answered {
            self.send(now, id, side, Item::Reset(None));
        }
    }

    pub(in crate::net) fn break_off(&mut self, id: u64, side: Side, broken: Broken) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = connection.end(side);
        end.broken.get_or_insert(broken);
        self.woken.extend(end.stopped.take());
        end.arrived.clear();
        end.on_its_way.clear();
        end.held = None;
        self.woken.extend(end.reader.take());
        self.woken.extend(end.writer.take());
    }

    /// Nothing has got through for too long: both ends find that out.
    fn give_up(&mut self, now: Duration, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        self.trace.event(now, connection.dialler.node, connection.listener.node, kind::GIVEN_UP, &id.to_be_bytes());
        self.traffic.given_up += 1;
        let link = connection.link;
        for side in [Side::Dialler, Side::Listener] {
            self.break_off(id, side, Broken::Kind(io::ErrorKind::TimedOut));
            if let Some(link) = link {
                self.link_ends(link, side, None, "timed out".into());
            }
        }
        self.forget_if_over(id);
    }

    /// This side's bytes arrive; whether it hears of that is another question.
    fn check_heard(&mut self, now: Duration, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = connection.ends(side);
        if from.unheard.is_none() && self.links.is_cut(to.node, from.node) {
            from.unheard = Some(now);
            let at = now + self.links.gives_up_after();
            self.schedule(at, Event::Unheard(id, side, now));
        }
    }

    pub(in crate::net) fn unheard(&mut self, now: Duration, id: u64, side: Side, since: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = connection.ends(side);
        if from.unheard != Some(since) {
            return;
        }
        from.unheard = None;
        if self.links.is_cut(to.node, from.node) {
            self.give_up(now, id);
        }
    }

    /// Some cut is over.
    pub(in crate::net) fn heard_again(&mut self, now: Duration) {
        let mut windows = Vec::new();
        for (id, connection) in &mut self.connections {
            for side in [Side::Dialler, Side::Listener] {
                let (from, to) = connection.ends(side);
                if !self.links.is_cut(to.node, from.node) {
                    from.unheard = None;
                    if from.writer.is_some() && !from.window_scheduled {
                        from.window_scheduled = true;
                        windows.push((*id, side));
                    }
                }
            }
        }
        for (id, side) in windows {
            self.schedule(now, Event::Window(id, side));
        }
    }
}
