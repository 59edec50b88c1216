//! The thread that carries the frames of the [`Segment`] between the devices of its ports.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::people::ENTRY_PORT;
use super::segment::{Counters, Cut, Line, Port, Segment};
use super::tap::{FRAME_BYTES_MAX, Tap};

/// Frames that one port may hand over before the others have their turn.
const FRAMES_AT_ONCE: usize = 64;

/// A segment that runs. Dropped, its thread ends, and its devices go.
#[derive(Debug)]
pub(super) struct Wire {
    segment: Arc<Mutex<Segment>>,
    /// Its end is what tells the thread to end.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Carries between these devices, each at the end of a line of its own; the first one is port 0.
    pub(super) fn start(ports: Vec<(Tap, Line)>, seed: u64) -> Result<Self> {
        let (taps, lines): (Vec<_>, Vec<_>) = ports.into_iter().unzip();
        let segment = Arc::new(Mutex::new(Segment::new(lines, seed, ENTRY_PORT)));
        let (stop, stopped) = UnixStream::pair().context("no pair of sockets")?;
        let theirs = segment.clone();
        let carry = move || {
            if let Err(error) = carry(&taps, &theirs, &stopped) {
                tracing::error!(%error, "the lines of the lab carry nothing any more");
            }
        };
        let thread = std::thread::Builder::new().name("wire".to_owned()).spawn(carry)?;
        Ok(Self { segment, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on this does not pass.
    pub(super) fn cut(&self, cut: Cut) -> u64 {
        lock(&self.segment).cut(cut)
    }

    /// Undoes a cut.
    pub(super) fn mend(&self, number: u64) {
        lock(&self.segment).mend(number);
    }

    /// What a port has seen.
    pub(super) fn counters(&self, port: Port) -> Counters {
        lock(&self.segment).counters(port)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(segment: &Mutex<Segment>) -> MutexGuard<'_, Segment> {
    segment.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carry(taps: &[Tap], segment: &Mutex<Segment>, stopped: &UnixStream) -> Result<()> {
    let began = Instant::now();
    let mut buffer = [0; FRAME_BYTES_MAX];
    let mut waiting: Vec<PollFd<'_>> = taps.iter().map(|tap| PollFd::new(tap, PollFlags::IN)).collect();
    waiting.push(PollFd::new(stopped, PollFlags::IN));
    loop {
        let due = lock(segment).next_due();
        let rest = due.map(|due| timespec(due.saturating_sub(began.elapsed()))).transpose()?;
        match poll(&mut waiting, rest.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("nothing can be waited for"),
        }
        let (devices, stop) = waiting.split_at(taps.len());
        if stop.iter().any(|stop| !stop.revents().is_empty()) {
            return Ok(());
        }
        let mut segment = lock(segment);
        for (port, _) in devices.iter().enumerate().filter(|(_, device)| device.revents().contains(PollFlags::IN)) {
            for _ in 0..FRAMES_AT_ONCE {
                let Some(frame) = taps[port].read(&mut buffer) else {
                    break;
                };
                segment.take(began.elapsed(), port, frame);
            }
        }
        while let Some((port, frame)) = segment.next_arrived(began.elapsed()) {
            taps[port].write(&frame);
        }
    }
}

fn timespec(duration: Duration) -> Result<Timespec> {
    Timespec::try_from(duration).context("a time that is too long")
}
