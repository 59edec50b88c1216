//! Changes to the registry: agents that register and leave, at one coordinator after another; and when each coordinator knew it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use tokio::time::sleep_until;

use super::doors::Door;
use super::people::{Node, People};
use super::scenario::Changes;
use super::world::World;

/// How often each coordinator is asked whom it knows, while it does not know everybody.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After the last change, who does not know of one until then is told of.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);

/// An agent that registered.
#[derive(Debug, Clone)]
pub(super) struct Changed {
    /// Its id.
    pub(super) agent: String,
    /// Whether it has left again.
    pub(super) left: bool,
    /// From when it asked to be registered until the last coordinator knew it; none if one never did.
    pub(super) known_after: Option<Duration>,
}

/// What the watchers have seen: for each agent, when who first knew it.
#[derive(Debug, Default)]
struct Seen {
    asked: BTreeMap<String, Instant>,
    known: BTreeMap<String, BTreeMap<usize, Instant>>,
    /// Until when those are waited for that do not know of all, once all have been asked.
    until: Option<Instant>,
}

impl Seen {
    fn is_known_to(&self, coordinator: usize) -> bool {
        self.asked.keys().all(|agent| self.known.get(agent).is_some_and(|who| who.contains_key(&coordinator)))
    }
}

/// Makes the changes; if they are watched, until every coordinator has heard of each.
pub(super) async fn make(
    changes: &Changes,
    watched: bool,
    world: &World,
    people: &People,
    began: Instant,
) -> Result<Vec<Changed>> {
    let seen = Mutex::new(Seen::default());
    let coordinators = made_at(changes, people).count();
    let mut watchers = Vec::new();
    for (number, node) in made_at(changes, people).enumerate().filter(|_| watched) {
        watchers.push((number, Door::of(node, world)?));
    }
    let watching = join_all(watchers.into_iter().map(|(number, door)| watch(number, door, &seen)));
    let making = async {
        let made = publish(changes, world, people, began, &seen).await;
        let wait = if made.is_ok() { KNOWN_WITHIN } else { Duration::ZERO };
        lock(&seen).until = Some(Instant::now() + wait);
        made
    };
    let (left, _) = tokio::join!(making, watching);
    let left = left?;
    let seen = lock(&seen);
    let known_after = |agent: &String| {
        let known = seen.known.get(agent).filter(|who| who.len() == coordinators)?;
        Some(*known.values().max()? - *seen.asked.get(agent)?)
    };
    let changed =
        |agent: &String| Changed { agent: agent.clone(), left: left.contains(agent), known_after: known_after(agent) };
    Ok(seen.asked.keys().map(changed).collect())
}

/// The coordinators at which they are made, and at which they are watched.
fn made_at<'a>(changes: &Changes, people: &'a People) -> impl Iterator<Item = &'a Node> {
    people.coordinators().filter(|node| changes.are_made_at(&node.member))
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers them, and has some leave. Who has left.
async fn publish(
    changes: &Changes,
    world: &World,
    people: &People,
    began: Instant,
    seen: &Mutex<Seen>,
) -> Result<BTreeSet<String>> {
    let mut doors = made_at(changes, people).map(|node| Door::of(node, world)).collect::<Result<Vec<_>>>()?;
    let count = doors.len();
    let (mut here, mut left) = (VecDeque::new(), BTreeSet::new());
    for number in 0..changes.count {
        let turn = u32::try_from(number).context("too many changes")? + 1;
        sleep_until((began + changes.from.0 + changes.every.0 * turn).into()).await;
        let door = &mut doors[number % count];
        let agent = format!("agent-{number:04}");
        lock(seen).asked.insert(agent.clone(), Instant::now());
        door.register(&agent).await?;
        here.push_back((number % count, agent));
        if let Some(after) = changes.leaves_after
            && here.len() > after
            && let Some((door, agent)) = here.pop_front()
        {
            // Where it registered: there it is known, whatever is cut.
            doors[door].unregister(&agent).await?;
            left.insert(agent);
        }
    }
    Ok(left)
}

/// Notes when one coordinator hears of whom, until it knows all, or has had its time.
async fn watch(number: usize, mut door: Door<'_>, seen: &Mutex<Seen>) {
    loop {
        let (knows_all, until) = {
            let seen = lock(seen);
            (seen.is_known_to(number), seen.until)
        };
        if until.is_some_and(|until| knows_all || Instant::now() > until) {
            return;
        }
        // One that stands still, or has been killed, knows nobody meanwhile.
        if !knows_all && let Ok(agents) = door.agents().await {
            let now = Instant::now();
            let mut seen = lock(seen);
            for agent in agents {
                if seen.asked.contains_key(&agent) {
                    seen.known.entry(agent).or_default().entry(number).or_insert(now);
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
