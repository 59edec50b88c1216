//! What is seen of the registry from outside: the digest that each coordinator and the entry tell at their own ports, and the home
//! that each worker tells at its control socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::join_all;
use serde_json::Value;

use super::stage::ENTRY;
use super::view::Board;
use crate::client::{ask, ask_socket, get};
use crate::federation::READY_WITHIN;

/// Who does not answer within this is shown as silent.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How often the live table looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often is looked while something is waited for and measured.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What can be asked of a process.
#[derive(Debug, Clone)]
enum Question {
    /// The digest of its registry.
    Digest(SocketAddr),
    /// The coordinator that it is at home with.
    Home(PathBuf),
}

/// Those who are asked, by name. Who is killed or paused is taken off the list.
#[derive(Debug, Clone, Default)]
pub(super) struct Witnesses(Arc<Mutex<BTreeMap<String, Question>>>);

/// What they said at one moment; `None` from who said nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Digests of registries.
    pub(super) digests: BTreeMap<String, Option<String>>,
    /// Node ids of homes.
    pub(super) homes: BTreeMap<String, Option<String>>,
}

impl Look {
    /// The digest, if all have the same, the entry too.
    pub(super) fn agreed(&self) -> Option<&str> {
        common(self.digests.values())
    }

    /// The digest, if all coordinators have the same. The entry only reads along, every few seconds.
    pub(super) fn coordinators_agreed(&self) -> Option<&str> {
        common(self.coordinators().map(|(_, digest)| digest))
    }

    /// What the coordinators said.
    pub(super) fn coordinators(&self) -> impl Iterator<Item = (&String, &Option<String>)> {
        self.digests.iter().filter(|(name, _)| *name != ENTRY)
    }

    /// The digest that most have.
    pub(super) fn prevailing(&self) -> Option<&str> {
        let mut counts = BTreeMap::<&str, usize>::new();
        for digest in self.digests.values().flatten() {
            *counts.entry(digest).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(digest, _)| digest)
    }

    /// Workers that are at home with this coordinator.
    pub(super) fn at_home_with(&self, id: &str) -> Vec<String> {
        let there = self.homes.iter().filter(|(_, home)| home.as_deref() == Some(id));
        there.map(|(worker, _)| worker.clone()).collect()
    }
}

fn common<'a>(mut digests: impl Iterator<Item = &'a Option<String>>) -> Option<&'a str> {
    let first = digests.next()?.as_deref()?;
    digests.all(|digest| digest.as_deref() == Some(first)).then_some(first)
}

impl Witnesses {
    /// A coordinator or the entry, at the port where it tells of its registry.
    pub(super) fn holds_registry(&self, name: &str, at: SocketAddr) {
        self.list().insert(name.to_owned(), Question::Digest(at));
    }

    /// A worker, by its control socket.
    pub(super) fn has_home(&self, name: &str, socket: PathBuf) {
        self.list().insert(name.to_owned(), Question::Home(socket));
    }

    /// It is not to be asked any more.
    pub(super) fn forget(&self, name: &str) {
        self.list().remove(name);
    }

    /// Asks all at once.
    pub(super) async fn look(&self) -> Look {
        let list = self.list().clone();
        let answers = list.into_iter().map(|(name, question)| async move { (name, question.ask().await, question) });
        let mut look = Look::default();
        for (name, answer, question) in join_all(answers).await {
            match question {
                Question::Digest(_) => look.digests.insert(name, answer),
                Question::Home(_) => look.homes.insert(name, answer),
            };
        }
        look
    }

    /// Looks until it is as wanted; how long that took since `since`, and what was seen.
    pub(super) async fn until(
        &self,
        what: &str,
        since: Instant,
        wanted: impl Fn(&Look) -> bool,
    ) -> Result<(Duration, Look)> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let look = self.look().await;
            if wanted(&look) {
                return Ok((since.elapsed(), look));
            }
            if Instant::now() > deadline {
                bail!("within {READY_WITHIN:?} {what}; last seen: {look:?}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until all coordinators have one digest, and each worker a home.
    pub(super) async fn settled(&self, since: Instant) -> Result<(Duration, Look)> {
        let settled = |look: &Look| look.coordinators_agreed().is_some() && look.homes.values().all(Option::is_some);
        self.until("the coordinators did not agree, or a worker had no home", since, settled).await
    }

    /// Waits until all coordinators and the entry have one digest.
    pub(super) async fn agree(&self, since: Instant) -> Result<(Duration, Look)> {
        self.until("the coordinators and the entry did not agree", since, |look| look.agreed().is_some()).await
    }

    /// Shows it on the board for as long as it is polled.
    pub(super) async fn show(&self, board: &Board) {
        loop {
            board.see(self.look().await);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn list(&self) -> MutexGuard<'_, BTreeMap<String, Question>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    async fn ask(&self) -> Option<String> {
        let answer = async {
            match self {
                Self::Digest(at) => ask(*at, get("/mesh/registry")).await.map(|answer| text(&answer.json()["digest"])),
                Self::Home(socket) => {
                    ask_socket(socket, get("/status")).await.map(|answer| text(&answer.json()["mesh"][0]["home"]))
                }
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, answer).await.ok()?.ok()?
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// The beginning of a digest or an id: enough to tell them apart by eye.
pub(super) fn short(text: &str) -> &str {
    text.get(..8).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(digests: &[(&str, Option<&str>)]) -> Look {
        let digests = digests.iter().map(|(name, digest)| ((*name).to_owned(), digest.map(str::to_owned)));
        Look { digests: digests.collect(), ..Look::default() }
    }

    #[test]
    fn who_says_nothing_does_not_agree() {
        assert_eq!(look(&[("a", Some("x")), ("b", Some("x"))]).agreed(), Some("x"));
        assert_eq!(look(&[("a", Some("x")), ("b", None)]).agreed(), None);
        assert_eq!(look(&[("a", None), ("b", Some("x"))]).agreed(), None);
        assert_eq!(look(&[("a", Some("x")), ("b", Some("y"))]).agreed(), None);
        assert_eq!(look(&[]).agreed(), None, "nobody is no agreement");
    }

    #[test]
    fn coordinators_agree_whether_or_not_the_entry_has_read_it_yet() {
        let look = look(&[("coordinator-1", Some("x")), ("coordinator-2", Some("x")), ("entry", Some("y"))]);
        assert_eq!((look.agreed(), look.coordinators_agreed()), (None, Some("x")));
    }

    #[test]
    fn the_digest_of_most_prevails() {
        assert_eq!(look(&[("a", Some("x")), ("b", Some("y")), ("c", Some("y")), ("d", None)]).prevailing(), Some("y"));
    }

    #[tokio::test]
    async fn a_witness_that_is_not_there_says_nothing() {
        let witnesses = Witnesses::default();
        // A port that was free a moment ago, and is closed again.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        witnesses.holds_registry("entry", closed);
        witnesses.has_home("worker-1", "/nowhere/control.sock".into());
        let seen = witnesses.look().await;
        assert_eq!((&seen.digests["entry"], &seen.homes["worker-1"]), (&None, &None));
        witnesses.forget("worker-1");
        assert!(witnesses.look().await.homes.is_empty());
    }
}
