//! Who this entry is.

use hedgerow_process::exit::Failure;
use hedgerow_process::key_file::load_or_create_key;
use hedgerow_proto::id::FederationId;
use hedgerow_tunnel::EntryIdentity;
use tracing::info;

use crate::settings::Settings;

/// Reads the key, or makes it.
pub(crate) fn load(settings: &Settings) -> Result<EntryIdentity, Failure> {
    let made = !settings.key_file.exists();
    let key = load_or_create_key(&settings.key_file)?;
    if made {
        info!(file = %settings.key_file.display(), entry = %key.id(), "made a key; keep the file, nodes know this entry by it");
    }
    let federation = FederationId::of_key(&settings.federation_key.unwrap_or_else(|| key.id()));
    let incarnation =
        getrandom::u64().map_err(|error| Failure::runtime(format!("the system gives no randomness: {error}")))?;
    Ok(EntryIdentity { key, federation, incarnation })
}
