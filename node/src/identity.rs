//! Who this node is: the key in its data directory, and what tells this run of it from others.

use std::path::Path;
use std::sync::Arc;

use hedgerow_mesh::data_dir::DataDir;
use hedgerow_process::exit::Failure;
use hedgerow_proto::key::SecretKey;

/// The node's key, for as long as no other process uses its data directory.
pub struct Identity {
    /// Random for this run.
    pub incarnation: u64,
    data_dir: Arc<DataDir>,
}

impl Identity {
    /// Opens the data directory, or makes it.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        Self::of(DataDir::open(path)?)
    }

    /// Another run of the node whose directory this is.
    pub fn of(data_dir: DataDir) -> Result<Self, Failure> {
        let incarnation = getrandom::u64().map_err(|error| {
            Failure::runtime(format!("the system gives no randomness: {error}"))
                .means("two runs of this node could not be told apart, so it did not start")
        })?;
        Ok(Self { incarnation, data_dir: Arc::new(data_dir) })
    }

    /// The key.
    pub fn key(&self) -> &SecretKey {
        self.data_dir.key()
    }

    /// The directory, held.
    pub fn data_dir(&self) -> &Arc<DataDir> {
        &self.data_dir
    }
}
