//! Damaged files are set aside: renamed, so that whoever wants to know why can look, and out of the way of what comes in their place.

use std::io;
use std::path::{Path, PathBuf};

use hedgerow_process::durable;

/// So many are kept of each file. A disk that damages one after the other would fill up with them; the first ones say how it began, and
/// the last one how it is now.
const KEPT_MAX: u32 = 8;

/// Renames a damaged file to the first free `….corrupt-N`, or to the last one in the place of what is there. Returns where it is now.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let place = |n: u32| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".corrupt-{n}"));
        path.with_file_name(name)
    };
    let free = (1..=KEPT_MAX).map(place).find(|aside| aside.symlink_metadata().is_err());
    let aside = match free {
        Some(aside) => aside,
        None => {
            let last = place(KEPT_MAX);
            remove(&last)?;
            last
        }
    };
    std::fs::rename(path, &aside)?;
    durable::flush_directory(path)?;
    Ok(aside)
}

/// A directory can stand in a file's place too.
fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_damages_everything_does_not_fill_up_with_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("epoch");
        for n in 1..20 {
            match n % 2 {
                0 => std::fs::write(&path, n.to_string()).unwrap(),
                _ => std::fs::create_dir_all(path.join(n.to_string())).unwrap(),
            }
            set_aside(&path).unwrap();
            assert!(!path.exists());
        }
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), KEPT_MAX as usize);
        assert!(parent.path().join("epoch.corrupt-1/1").exists(), "the first one says how it began");
        assert!(parent.path().join("epoch.corrupt-8/19").exists(), "the last one says how it is");
    }
}
