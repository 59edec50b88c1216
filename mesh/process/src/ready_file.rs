//! The ready file: JSON that appears, whole or not at all, once the process does what it was started for, and is gone once
//! it has ended cleanly. Whoever started the process waits for the file and reads the bound addresses from it.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::exit::Failure;

/// Why there is no ready file.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the ready file {}: {error}", path.display())]
pub struct ReadyFileError {
    /// Which file.
    pub path: PathBuf,
    /// What the system says.
    pub error: std::io::Error,
}

impl From<ReadyFileError> for Failure {
    fn from(error: ReadyFileError) -> Self {
        Self::runtime(&error)
            .means("whoever waits for that file would wait in vain, so the process stops")
            .advice("give --ready-file a path in a directory that exists and that this user may write to")
    }
}

/// The place of a ready file. Dropped, it removes the file that it wrote.
#[derive(Debug)]
pub struct ReadyFile {
    path: PathBuf,
    written: bool,
}

impl ReadyFile {
    /// Reserves the place: removes what a process that was killed has left there, and finds out early whether the directory
    /// can be written to.
    pub fn at(path: &Path) -> Result<Self, ReadyFileError> {
        let file = Self { path: path.to_owned(), written: false };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file.error(error)),
            _ => {}
        }
        let temporary = file.temporary();
        std::fs::write(&temporary, b"").map_err(|error| file.error(error))?;
        std::fs::remove_file(&temporary).map_err(|error| file.error(error))?;
        Ok(file)
    }

    /// Writes the file, beside it first and then renamed, so that nobody reads half of it. May be called again.
    pub fn write<T: Serialize>(&mut self, value: &T) -> Result<(), ReadyFileError> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|error| self.error(error.into()))?;
        text.push(b'\n');
        let temporary = self.temporary();
        let result = std::fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&temporary, &self.path));
        result.map_err(|error| {
            // Best effort: the error that counts is the first one.
            let _ = std::fs::remove_file(&temporary);
            self.error(error)
        })?;
        self.written = true;
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        self.path.with_file_name(name)
    }

    fn error(&self, error: std::io::Error) -> ReadyFileError {
        ReadyFileError { path: self.path.clone(), error }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if self.written {
            // The process is on its way out: a file that cannot be removed is nothing it could still help.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_file_appears_whole_and_goes_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        std::fs::write(&path, "left by a killed process").unwrap();
        let mut file = ReadyFile::at(&path).unwrap();
        assert!(!path.exists(), "a stale file would lie to whoever waits");
        file.write(&serde_json::json!({ "listen": "127.0.0.1:1" })).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["listen"], "127.0.0.1:1");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_found_out_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let error = ReadyFile::at(&directory.path().join("no/ready.json")).unwrap_err();
        assert!(error.to_string().contains("ready.json"));
    }
}
