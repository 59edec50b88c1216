//! Which runs a sweep has behind it: a file with a line for each, appended and flushed when it ends, so that neither Ctrl-C nor a
//! crash loses one. A line that was not written to its end is cut off.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hedgerow_process::exit::Failure;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::setting::Subject;

/// A million runs have 150 MiB.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// What was run: the scenario with all that was changed about it, the level, and the program. If any of these is another one, a
/// run says nothing about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fingerprint(String);

impl Fingerprint {
    pub(super) fn of(subject: &Subject, program: &str) -> Result<Self> {
        let text = format!("{program}\n{}\n{}", subject.level, toml::to_string(&subject.scenario)?);
        let hash = Sha256::digest(text.as_bytes());
        Ok(Self(hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()))
    }
}

/// A run that is over, and in which nothing was wrong.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// For people.
    scenario: String,
    fingerprint: String,
    seed: u64,
    /// For whoever compares two machines.
    trace_hash: String,
}

/// The runs that were over when the sweep began.
#[derive(Debug, Default)]
pub(super) struct Finished {
    done: BTreeSet<(String, u64)>,
}

impl Finished {
    /// Whether this run is over.
    pub(super) fn has(&self, fingerprint: &Fingerprint, seed: u64) -> bool {
        // A look-up in a set of pairs would need a pair.
        !self.done.is_empty() && self.done.contains(&(fingerprint.0.clone(), seed))
    }

    /// How many there are, whatever they were.
    pub(super) fn len(&self) -> usize {
        self.done.len()
    }
}

/// The file, to which those are added that end.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

/// Opens it, or makes it.
pub(super) fn open(path: &Path) -> Result<(Finished, Journal), Failure> {
    let shown = path.display();
    let cannot = |error: std::io::Error| {
        Failure::usage(format!("cannot open {shown}: {error}")).advice("name another file with --resume")
    };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(cannot)?;
    file.try_lock().map_err(|_| {
        Failure::usage(format!("another sweep writes to {shown}")).advice("wait for it, or name another file")
    })?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    let (done, whole) = parse(&bytes).map_err(|line| {
        Failure::usage(format!("{shown} is no list of finished runs: line {line} is none"))
            .means("nothing was run, and the file is as it was")
            .advice("name a file that `hedgerow-sim sweep --resume` has written, or a new one")
    })?;
    file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(cannot)?;
    Ok((Finished { done }, Journal { path: path.to_owned(), file }))
}

/// The runs, and where the last whole line ends; or the number of the line that is none of ours.
fn parse(bytes: &[u8]) -> Result<(BTreeSet<(String, u64)>, usize), usize> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(1);
    }
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut done = BTreeSet::new();
    let mut lines = 0;
    for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
        lines += 1;
        let line: Line = serde_json::from_slice(line).map_err(|_| lines)?;
        done.insert((line.fingerprint, line.seed));
    }
    // The beginning of a line of ours is what may be cut off, and nothing else.
    let (begins, cut_off) = (b"{\"scenario\":", &bytes[whole..]);
    match cut_off.starts_with(begins) || begins.starts_with(cut_off) {
        true => Ok((done, whole)),
        false => Err(lines + 1),
    }
}

impl Journal {
    /// One more is over. When this returns, it is on the disk.
    pub(super) fn add(&mut self, scenario: &str, fingerprint: &Fingerprint, seed: u64, trace_hash: &str) -> Result<()> {
        let Fingerprint(fingerprint) = fingerprint.clone();
        let line = Line { scenario: scenario.to_owned(), fingerprint, seed, trace_hash: trace_hash.to_owned() };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write to {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::setting::Overrides;

    fn fingerprint(program: &str) -> Fingerprint {
        Fingerprint::of(&Subject::find("churn", &Overrides::default()).unwrap(), program).unwrap()
    }

    #[test]
    fn what_was_added_is_there_when_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("finished");
        let (one, other) = (fingerprint("a"), fingerprint("b"));
        let (_, mut journal) = open(&path).unwrap();
        journal.add("churn", &one, 7, "00").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("another sweep"));
        drop(journal);
        let (finished, _) = open(&path).unwrap();
        assert!(finished.has(&one, 7) && !finished.has(&one, 8));
        assert!(!finished.has(&other, 7), "of another program it says nothing");
    }

    #[test]
    fn half_a_line_is_cut_off_and_what_comes_next_stands_on_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("finished");
        let one = fingerprint("a");
        for lines in 0..2 {
            let (finished, mut journal) = open(&path).unwrap();
            assert_eq!(finished.len(), lines);
            journal.add("churn", &one, lines as u64, "00").unwrap();
            drop(journal);
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b"{\"scenario\":\"chu").unwrap();
        }
        assert_eq!(open(&path).unwrap().0.len(), 2);
    }

    #[test]
    fn a_file_of_somebody_else_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mine");
        for text in ["dear diary", "dear diary\n", "{}\n", "\u{0}\n", "ä"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(open(&path).unwrap_err().code(), 2);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
