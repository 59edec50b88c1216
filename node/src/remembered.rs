//! Which federation each entry was of, on disk: a node that starts while none of its entries answers is in its federation all the same.
//!
//! An entry is what tells a node of its federation, and of coordinators. The latter stand in the stored registry, with the addresses that
//! they have signed; the former stands here. With both, coordinators that can dial each other are one mesh again after a power cut though the
//! entry is still dark. What is remembered is where to go on and no more: an entry that answers is believed, and this is not.
//!
//! ```text
//! hedgerow entries v1
//! FEDERATION world https://example.org/          how far the entry was, and its URL as the operator wrote it
//! check …
//! ```

use std::sync::{Arc, Weak};
use std::time::Duration;

use hedgerow_process::patience::{Patience, Say};
use hedgerow_proto::id::FederationId;
use hedgerow_proto::scope::Scope;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::entries::{Entries, EntryState, UpEntry};
use crate::entry_url::EntryUrl;
use crate::node::Node;

const HEADING: &str = "hedgerow entries v1";
/// An entry that is there has answered within this, and nothing need be remembered.
const WAIT_FOR_ENTRY: Duration = Duration::from_secs(3);
/// So many are remembered, the last ones: nobody has more entries than this.
const REMEMBERED_MAX: usize = 16;
/// A URL is a scheme, a host and a port.
const URL_BYTES_MAX: usize = 512;
/// All of them, and some room.
const FILE_BYTES_MAX: u64 = 16 * 1024;
/// A disk that takes nothing is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// An entry whose tunnel has been up.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remembered {
    url: String,
    federation: FederationId,
    scope: Scope,
}

impl Remembered {
    fn of(up: &UpEntry) -> Self {
        let scope = Scope::farthest(up.addresses.iter().copied());
        Self { url: up.url.to_string(), federation: up.federation, scope }
    }
}

/// Those that are remembered, the last one first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Memory(Vec<Remembered>);

impl Memory {
    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEADING {
            return None;
        }
        let one = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let (federation, scope) = (words.next()?.parse().ok()?, Scope::from_word(words.next()?)?);
            Some(Remembered { federation, scope, url: words.next()?.to_owned() })
        };
        lines.map(one).collect::<Option<Vec<_>>>().map(Self)
    }

    fn write(&self) -> String {
        let line =
            |Remembered { url, federation, scope }: &Remembered| format!("{federation} {} {url}\n", scope.word());
        std::iter::once(format!("{HEADING}\n")).chain(self.0.iter().map(line)).collect()
    }

    /// Returns whether that is news.
    fn learn(&mut self, one: Remembered) -> bool {
        if one.url.len() > URL_BYTES_MAX || self.0.contains(&one) {
            return false;
        }
        self.0.retain(|known| known.url != one.url);
        self.0.insert(0, one);
        self.0.truncate(REMEMBERED_MAX);
        true
    }

    /// What entries of these URLs were of, each federation once.
    fn of(&self, urls: &[EntryUrl]) -> Vec<&Remembered> {
        let mut found: Vec<&Remembered> = Vec::new();
        for one in self.0.iter().filter(|one| urls.iter().any(|url| url.to_string() == one.url)) {
            if found.iter().all(|other| other.federation != one.federation) {
                found.push(one);
            }
        }
        found
    }
}

/// Joins what is remembered of entries that do not answer, and remembers those that come up: for as long as the node runs.
pub async fn keep(node: Weak<Node>, entries: Arc<Entries>, urls: Vec<EntryUrl>) {
    let mut memory = match node.upgrade() {
        Some(node) => load(&node).await,
        None => return,
    };
    let mut changes = entries.changes();
    let joins_at = Instant::now() + WAIT_FOR_ENTRY;
    let mut joined = false;
    let (origin, mut patience, mut stored) = (Instant::now(), Patience::default(), memory.clone());
    loop {
        changes.mark_unchanged();
        for up in entries.up() {
            memory.learn(Remembered::of(&up));
        }
        let Some(running) = node.upgrade() else { return };
        if memory != stored {
            match store(&running, memory.write()).await {
                Ok(()) => {
                    stored.clone_from(&memory);
                    if let Say::WorksAgain(after) = patience.worked(origin.elapsed()) {
                        debug!(after_s = after.as_secs(), "what is known of the entries is on disk again");
                    }
                }
                Err(error) => {
                    if !matches!(patience.failed(origin.elapsed()), Say::Nothing) {
                        warn!(
                            error,
                            "what is known of the entries is not on disk: a restart without them would wait for one"
                        );
                    }
                }
            }
        }
        if !joined && joins_at <= Instant::now() {
            joined = true;
            join_silent(&running, &entries, &memory, &urls);
        }
        drop(running);
        let again = memory != stored;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(joins_at), if !joined => {}
            () = sleep(TRY_AGAIN), if again => {}
        }
    }
}

/// Joins what is remembered of the URLs at which nobody has answered.
fn join_silent(node: &Node, entries: &Entries, memory: &Memory, urls: &[EntryUrl]) {
    let views = entries.view();
    let answered = |url: &EntryUrl| {
        let url = url.to_string();
        views.iter().any(|view| view.url == url && matches!(view.state, EntryState::Known(_)))
    };
    let silent: Vec<EntryUrl> = urls.iter().filter(|url| !answered(url)).cloned().collect();
    for Remembered { url, federation, scope } in memory.of(&silent) {
        info!(entry = url, %federation, "the entry does not answer; this node goes on in the federation that it was of, with the coordinators that it knew");
        // What stops it from joining has been told to whoever stops the node.
        if let Err(error) = node.join(*federation, *scope) {
            debug!(error, "cannot go on without the entry");
        }
    }
}

async fn load(node: &Node) -> Memory {
    let load = |data_dir: &hedgerow_mesh::data_dir::DataDir| data_dir.load_entries(FILE_BYTES_MAX, Memory::read);
    match node.identity.data_dir().while_others_run(load).await {
        Ok(Ok(memory)) => memory.unwrap_or_default(),
        Ok(Err(error)) => unread(&error),
        Err(error) => unread(&error),
    }
}

fn unread(error: &dyn std::fmt::Display) -> Memory {
    warn!(%error, "what was known of the entries cannot be read; the node waits for one");
    Memory::default()
}

async fn store(node: &Node, text: String) -> Result<(), String> {
    let stored = node.identity.data_dir().while_others_run(move |data_dir| data_dir.store_entries(&text)).await;
    stored.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(url: &str, federation: u8) -> Remembered {
        Remembered { url: url.into(), federation: FederationId([federation; 32]), scope: Scope::World }
    }

    #[test]
    fn what_is_remembered_is_read_as_it_was_written() {
        let mut memory = Memory::default();
        assert_eq!(Memory::read(&memory.write()), Some(memory.clone()));
        memory.learn(remembered("https://one.example/", 1));
        memory.learn(Remembered { scope: Scope::Machine, ..remembered("http://127.0.0.1:8080/", 2) });
        memory.learn(Remembered { scope: Scope::Network, ..remembered("http://10.0.0.1:8080/", 2) });
        assert_eq!(Memory::read(&memory.write()), Some(memory));
        for other in
            ["", "hedgerow entries v2\n", "hedgerow entries v1\nx\n", "hedgerow entries v1\nx world https://a/\n"]
        {
            assert_eq!(Memory::read(other), None, "{other:?}");
        }
    }

    #[test]
    fn the_last_word_of_a_url_counts_and_only_so_many_are_kept() {
        let mut memory = Memory::default();
        assert!(memory.learn(remembered("https://one.example/", 1)));
        assert!(!memory.learn(remembered("https://one.example/", 1)));
        assert!(memory.learn(remembered("https://one.example/", 2)));
        assert_eq!(memory.0, [remembered("https://one.example/", 2)]);
        for n in 0..40 {
            memory.learn(remembered(&format!("https://{n}.example/"), 3));
        }
        assert_eq!((memory.0.len(), &*memory.0[0].url), (REMEMBERED_MAX, "https://39.example/"));
        assert!(!memory.learn(remembered(&"x".repeat(URL_BYTES_MAX + 1), 1)));
        assert!(memory.write().len() < FILE_BYTES_MAX as usize);
    }

    #[test]
    fn only_what_the_operator_still_names_is_gone_on_with_and_each_federation_once() {
        let url = |text: &str| text.parse::<EntryUrl>().unwrap();
        let mut memory = Memory::default();
        for (name, federation) in [("https://a.example", 1), ("https://b.example", 1), ("https://c.example", 2)] {
            memory.learn(remembered(&url(name).to_string(), federation));
        }
        let of = |urls: &[&str]| {
            let urls: Vec<EntryUrl> = urls.iter().map(|text| url(text)).collect();
            memory.of(&urls).into_iter().map(|one| one.federation.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(of(&["https://a.example", "https://b.example"]), [1]);
        assert_eq!(of(&["https://a.example", "https://c.example"]), [2, 1]);
        assert!(of(&["https://d.example"]).is_empty());
    }
}
