//! Gives a target again what is kept for it: what is really sent (`start-…`), and what the fuzzer has found something with.

use std::panic::catch_unwind;
use std::path::Path;

/// Every file of this target below `folder`. There is at least one.
pub fn replay(folder: &str, target: &str, run: fn(&[u8])) {
    let folder = Path::new(folder).join(target);
    let files = std::fs::read_dir(&folder).and_then(|files| files.map(|file| Ok(file?.path())).collect());
    let mut files: Vec<_> = files.unwrap_or_else(|error: std::io::Error| panic!("{}: {error}", folder.display()));
    files.sort();
    assert!(!files.is_empty(), "{}: nothing is kept there", folder.display());
    for path in files {
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // It has said by now what is wrong.
        assert!(catch_unwind(|| run(&bytes)).is_ok(), "{} fails again", path.display());
    }
}
