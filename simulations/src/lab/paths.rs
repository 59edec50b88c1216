//! By which ways coordinators are connected to each other, against what their routers let through.

use std::time::{Duration, Instant};

use anyhow::Result;
use hedgerow_sim_model::nat::can_punch;
use tokio::time::timeout;

use super::people::{Node, People};

/// How often it is looked while some are not connected as they could be.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// One that does not answer for so long stands still.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// So many pairs are named.
const NAMED_MAX: usize = 4;

/// One end's view of another one.
struct View<'a> {
    from: &'a Node,
    to: &'a Node,
    /// Whether there can be a direct path, by the routers of both.
    can: bool,
    /// The path and why, as `status` has them; none where they are not connected.
    seen: Option<(String, String)>,
}

impl View<'_> {
    fn is_direct(&self) -> bool {
        self.seen.as_ref().is_some_and(|(path, _)| path != "entry")
    }

    /// Where there can be no direct path: connected by way of the entry, and nothing else is being tried.
    fn rests(&self) -> bool {
        self.seen.as_ref().is_some_and(|(path, why)| path == "entry" && !why.contains("being punched"))
    }

    fn name(&self) -> String {
        let seen = self.seen.as_ref().map_or("not connected".to_owned(), |(path, why)| format!("{path}: {why}"));
        format!("{} to {} ({seen})", self.from.member.name, self.to.member.name)
    }
}

/// What each coordinator that runs says of each other one.
async fn views(people: &People) -> Vec<View<'_>> {
    let mut views = Vec::new();
    for from in people.coordinators() {
        let shown = timeout(ANSWER_WITHIN, from.on_the_mesh()).await.ok().and_then(Result::ok);
        let shown = shown.unwrap_or_default();
        for to in people.coordinators().filter(|to| to.id != from.id) {
            let mut peers = shown["peers"].as_array().into_iter().flatten();
            let peer = peers.find(|peer| peer["node_id"].as_str() == Some(&to.id));
            let text = |key: &str| peer.and_then(|peer| peer[key].as_str()).unwrap_or_default().to_owned();
            let can = can_punch(from.member.router.place(), to.member.router.place());
            views.push(View { from, to, can, seen: peer.map(|_| (text("path"), text("why"))) });
        }
    }
    views
}

fn named<'a>(wrong: impl Iterator<Item = &'a View<'a>>) -> String {
    wrong.map(View::name).take(NAMED_MAX).collect::<Vec<_>>().join(", ")
}

/// Waits until all that can have a direct path do, as both ends see it; how long that took since then.
pub(super) async fn met(people: &People, since: Instant, within: Duration) -> Result<Duration, String> {
    loop {
        let views = views(people).await;
        if !views.iter().any(|view| view.can) {
            return Err("nobody here can have a direct path".to_owned());
        }
        if views.iter().filter(|view| view.can).all(View::is_direct) {
            return Ok(since.elapsed());
        }
        if since.elapsed() > within {
            let wrong = named(views.iter().filter(|view| view.can && !view.is_direct()));
            return Err(format!("not after {within:?}: {wrong}"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// How many views there are of pairs that can have no direct path; or who is not as they should be: on the way by the entry, and at rest.
pub(super) async fn others(people: &People) -> Result<usize, String> {
    let views = views(people).await;
    let cannot = || views.iter().filter(|view| !view.can);
    match named(cannot().filter(|view| !view.rests())) {
        wrong if wrong.is_empty() => Ok(cannot().count()),
        wrong => Err(wrong),
    }
}
