//! A connection: two directions, each with what is on its way, what has arrived and is not read yet, and how much may be written.
//!
//! ```text
//!  write ──▶ on_its_way (in order, each with its time) ──▶ arrived ──▶ read
//!              │ cut, or the machine is off                              │
//!              └ held: sent again after the RTO, twice the RTO, …        └ acknowledged one latency later: room to write again
//! ```

use std::collections::VecDeque;
use std::io;
use std::task::Waker;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hedgerow_sim_model::links::Direction;

use super::{Event, State};

mod arrivals;

/// Bytes of one direction that are sent and not acknowledged, at most: what Linux comes to on such links.
const WINDOW_BYTES: usize = 256 * 1024;
/// Writes of one moment travel together, up to so much.
const SEGMENT_BYTES_MAX: usize = 64 * 1024;
/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Who dialled.
    Dialler,
    /// Who was dialled.
    Listener,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Listener,
            Self::Listener => Self::Dialler,
        }
    }
}

enum Item {
    Bytes(BytesMut),
    End,
    /// With the code of a tunnel's stream, if it is one.
    Reset(Option<u32>),
    /// A tunnel's stream is read no more, for this reason.
    Stop(u32),
    /// A stream of this link begins.
    Open(u64),
    /// The link whose first connection this is ends.
    Farewell(u32, String),
}

/// How an end has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// As connections break.
    Kind(io::ErrorKind),
    /// The other side has reset a tunnel's stream with this code.
    Reset(u32),
}

struct Segment {
    sent: Duration,
    arrives: Duration,
    item: Item,
}

/// Something does not get through.
#[derive(Clone, Copy)]
struct Held {
    since: Duration,
    rto: Duration,
}

struct End {
    node: u32,
    direction: Direction,
    on_its_way: VecDeque<Segment>,
    held: Option<Held>,
    /// What is written and not acknowledged.
    in_flight: usize,
    /// Acknowledgements that come.
    acknowledged: VecDeque<(Duration, usize)>,
    /// Acknowledgements do not come since then.
    unheard: Option<Duration>,
    window_scheduled: bool,
    arrived: VecDeque<Bytes>,
    /// The other side has said its last.
    ended: bool,
    /// This side has.
    finished: bool,
    broken: Option<Broken>,
    /// The other side reads no more of a tunnel's stream, for this reason. What it has said can still be read.
    unwanted: Option<u32>,
    /// Nobody holds this end any more.
    gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Waits for the other side to give up.
    stopped: Option<Waker>,
}

impl End {
    fn new(node: u32) -> Self {
        Self {
            node,
            direction: Direction::default(),
            on_its_way: VecDeque::new(),
            held: None,
            in_flight: 0,
            acknowledged: VecDeque::new(),
            unheard: None,
            window_scheduled: false,
            arrived: VecDeque::new(),
            ended: false,
            finished: false,
            broken: None,
            unwanted: None,
            gone: false,
            reader: None,
            writer: None,
            stopped: None,
        }
    }

    /// Why nothing can be written any more.
    fn no_writing(&self) -> Option<Broken> {
        self.broken.or(self.unwanted.map(Broken::Reset))
    }

    fn is_dead(&self) -> bool {
        self.gone || self.broken.is_some()
    }
}

/// A connection.
pub(super) struct Connection {
    dialler: End,
    listener: End,
    /// The link that it belongs to.
    link: Option<u64>,
}

impl Connection {
    pub(super) fn new(dialler: u32, listener: u32) -> Self {
        Self { dialler: End::new(dialler), listener: End::new(listener), link: None }
    }

    pub(super) fn set_link(&mut self, link: u64) {
        self.link = Some(link);
    }

    /// Whether this side of it is no more.
    pub(super) fn is_dead_at(&mut self, side: Side) -> bool {
        self.end(side).is_dead()
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Dialler => &mut self.dialler,
            Side::Listener => &mut self.listener,
        }
    }

    pub(super) fn node(&self, side: Side) -> u32 {
        match side {
            Side::Dialler => self.dialler.node,
            Side::Listener => self.listener.node,
        }
    }

    /// The one that sends, and the one that is sent to.
    fn ends(&mut self, from: Side) -> (&mut End, &mut End) {
        match from {
            Side::Dialler => (&mut self.dialler, &mut self.listener),
            Side::Listener => (&mut self.listener, &mut self.dialler),
        }
    }

    /// Nobody can tell any more whether it is there.
    fn is_over(&self) -> bool {
        let over = |end: &End| end.gone && end.on_its_way.is_empty();
        over(&self.dialler) && over(&self.listener)
    }
}

/// What became of a read or a write.
pub(super) enum Progress {
    /// So many bytes. None read is the end.
    Bytes(usize),
    /// It is to be tried again when the waker says so.
    Wait,
    /// The connection is broken.
    Broken(Broken),
}

impl State {
    /// Reads what has arrived.
    pub(super) fn read(&mut self, now: Duration, id: u64, side: Side, into: &mut [u8], waker: &Waker) -> Progress {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Broken(Broken::Kind(io::ErrorKind::NotConnected));
        };
        let (writer, reader) = connection.ends(side.other());
        let mut read = 0;
        while let Some(chunk) = reader.arrived.front_mut() {
            let length = chunk.len().min(into.len() - read);
            chunk.copy_to_slice(&mut into[read..read + length]);
            read += length;
            if chunk.has_remaining() {
                break;
            }
            reader.arrived.pop_front();
        }
        if read > 0 {
            let at = now + self.links.latency(reader.node, writer.node);
            writer.acknowledged.push_back((at, read));
            if writer.writer.is_some() && !writer.window_scheduled {
                writer.window_scheduled = true;
                self.schedule(at, Event::Window(id, side.other()));
            }
            return Progress::Bytes(read);
        }
        match reader.broken {
            Some(broken) => Progress::Broken(broken),
            None if reader.ended || into.is_empty() => Progress::Bytes(0),
            None => {
                reader.reader = Some(waker.clone());
                Progress::Wait
            }
        }
    }

    /// Writes as much as there is room for.
    pub(super) fn write(&mut self, now: Duration, id: u64, side: Side, bytes: &[u8], waker: &Waker) -> Progress {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Broken(Broken::Kind(io::ErrorKind::NotConnected));
        };
        let (writer, reader) = connection.ends(side);
        if let Some(broken) = writer.no_writing() {
            return Progress::Broken(broken);
        }
        if writer.finished {
            return Progress::Broken(Broken::Kind(io::ErrorKind::BrokenPipe));
        }
        // Acknowledgements come the other way.
        if !self.links.is_cut(reader.node, writer.node) {
            while let Some((_, read)) = writer.acknowledged.pop_front_if(|(at, _)| *at <= now) {
                writer.in_flight -= read;
            }
        }
        let length = bytes.len().min(WINDOW_BYTES - writer.in_flight);
        if length == 0 && !bytes.is_empty() {
            writer.writer = Some(waker.clone());
            if let Some((at, _)) = writer.acknowledged.front().copied().filter(|_| !writer.window_scheduled) {
                writer.window_scheduled = true;
                self.schedule(at.max(now), Event::Window(id, side));
            }
            return Progress::Wait;
        }
        writer.in_flight += length;
        let bytes = &bytes[..length];
        match writer.on_its_way.back_mut() {
            Some(Segment { sent, item: Item::Bytes(open), .. })
                if *sent == now && open.len() + length <= SEGMENT_BYTES_MAX =>
            {
                open.extend_from_slice(bytes);
            }
            _ => self.send(now, id, side, Item::Bytes(BytesMut::from(bytes))),
        }
        Progress::Bytes(length)
    }

    /// Says the last of one side.
    pub(super) fn finish(&mut self, now: Duration, id: u64, side: Side) -> Result<(), Broken> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Err(Broken::Kind(io::ErrorKind::NotConnected));
        };
        let end = connection.end(side);
        if let Some(broken) = end.broken {
            return Err(broken);
        }
        if !std::mem::replace(&mut end.finished, true) {
            self.send(now, id, side, Item::End);
        }
        Ok(())
    }

    /// Lets go of one side. What it has written still arrives; if there was something that it has not read, the other side sees a
    /// reset (as Linux does it).
    pub(super) fn close(&mut self, now: Duration, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = connection.end(side);
        if std::mem::replace(&mut end.gone, true) {
            return;
        }
        let unread = !end.arrived.is_empty();
        let (broken, finished) = (end.broken.is_some(), std::mem::replace(&mut end.finished, true));
        end.arrived.clear();
        self.woken.extend(end.reader.take());
        self.woken.extend(end.writer.take());
        if !broken {
            match (unread, finished) {
                (true, _) => self.send(now, id, side, Item::Reset(None)),
                (false, false) => self.send(now, id, side, Item::End),
                (false, true) => {}
            }
        }
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: u64) {
        if self.connections.get(&id).is_some_and(Connection::is_over) {
            self.connections.remove(&id);
        }
    }

    /// Gives up both directions of a tunnel's stream: what has not arrived yet is lost, and the other side is told why.
    pub(super) fn reset(&mut self, now: Duration, id: u64, side: Side, code: u32) {
        self.drop_stream(now, id, side, Some(Item::Reset(Some(code))));
    }

    /// Lets go of a tunnel's stream, as QUIC does. What has been said to its end still arrives, and the other side is told that nobody
    /// reads what it says, if it has not said its last.
    pub(super) fn let_go(&mut self, now: Duration, id: u64, side: Side, code: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = connection.end(side);
        match (end.finished, end.ended) {
            (true, ended) => self.drop_stream(now, id, side, (!ended).then_some(Item::Stop(code))),
            (false, _) => self.reset(now, id, side, code),
        }
    }

    fn drop_stream(&mut self, now: Duration, id: u64, side: Side, last: Option<Item>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = connection.end(side);
        if std::mem::replace(&mut end.gone, true) {
            return;
        }
        end.finished = true;
        end.arrived.clear();
        let broken = end.broken.is_some();
        if let Some(last) = last.filter(|_| !broken) {
            self.send(now, id, side, last);
        }
        self.forget_if_over(id);
    }

    /// Why the other side has given a stream up, if it has.
    pub(super) fn stopped(&mut self, id: u64, side: Side, waker: &Waker) -> Option<Broken> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Some(Broken::Kind(io::ErrorKind::NotConnected));
        };
        let end = connection.end(side);
        let why = end.no_writing();
        if why.is_none() {
            end.stopped = Some(waker.clone());
        }
        why
    }

    /// A stream of a link begins: its other end comes with its first packet.
    pub(super) fn open_stream(&mut self, now: Duration, link: u64, from: (u32, Side), to: u32) -> u64 {
        let id = self.number();
        let (dialler, listener) = if from.1 == Side::Dialler { (from.0, to) } else { (to, from.0) };
        let mut connection = Connection::new(dialler, listener);
        connection.link = Some(link);
        self.connections.insert(id, connection);
        self.send(now, id, from.1, Item::Open(link));
        id
    }

    /// Says on its first connection that a link ends.
    pub(super) fn farewell(&mut self, now: Duration, link: u64, side: Side, code: u32, reason: String) {
        self.send(now, link, side, Item::Farewell(code, reason));
    }

    fn send(&mut self, now: Duration, id: u64, side: Side, item: Item) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = connection.ends(side);
        let bytes = if let Item::Bytes(bytes) = &item { bytes.len() } else { 0 };
        let arrives = self.links.arrival(now, from.node, to.node, bytes, &mut from.direction);
        from.on_its_way.push_back(Segment { sent: now, arrives, item });
        self.schedule(arrives, Event::Arrive(id, side));
    }

    pub(super) fn window(&mut self, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = connection.end(side);
        end.window_scheduled = false;
        self.woken.extend(end.writer.take());
    }

    /// A machine loses its power.
    pub(super) fn power_off(&mut self, node: u32) {
        self.silence_links(node);
        if let Some(machine) = self.machines.get_mut(node as usize) {
            machine.up = false;
        }
        let places: Vec<_> = self.listeners.range((node, 0)..=(node, u16::MAX)).map(|(place, _)| *place).collect();
        for place in places {
            if let Some(listening) = self.listeners.remove(&place) {
                self.woken.extend(listening.into_waker());
            }
        }
        let of_it = |(id, connection): (&u64, &Connection)| {
            let (dialler, listener) = (connection.dialler.node == node, connection.listener.node == node);
            [dialler.then_some((*id, Side::Dialler)), listener.then_some((*id, Side::Listener))]
        };
        let ends: Vec<_> = self.connections.iter().flat_map(of_it).flatten().collect();
        for (id, side) in ends {
            self.vanish(id, side);
        }
        // Whatever it was dialling has come to nothing.
        let dialled = self.attempts.iter().filter(|(_, attempt)| attempt.is_from(node)).map(|(id, _)| *id);
        for id in dialled.collect::<Vec<_>>() {
            self.give_up_dialling(id);
        }
    }

    /// One end is no more, and the other is not told.
    pub(super) fn vanish(&mut self, id: u64, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = connection.end(side);
        end.gone = true;
        end.finished = true;
        end.arrived.clear();
        // What is on the wire arrives; what would have to be sent again does not.
        if end.held.take().is_some() {
            end.on_its_way.clear();
        }
        end.broken.get_or_insert(Broken::Kind(io::ErrorKind::NotConnected));
        self.woken.extend(end.stopped.take());
        self.woken.extend(end.reader.take());
        self.woken.extend(end.writer.take());
        self.forget_if_over(id);
    }
}
