//! What a process can do: send, dial, close, ask to be called again, and look at its own clock. Nothing else.

use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::snapshot::Snapshot;

use crate::book::Book;
use crate::clock::LocalClock;
use crate::message::{Link, Message};
use crate::net::{ConnectionId, Event, Input, Net};
use crate::settings::Settings;

/// A snapshot on a disk.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    /// As it was stored: the bytes are made when somebody reads them, which few do.
    Whole(Snapshot),
    /// As it is since a fault of the disk.
    Damaged(Vec<u8>),
}

impl Stored {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Whole(snapshot) => snapshot.encode(),
            Self::Damaged(bytes) => bytes.clone(),
        }
    }
}

/// A disk, as far as the node minds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    /// The epoch that was used last.
    pub(crate) epoch: u64,
    /// The registry as it was.
    pub(crate) snapshot: Option<Stored>,
    /// How many faults say that nothing can be written.
    pub(crate) full: u32,
}

/// The disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskFull;

impl Disk {
    /// Raises the epoch above what is there, and above this.
    pub(crate) fn raise_epoch(&mut self, above: u64) -> Result<u64, DiskFull> {
        if self.full > 0 {
            return Err(DiskFull);
        }
        self.epoch = self.epoch.max(above) + 1;
        Ok(self.epoch)
    }

    /// Puts the registry there; if it cannot be, what was there stays.
    pub(crate) fn store(&mut self, snapshot: Snapshot) {
        if self.full == 0 {
            self.snapshot = Some(Stored::Whole(snapshot));
        }
    }
}

/// A process's view of the world, for as long as it is told one thing.
pub(crate) struct Context<'a> {
    pub(crate) net: &'a mut Net,
    pub(crate) book: &'a mut Book,
    pub(crate) disk: &'a mut Disk,
    pub(crate) clock: &'a LocalClock,
    pub(crate) settings: &'a Settings,
    /// Its index.
    pub(crate) me: u32,
    /// Which run of it this is.
    pub(crate) run: u32,
}

impl Context<'_> {
    /// What its clock shows.
    pub(crate) fn now(&self) -> Time {
        self.clock.read(self.net.now)
    }

    /// Something is wrong here, if this one keeps the rules.
    pub(crate) fn wrong(&mut self, rule: &'static str, what: String) {
        let (at, me) = (self.net.now, self.me);
        if !self.book.untrusted.contains(&self.book.id(me)) {
            self.book.wrong(at, rule, Some(me), what);
        }
    }

    pub(crate) fn send(&mut self, connection: ConnectionId, message: Message) {
        self.net.send(connection, self.me, message);
    }

    pub(crate) fn close(&mut self, connection: ConnectionId) {
        self.net.close(connection, self.me);
    }

    pub(crate) fn dial(&mut self, to: u32, link: Link) {
        self.net.dial(self.me, self.run, to, link);
    }

    /// Tells itself something after this long.
    pub(crate) fn after(&mut self, pause: Duration, input: Input) {
        let (node, run) = (self.me, self.run);
        self.net.schedule(self.net.now + pause, Event::Tell { node, run, input });
    }
}
