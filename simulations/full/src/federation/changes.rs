//! Agents of the existing contract that register and leave, at one coordinator after another; and when each coordinator knew it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_contract::{Call, WorkerId};
use hedgerow_node::contract::{Asked, Contract};
use hedgerow_sim_model::scenario::Changes;

use super::node::Running;
use crate::time;

/// One agent.
#[derive(Debug)]
struct Agent {
    asked_at: Duration,
    /// When who first knew it.
    known: BTreeMap<u32, Duration>,
    left: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Made {
    agents: BTreeMap<WorkerId, Agent>,
    /// Those that stay, the oldest first, and where they registered.
    here: VecDeque<(u32, WorkerId)>,
    refused: Refused,
}

/// What was answered with anything but 200.
#[derive(Debug, Clone, Default)]
struct Refused(Arc<Mutex<Vec<String>>>);

impl Refused {
    fn all(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    /// The next agent registers at one of these, and if there are too many then, the oldest leaves.
    pub(super) fn next(&mut self, changes: &Changes, coordinators: &[(u32, &Running)]) {
        let number = self.agents.len();
        let Ok(agent) = format!("agent-{number:04}").parse::<WorkerId>() else { return };
        let Some((node, running)) = coordinators.get(number % coordinators.len().max(1)) else { return };
        let said = serde_json::json!({ "worker_id": agent.as_str(), "worker_type": "cpu", "capabilities": {} });
        self.call(running, Call::Register, said.to_string());
        let asked_at = time::now().since_origin();
        self.agents.insert(agent.clone(), Agent { asked_at, known: BTreeMap::new(), left: false });
        self.here.push_back((*node, agent));
        if changes.leaves_after.is_some_and(|stay| self.here.len() > stay)
            && let Some((node, agent)) = self.here.pop_front()
            && let Some((_, running)) = coordinators.iter().find(|(other, _)| *other == node)
        {
            self.call(running, Call::Unregister(agent.clone()), String::new());
            if let Some(agent) = self.agents.get_mut(&agent) {
                agent.left = true;
            }
        }
    }

    /// As the coordinator's own port would.
    fn call(&self, running: &Running, call: Call, body: String) {
        let (contract, refused): (Arc<Contract>, _) = (running.membership.contract.clone(), self.refused.clone());
        let asked = Asked { body: body.into(), ..Asked::default() };
        running.process.spawn(async move {
            let why = match contract.answer(&call, &asked).await {
                Ok(answer) if answer.status == 200 => return,
                Ok(answer) => answer.status.to_string(),
                Err(error) => error.to_string(),
            };
            refused.all().push(format!("{call:?}: {why}"));
        });
    }

    /// Notes which coordinators know whom.
    pub(super) fn look(&mut self, coordinators: &[(u32, &Running)]) {
        let now = time::now().since_origin();
        for (agent, seen) in self.agents.iter_mut().filter(|(_, agent)| agent.known.len() < coordinators.len()) {
            for (node, running) in coordinators {
                if !seen.known.contains_key(node) && knows(running, agent) {
                    seen.known.insert(*node, now);
                }
            }
        }
    }

    /// From when an agent asked to be registered until the last of these coordinators knew it, of each that all came to know, in
    /// order; and how many there are that not all did.
    pub(super) fn known_after(&self, coordinators: usize) -> (Vec<Duration>, usize) {
        let whole = self.agents.values().filter(|agent| agent.known.len() >= coordinators);
        let mut after: Vec<Duration> =
            whole.filter_map(|agent| Some(agent.known.values().max()?.saturating_sub(agent.asked_at))).collect();
        after.sort_unstable();
        let never = self.agents.len() - after.len();
        (after, never)
    }

    /// What is wrong at the end, of whom: an agent that stayed and is not known, one that left and is, and refusals.
    pub(super) fn wrong(&self, coordinators: &[(u32, &Running)]) -> Vec<(Option<u32>, String)> {
        let mut wrong: Vec<(Option<u32>, String)> =
            self.refused.all().iter().map(|what| (None, format!("an agent was refused: {what}"))).collect();
        for (node, running) in coordinators {
            for (agent, state) in &self.agents {
                match (state.left, knows(running, agent)) {
                    (false, false) => wrong.push((Some(*node), format!("does not know {agent}, which stayed"))),
                    (true, true) => wrong.push((Some(*node), format!("knows {agent}, which left"))),
                    _ => {}
                }
            }
        }
        wrong
    }
}

fn knows(running: &Running, agent: &WorkerId) -> bool {
    running.membership.replica.read(|registry| registry.guest(agent.as_str()).is_some())
}
