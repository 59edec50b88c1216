//! Small files that survive a crash: written beside their place, flushed to the disk, moved there, and the directory
//! flushed too. Whoever reads one sees the old content or the new, never half of either.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Puts `content` at `path`, in the place of what is there. The file is its owner's alone (mode 0600).
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, content)?;
    std::fs::rename(&temporary, path).inspect_err(|_| discard(&temporary))?;
    flush_directory(path)
}

/// Puts `content` at `path`, where nothing may be: [`io::ErrorKind::AlreadyExists`] otherwise. Mode 0600.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, content)?;
    // A link, unlike a rename, fails if somebody was quicker. Where there are no links (FAT, some network shares), a
    // look before the rename must do.
    let linked = std::fs::hard_link(&temporary, path);
    let result = match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => match path.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => std::fs::rename(&temporary, path),
        },
        other => other.inspect(|()| discard(&temporary)),
    };
    result.inspect_err(|_| discard(&temporary))?;
    flush_directory(path)
}

/// Reads a regular file of at most `bytes_max`; anything else is [`io::ErrorKind::InvalidData`].
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Before it is opened, which waits for ever where it is a pipe that nobody writes to.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {bytes_max} bytes")));
    }
    Ok(content)
}

/// Removes what writers of these files have left beside them that were killed in the middle, and returns how many there were. Nobody
/// may be writing there now.
pub fn sweep(directory: &Path, of: impl Fn(&str) -> bool) -> io::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_left = name.to_str().and_then(written_beside).is_some_and(&of);
        if is_left && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether an error says that there is no room: it is over when somebody makes room.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The name of the file that a temporary one of this name was to become.
fn written_beside(name: &str) -> Option<&str> {
    let (of, process) = name.strip_suffix(".tmp")?.rsplit_once('.')?;
    process.parse::<u32>().ok().map(|_| of)
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_beside(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = parent(path).join(name);
    discard(&temporary);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.inspect_err(|_| discard(&temporary))?;
    Ok(temporary)
}

/// Removes a file that is in the way. The error that counts is the one that led here, or the one that follows.
fn discard(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Makes a rename in the directory of `path` last.
#[cfg(unix)]
pub fn flush_directory(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// Makes a rename in the directory of `path` last: here the system does so by itself.
#[cfg(not(unix))]
pub fn flush_directory(_path: &Path) -> io::Result<()> {
    Ok(())
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
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("epoch");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(read(&path, 8).unwrap(), b"2");
        assert_eq!(names(directory.path()), ["epoch"]);
    }

    #[test]
    fn what_is_there_is_not_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        create(&path, b"first").unwrap();
        assert_eq!(create(&path, b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path, 8).unwrap(), b"first");
        assert_eq!(names(directory.path()), ["key"]);
    }

    #[test]
    fn a_directory_and_a_long_file_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path(), 8).is_err());
        let path = directory.path().join("long");
        replace(&path, b"123456789").unwrap();
        assert_eq!(read(&path, 8).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_a_killed_writer_left_is_swept_away_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["epoch.17.tmp", "epoch.18.tmp", "epoch", "epoch.tmp", "epoch.x.tmp", "other.17.tmp"] {
            std::fs::write(directory.path().join(name), "half").unwrap();
        }
        std::fs::create_dir(directory.path().join("epoch.19.tmp")).unwrap();
        assert_eq!(sweep(directory.path(), |of| of == "epoch").unwrap(), 2);
        assert_eq!(names(directory.path()), ["epoch", "epoch.19.tmp", "epoch.tmp", "epoch.x.tmp", "other.17.tmp"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_known_as_one() {
        // Writing to this device fails as on a full disk.
        assert!(is_full(&std::fs::write("/dev/full", "x").unwrap_err()));
        assert!(!is_full(&std::fs::read("/dev/full/absent").unwrap_err()));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        for (name, put) in [("a", replace as fn(&Path, &[u8]) -> io::Result<()>), ("b", create)] {
            let path = directory.path().join(name);
            put(&path, b"x").unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
