//! The epoch: a counter, kept on disk and raised before each use.
//!
//! It may be lost: the node meets what it said before, in its own snapshot or at its neighbours, and jumps above it. So a disk that
//! takes nothing any more is no reason to fall silent: the counter goes on in memory, and is written when there is room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hedgerow_process::durable;
use tracing::warn;

use super::{DataDirError, checked, disk, read_or_set_aside};

/// Its name in the data directory.
pub(super) const FILE: &str = "epoch";
const HEADING: &str = "hedgerow epoch v1\nepoch ";
/// The file is below 150 bytes; whatever is longer is something else.
const FILE_BYTES_MAX: u64 = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Epoch {
    path: PathBuf,
    counter: Mutex<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    /// The highest one that this process has used; 0 before the first.
    used: u64,
    /// Whether that one is on disk.
    kept: bool,
}

impl Epoch {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(FILE), counter: Mutex::new(Counter { used: 0, kept: true }) }
    }

    /// Raises it above all that were used, and above `other`.
    pub(super) fn raise_above(&self, other: u64) -> Result<u64, DataDirError> {
        let mut counter = self.lock();
        // The directory is this process's: what it has used is above what was there.
        let first = counter.used == 0;
        let last = if first { self.on_disk()? } else { counter.used };
        let epoch =
            last.max(other).checked_add(1).ok_or_else(|| DataDirError::EpochExhausted { path: self.path.clone() })?;
        counter.kept = match self.write(epoch) {
            Ok(()) => true,
            // Who starts a node reads why it cannot keep what it must; a full disk comes by itself, and goes.
            Err(error) if first && !durable::is_full(&error) => {
                return Err(disk("write the epoch to", &self.path)(error));
            }
            Err(error) => {
                let file = self.path.display();
                warn!(%file, %error, epoch, "the epoch is not on disk: the node goes on, and writes it when that works again");
                false
            }
        };
        counter.used = epoch;
        Ok(epoch)
    }

    /// Whether the one that is used is on disk.
    pub(super) fn is_kept(&self) -> bool {
        self.lock().kept
    }

    /// Writes the one that is used, if it is not on disk.
    pub(super) fn keep(&self) -> Result<(), DataDirError> {
        let mut counter = self.lock();
        if !counter.kept {
            self.write(counter.used).map_err(disk("write the epoch to", &self.path))?;
            counter.kept = true;
        }
        Ok(())
    }

    fn write(&self, epoch: u64) -> io::Result<()> {
        durable::replace(&self.path, checked::seal(&format!("{HEADING}{epoch}\n")).as_bytes())
    }

    /// What is there; 0 where there is nothing, or nothing good: that is no reason to stop, see the module.
    fn on_disk(&self) -> Result<u64, DataDirError> {
        let read = |content: Vec<u8>| {
            let text = checked::open(&content)?;
            let epoch = text.strip_prefix(HEADING).and_then(|rest| rest.strip_suffix('\n')?.parse().ok());
            epoch.ok_or(checked::Damaged::Content)
        };
        Ok(read_or_set_aside(&self.path, FILE_BYTES_MAX, read)?.unwrap_or(0))
    }

    fn lock(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
