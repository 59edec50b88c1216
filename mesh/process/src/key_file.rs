//! The file that holds a secret key: a node's identity, or an entry's. Made on first use, and never written again: who
//! loses it is somebody else.
//!
//! ```text
//! hedgerow secret key v1
//! secret 64 hexadecimal digits
//! public 64 hexadecimal digits, the id of the node or the entry
//! ```
//!
//! The second line is worth as much as the machine that it identifies. The third is there so that a damaged file is
//! noticed, instead of becoming another identity.

use std::io;
use std::path::{Path, PathBuf};

use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::SecretKey;

use crate::durable;
use crate::exit::Failure;

const HEADING: &str = "hedgerow secret key v1";
/// A key file is below 200 bytes; whatever is longer is something else.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why there is no key. In every case the file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file is there and cannot be read.
    #[error("cannot read the key file {}: {error}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is there and is not a key.
    #[error("the key file {} is damaged: {what}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Others may read or write the file.
    #[error("the key file {} is open to other users (mode {mode:04o})", path.display())]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is not there and cannot be made.
    #[error("cannot make the key file {}: {error}", path.display())]
    Create {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The system gives no randomness.
    #[error("the system gives no randomness to make a key of: {0}")]
    Randomness(getrandom::Error),
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        let identity = "the program cannot prove who it is, so it does not start; the file was not changed";
        match &error {
            KeyFileError::Unreadable { .. } => {
                Self::runtime(&error).means(identity).advice("let the user that runs this program read the file")
            }
            KeyFileError::Corrupt { .. } => Self::runtime(&error).means(identity).advice(
                "put the file back from a backup, or move it away: a new key is made, which is a new identity to everybody",
            ),
            KeyFileError::Permissions { path, .. } => Self::runtime(&error)
                .means("others on this machine could speak as this node; the file was not changed")
                .advice(format_args!("chmod 600 {}", path.display())),
            KeyFileError::Create { .. } => Self::runtime(&error)
                .means("there is no identity to start with")
                .advice("name a directory that exists, that this user may write to, and whose disk has room"),
            KeyFileError::Randomness(_) => Self::runtime(&error).means("no key was made"),
        }
    }
}

/// The key in the file at `path`, which is made, with a new key, if there is none.
pub fn load_or_create_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    match load_key(path) {
        Err(KeyFileError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => create_key(path),
        other => other,
    }
}

/// The key in the file at `path`.
pub fn load_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    let unreadable = |error| KeyFileError::Unreadable { path: path.to_owned(), error };
    let corrupt = |what| KeyFileError::Corrupt { path: path.to_owned(), what };
    check_permissions(path)?;
    let content = durable::read(path, KEY_FILE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => corrupt("it is not a small regular file"),
        _ => unreadable(error),
    })?;
    let text = std::str::from_utf8(&content).map_err(|_| corrupt("it is not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(HEADING) {
        return Err(corrupt("it does not begin as a key file does"));
    }
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ')?.parse::<NodeId>().ok();
    // 64 hexadecimal digits are parsed as an id: the secret has the same form.
    let NodeId(seed) = value("secret").ok_or_else(|| corrupt("its secret is not 64 hexadecimal digits"))?;
    let public = value("public").ok_or_else(|| corrupt("its public id is not 64 hexadecimal digits"))?;
    let key = SecretKey::from_seed(seed);
    if key.id() != public {
        return Err(corrupt("its public id does not belong to its secret"));
    }
    Ok(key)
}

fn create_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(KeyFileError::Randomness)?;
    let key = SecretKey::from_seed(seed);
    let content = format!("{HEADING}\nsecret {}\npublic {}\n", NodeId(seed), key.id());
    match durable::create(path, content.as_bytes()) {
        Ok(()) => Ok(key),
        // Another process was quicker: its key is the key.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load_key(path),
        Err(error) => Err(KeyFileError::Create { path: path.to_owned(), error }),
    }
}

#[cfg(unix)]
fn check_permissions(path: &Path) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 => {
            Err(KeyFileError::Permissions { path: path.to_owned(), mode: metadata.permissions().mode() & 0o7777 })
        }
        // A file that cannot be looked at cannot be read either, and that error says more.
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn check_permissions(_path: &Path) -> Result<(), KeyFileError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_the_same_from_then_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("entry.key");
        let made = load_or_create_key(&path).unwrap();
        assert_eq!(load_or_create_key(&path).unwrap().seed(), made.seed());
        let other = load_or_create_key(&directory.path().join("other.key")).unwrap();
        assert_ne!(other.seed(), made.seed());
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("entry.key");
        load_or_create_key(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..whole.len() - 1).step_by(7).map(|end| whole[..end].to_vec()).collect();
        for at in (0..whole.len() - 1).step_by(5) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x04;
            damaged.push(flipped);
        }
        damaged.push(vec![0; 8192]);
        for content in damaged {
            std::fs::write(&path, &content).unwrap();
            let error = load_or_create_key(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Corrupt { .. }), "{error}: {content:?}");
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_directory_in_its_place_and_a_missing_directory_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(load_or_create_key(directory.path()), Err(KeyFileError::Corrupt { .. })));
        let path = directory.path().join("absent").join("entry.key");
        assert!(matches!(load_or_create_key(&path), Err(KeyFileError::Create { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("entry.key");
        load_or_create_key(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_create_key(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Permissions { mode: 0o644, .. }), "{error}");
        assert!(Failure::from(error).to_string().contains("chmod 600"));
    }
}
