//! A node's data directory: its identity, its epoch, and what it last knew of the federation.
//!
//! ```text
//! lock              held by the process that uses the directory; says which one
//! identity.key      the secret key, made on first start, never written again
//! epoch             a counter, raised before each use
//! entries           which federation each entry was of: where the node belongs while none of them answers
//! registry-…        the last snapshot of a federation's registry
//! ….corrupt-N       what was damaged, as it was found
//! ```
//!
//! Everything here blocks, and is small. Each file is replaced whole, and carries a hash or its like, so that one that was torn or
//! changed is noticed. Only the loss of `identity.key` costs anything, so that one which is damaged stops the start, and is left as it is.
//! Any other is named in the log, set aside, and done without: without `epoch` the node meets its own earlier records and jumps above them,
//! without a snapshot it asks its neighbours, without `entries` it waits for an entry.
//!
//! A full disk stops nothing that runs: what cannot be written is tried again.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hedgerow_process::durable;
use hedgerow_process::exit::Failure;
use hedgerow_process::key_file::{self, KeyFileError};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::key::SecretKey;
use tokio::task::JoinError;
use tracing::{info, warn};

mod aside;
mod checked;
mod epoch;

use epoch::Epoch;

const KEY: &str = "identity.key";
const ENTRIES: &str = "entries";
/// What stands before the federation in a snapshot's name.
const REGISTRY: &str = "registry-";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("the data directory {} is in use by {}", path.display(), describe_holder(*holder))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, if it says so.
        holder: Option<u32>,
    },
    /// There is no identity.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The disk does not do what it must.
    #[error("cannot {doing} {}: {error}", path.display())]
    Disk {
        /// What was to be done.
        doing: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The counter is at its end, which no number of restarts reaches: somebody has written it.
    #[error("the epoch in {} cannot be raised any further", path.display())]
    EpochExhausted {
        /// The file.
        path: PathBuf,
    },
}

fn describe_holder(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

impl From<DataDirError> for Failure {
    fn from(error: DataDirError) -> Self {
        match error {
            DataDirError::Key(key) => key.into(),
            DataDirError::InUse { .. } => Self::runtime(&error)
                .means("two processes would speak with one identity, so this one does not start")
                .advice("stop the other process, or give this one a directory of its own with --data-dir"),
            DataDirError::Disk { error: ref system, .. } => {
                let advice = match system.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that disk",
                    io::ErrorKind::ReadOnlyFilesystem => "name a directory on a disk that can be written to",
                    io::ErrorKind::PermissionDenied => "let the user that runs this program own the directory",
                    _ => "name another directory with --data-dir",
                };
                Self::runtime(&error)
                    .means("the node must keep its identity and its epoch, so it does not start without them")
                    .advice(advice)
            }
            DataDirError::EpochExhausted { ref path } => {
                let advice = format!("move {} away: the node finds its place again by itself", path.display());
                Self::runtime(&error).means("nothing that the node says would count").advice(advice)
            }
        }
    }
}

/// Where it is waited for the disk by whoever must not wait himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Waiting {
    /// On a thread of the runtime's pool.
    #[default]
    Aside,
    /// In place: nothing that happens then depends on when another thread is done.
    InPlace,
}

/// A data directory, held by this process until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    key: SecretKey,
    epoch: Epoch,
    waiting: Waiting,
    /// The lock goes when the file is closed, however the process ends.
    _lock: File,
}

impl DataDir {
    /// Takes the directory at `path`, which is made (mode 0700), with a new identity, if there is none.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        Self::open_with(path, Waiting::Aside)
    }

    /// The same, and says where the disk is waited for: the simulation's seam.
    pub fn open_with(path: &Path, waiting: Waiting) -> Result<Self, DataDirError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path).map_err(disk("make the data directory", path))?;
        let lock = take_lock(path)?;
        sweep(path);
        let was_used = path.join(epoch::FILE).exists() && !path.join(KEY).exists();
        let key = key_file::load_or_create_key(&path.join(KEY))?;
        if was_used {
            warn!(
                directory = %path.display(), node = %key.id(),
                "this directory was used before, and its {KEY} is gone: the node has a new key now, and is a new one to everybody. \
                 To be the one that it was, stop it, put the file back from a backup, and start it again"
            );
        }
        Ok(Self { path: path.to_owned(), key, epoch: Epoch::in_directory(path), waiting, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's secret key.
    pub fn key(&self) -> &SecretKey {
        &self.key
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.key.id()
    }

    /// Does something with the directory that takes its time, while other tasks run.
    pub async fn while_others_run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self.waiting {
            Waiting::InPlace => Ok(work(self)),
            Waiting::Aside => {
                let data_dir = self.clone();
                tokio::task::spawn_blocking(move || work(&data_dir)).await
            }
        }
    }

    /// Raises the epoch above all that this node has used, and above `other`, which a record of its own that it has
    /// met may quote. What is returned is on the disk, unless that is full: then it is in this process's memory, and
    /// [`DataDir::keep_epoch`] is to be called until it succeeds.
    pub fn raise_epoch_above(&self, other: u64) -> Result<u64, DataDirError> {
        self.epoch.raise_above(other)
    }

    /// Raises the epoch above all that this node has used.
    pub fn raise_epoch(&self) -> Result<u64, DataDirError> {
        self.raise_epoch_above(0)
    }

    /// Whether the epoch that this process uses is on the disk.
    pub fn epoch_is_kept(&self) -> bool {
        self.epoch.is_kept()
    }

    /// Writes the epoch that this process uses to the disk, if it is not there.
    pub fn keep_epoch(&self) -> Result<(), DataDirError> {
        self.epoch.keep()
    }

    /// What was last remembered of the entries, as `read` understands it. What it does not (`None`) is set aside, and as good as nothing.
    pub fn load_entries<T>(
        &self,
        bytes_max: u64,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, DataDirError> {
        let read = |content: Vec<u8>| read(checked::open(&content)?).ok_or(checked::Damaged::Content);
        read_or_set_aside(&self.path.join(ENTRIES), bytes_max, read)
    }

    /// Remembers this of the entries: lines of text, each with its end.
    pub fn store_entries(&self, text: &str) -> Result<(), DataDirError> {
        let path = self.path.join(ENTRIES);
        durable::replace(&path, checked::seal(text).as_bytes()).map_err(disk("write", &path))
    }

    fn snapshot_path(&self, federation: FederationId) -> PathBuf {
        let mut name = format!("{REGISTRY}{federation}");
        name.truncate(REGISTRY.len() + 16);
        self.path.join(name)
    }

    /// The last snapshot of a federation that was stored, if there is one, of at most `bytes_max`. One that is no good (`read` says so)
    /// is set aside for whoever wants to know why, and is as good as none.
    pub fn load_snapshot<T, E: std::fmt::Display>(
        &self,
        federation: FederationId,
        bytes_max: usize,
        read: impl FnOnce(Vec<u8>) -> Result<T, E>,
    ) -> Result<Option<T>, DataDirError> {
        read_or_set_aside(&self.snapshot_path(federation), bytes_max as u64, read)
    }

    /// Stores a snapshot in the place of the last one.
    pub fn store_snapshot(&self, federation: FederationId, bytes: &[u8]) -> Result<(), DataDirError> {
        let path = self.snapshot_path(federation);
        durable::replace(&path, bytes).map_err(disk("write the registry to", &path))
    }
}

/// What `read` makes of a file. One that is not there is nothing; one that cannot be read, or is no good, is named in the log and set aside,
/// and is as good as none.
fn read_or_set_aside<T, E: std::fmt::Display>(
    path: &Path,
    bytes_max: u64,
    read: impl FnOnce(Vec<u8>) -> Result<T, E>,
) -> Result<Option<T>, DataDirError> {
    let why = match durable::read(path, bytes_max) {
        Ok(content) => match read(content) {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if is_the_files(&error) => error.to_string(),
        Err(error) => return Err(disk("read", path)(error)),
    };
    let file = path.display();
    match aside::set_aside(path) {
        Ok(aside) => {
            warn!(%file, why, aside = %aside.display(), "a damaged file was set aside; the node starts without it")
        }
        Err(error) => warn!(%file, why, %error, "a damaged file cannot be set aside; the node starts without it"),
    }
    Ok(None)
}

/// Whether the file is to blame that cannot be read, and not the moment (too many open files, no memory).
fn is_the_files(error: &io::Error) -> bool {
    /// The disk cannot read it: the same on every Unix.
    const EIO: i32 = 5;
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
        || error.raw_os_error() == Some(EIO)
}

/// Removes what a process has left that was killed while it wrote. Where that cannot be done, what is left there only takes room.
fn sweep(directory: &Path) {
    let own = |name: &str| [KEY, epoch::FILE, ENTRIES].contains(&name) || name.starts_with(REGISTRY);
    match durable::sweep(directory, own) {
        Ok(0) => {}
        Ok(files) => info!(files, "removed what a process had not finished writing when it ended"),
        Err(error) => warn!(%error, "what a killed process has left in the data directory cannot be removed"),
    }
}

fn disk(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |error| DataDirError::Disk { doing, path, error }
}

fn take_lock(directory: &Path) -> Result<File, DataDirError> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).map_err(disk("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The process may be about to write its number: an error names it if it can.
            let holder = (&mut file).take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(DataDirError::InUse { path: directory.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(disk("lock", &path)(error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // Only for the words of whoever comes second: a full disk is no reason not to start.
    if let Err(error) = write(&mut file) {
        warn!(%error, "the lock of the data directory does not say which process holds it");
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_keeps_its_identity() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a").join("b");
        let id = DataDir::open(&path).unwrap().id();
        assert_eq!(DataDir::open(&path).unwrap().id(), id);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn a_directory_in_use_is_an_error_that_names_the_process() {
        let parent = tempfile::tempdir().unwrap();
        let held = DataDir::open(parent.path()).unwrap();
        let error = DataDir::open(parent.path()).unwrap_err();
        assert!(matches!(&error, DataDirError::InUse { holder, .. } if *holder == Some(std::process::id())));
        let words = Failure::from(error).to_string();
        assert!(words.contains(&parent.path().display().to_string()), "{words}");
        assert!(words.contains("--data-dir"), "{words}");
        drop(held);
        DataDir::open(parent.path()).unwrap();
    }

    #[test]
    fn a_damaged_key_stops_the_start_and_stays_as_it_is() {
        let parent = tempfile::tempdir().unwrap();
        drop(DataDir::open(parent.path()).unwrap());
        let key = parent.path().join("identity.key");
        std::fs::write(&key, "").unwrap();
        assert!(matches!(DataDir::open(parent.path()), Err(DataDirError::Key(KeyFileError::Corrupt { .. }))));
        assert_eq!(std::fs::read(&key).unwrap(), b"");
    }

    #[test]
    fn the_epoch_rises_with_every_use_and_above_what_was_met() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        assert_eq!(directory.raise_epoch().unwrap(), 1);
        assert_eq!(directory.raise_epoch().unwrap(), 2);
        assert_eq!(directory.raise_epoch_above(40).unwrap(), 41);
        drop(directory);
        let directory = DataDir::open(parent.path()).unwrap();
        assert_eq!(directory.raise_epoch_above(3).unwrap(), 42);
        assert!(matches!(directory.raise_epoch_above(u64::MAX), Err(DataDirError::EpochExhausted { .. })));
        assert_eq!(directory.raise_epoch().unwrap(), 43);
    }

    #[test]
    fn a_damaged_epoch_is_set_aside() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        drop(directory);
        for damage in
            ["", "7\n", &checked::seal("hedgerow epoch v1\nepoch -1\n"), &checked::seal("7\n"), &"9".repeat(2000)]
        {
            std::fs::write(parent.path().join("epoch"), damage).unwrap();
            assert_eq!(DataDir::open(parent.path()).unwrap().raise_epoch().unwrap(), 1, "{damage:?}");
        }
        assert!(names(parent.path()).contains(&"epoch.corrupt-5".to_owned()));
        std::fs::remove_file(parent.path().join("epoch")).unwrap();
        std::fs::create_dir(parent.path().join("epoch")).unwrap();
        assert_eq!(DataDir::open(parent.path()).unwrap().raise_epoch().unwrap(), 1);
    }

    #[test]
    fn an_epoch_that_was_cut_or_flipped_anywhere_is_set_aside() {
        let parent = tempfile::tempdir().unwrap();
        assert_eq!(DataDir::open(parent.path()).unwrap().raise_epoch_above(40).unwrap(), 41);
        let (path, whole) = (parent.path().join("epoch"), std::fs::read(parent.path().join("epoch")).unwrap());
        let cut = (0..whole.len()).map(|end| whole[..end].to_vec());
        let flipped = (0..whole.len()).map(|at| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            flipped
        });
        for damaged in cut.chain(flipped) {
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(Epoch::in_directory(parent.path()).raise_above(0).unwrap(), 1, "{damaged:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_epoch_that_cannot_be_written_while_the_node_runs_goes_on_in_memory_until_it_can() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        assert_eq!((directory.raise_epoch().unwrap(), directory.epoch_is_kept()), (1, true));
        // Nothing can be renamed over a directory.
        let path = parent.path().join("epoch");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!((directory.raise_epoch_above(7).unwrap(), directory.epoch_is_kept()), (8, false));
        assert!(directory.keep_epoch().is_err());
        assert_eq!(directory.raise_epoch().unwrap(), 9);
        std::fs::remove_dir(&path).unwrap();
        directory.keep_epoch().unwrap();
        assert!(directory.epoch_is_kept());
        drop(directory);
        assert_eq!(DataDir::open(parent.path()).unwrap().raise_epoch().unwrap(), 10);
    }

    #[test]
    fn what_is_remembered_of_entries_is_set_aside_when_it_is_damaged() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        let load = || directory.load_entries(1024, |text| text.strip_prefix("entries\n").map(str::to_owned)).unwrap();
        assert_eq!(load(), None);
        directory.store_entries("entries\none\n").unwrap();
        assert_eq!(load().as_deref(), Some("one\n"));
        directory.store_entries("of a later version\n").unwrap();
        assert_eq!(load(), None);
        std::fs::write(parent.path().join(ENTRIES), "entries\none\n").unwrap();
        assert_eq!(load(), None);
        let all = names(parent.path());
        assert!(
            all.contains(&"entries.corrupt-1".to_owned()) && all.contains(&"entries.corrupt-2".to_owned()),
            "{all:?}"
        );
    }

    #[test]
    fn what_a_killed_process_was_writing_is_removed_at_the_next_start() {
        let parent = tempfile::tempdir().unwrap();
        for name in
            ["epoch.7.tmp", "registry-0123456789abcdef.8.tmp", "identity.key.9.tmp", "entries.1.tmp", "mine.1.tmp"]
        {
            std::fs::write(parent.path().join(name), "half of").unwrap();
        }
        let _directory = DataDir::open(parent.path()).unwrap();
        assert_eq!(names(parent.path()), ["identity.key", "lock", "mine.1.tmp"]);
    }

    #[test]
    fn a_damaged_snapshot_is_set_aside_and_the_node_starts_without() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        let federation = FederationId([0xab; 32]);
        let load = |max| {
            directory.load_snapshot(federation, max, |bytes| if bytes == b"good" { Ok(bytes) } else { Err("torn") })
        };
        assert_eq!(load(8).unwrap(), None);
        directory.store_snapshot(federation, b"good").unwrap();
        assert_eq!(load(8).unwrap(), Some(b"good".to_vec()));
        directory.store_snapshot(federation, b"goo").unwrap();
        assert_eq!(load(8).unwrap(), None);
        directory.store_snapshot(federation, b"too long to be read").unwrap();
        assert_eq!(load(8).unwrap(), None);
        assert_eq!(
            names(parent.path()),
            ["identity.key", "lock", "registry-abababababababab.corrupt-1", "registry-abababababababab.corrupt-2"]
        );
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_a_clear_error() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        std::fs::write(&path, "").unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(error, DataDirError::Disk { .. }), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named() {
        // Writing to this device fails as on a full disk.
        let error = std::fs::write("/dev/full", "x").unwrap_err();
        let words = Failure::from(disk("write the epoch to", Path::new("epoch"))(error)).to_string();
        assert!(words.contains("make room"), "{words}");
    }
}
