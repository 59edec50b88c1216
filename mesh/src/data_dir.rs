//! A node's data directory: its identity, its epoch, and what it last knew of the federation.
//!
//! ```text
//! lock              held by the process that uses the directory; says which one
//! identity.key      the secret key, made on first start, never written again
//! epoch             a counter, raised before each use
//! registry-…        the last snapshot of a federation's registry; renamed to ….corrupt-N when it is damaged
//! ```
//!
//! Everything here blocks, and is small. Only the loss of `identity.key` costs anything: without `epoch` the node
//! meets its own earlier records and jumps above them, and without a snapshot it asks its neighbours.

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

/// The epoch is a number; whatever is longer is something else.
const EPOCH_FILE_BYTES_MAX: u64 = 64;

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
        let key = key_file::load_or_create_key(&path.join("identity.key"))?;
        Ok(Self { path: path.to_owned(), key, waiting, _lock: lock })
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
    /// met may quote. What is returned is on the disk: only then may it be used.
    pub fn raise_epoch_above(&self, other: u64) -> Result<u64, DataDirError> {
        let path = self.path.join("epoch");
        let last = self.read_epoch(&path)?;
        let epoch =
            last.max(other).checked_add(1).ok_or_else(|| DataDirError::EpochExhausted { path: path.clone() })?;
        durable::replace(&path, format!("{epoch}\n").as_bytes()).map_err(disk("write the epoch to", &path))?;
        Ok(epoch)
    }

    /// Raises the epoch above all that this node has used.
    pub fn raise_epoch(&self) -> Result<u64, DataDirError> {
        self.raise_epoch_above(0)
    }

    fn read_epoch(&self, path: &Path) -> Result<u64, DataDirError> {
        let content = match durable::read(path, EPOCH_FILE_BYTES_MAX) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Vec::new(),
            Err(error) => return Err(disk("read the epoch from", path)(error)),
        };
        let epoch = std::str::from_utf8(&content).ok().and_then(|text| text.strip_suffix('\n')?.parse().ok());
        if let Some(epoch) = epoch {
            return Ok(epoch);
        }
        // Not worth stopping for: the node will meet what it said before, and jump above it.
        self.set_aside(path)?;
        Ok(0)
    }

    fn snapshot_path(&self, federation: FederationId) -> PathBuf {
        let mut name = format!("registry-{federation}");
        name.truncate("registry-".len() + 16);
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
        let path = self.snapshot_path(federation);
        let why = match durable::read(&path, bytes_max as u64) {
            Ok(bytes) => match read(bytes) {
                Ok(value) => return Ok(Some(value)),
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
            Err(error) => return Err(disk("read the registry from", &path)(error)),
        };
        tracing::warn!(why, "the stored registry is damaged; starting without it");
        self.set_aside(&path)?;
        Ok(None)
    }

    /// Stores a snapshot in the place of the last one.
    pub fn store_snapshot(&self, federation: FederationId, bytes: &[u8]) -> Result<(), DataDirError> {
        let path = self.snapshot_path(federation);
        durable::replace(&path, bytes).map_err(disk("write the registry to", &path))
    }

    /// Renames a damaged file to the first free `.corrupt-N`. Nothing that was once written is destroyed.
    fn set_aside(&self, path: &Path) -> Result<(), DataDirError> {
        let name = path.file_name().unwrap_or_default();
        let aside = (1_u32..).find_map(|n| {
            let mut aside = name.to_owned();
            aside.push(format!(".corrupt-{n}"));
            let aside = path.with_file_name(aside);
            aside.symlink_metadata().is_err().then_some(aside)
        });
        let aside = aside.unwrap_or_else(|| path.with_extension("corrupt"));
        std::fs::rename(path, &aside).map_err(disk("set aside", path))?;
        tracing::warn!(file = %path.display(), aside = %aside.display(), "a damaged file was set aside");
        durable::flush_directory(path).map_err(disk("set aside", path))
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
    write(&mut file).map_err(disk("write", &path))?;
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
        for damage in ["", "7", "x\n", "-1\n", "99999999999999999999\n", &"9".repeat(100)] {
            std::fs::write(parent.path().join("epoch"), damage).unwrap();
            assert_eq!(directory.raise_epoch().unwrap(), 1, "{damage:?}");
        }
        assert!(names(parent.path()).contains(&"epoch.corrupt-6".to_owned()));
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
