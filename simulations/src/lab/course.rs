//! The course of a scenario: load, changes and faults, each at its time; and what became of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use tokio::time::{sleep_until, timeout};

use super::changes::{self, Changed};
use super::doors;
use super::lans;
use super::paths;
use super::people::{Node, People, SERVICE};
use super::scenario::{Load as Asked, Scenario, Timed};
use super::segment::Counters;
use super::strike::{strike, undo};
use super::traffic::KINDS;
use super::world::World;
use crate::client::load::{Load, Plan, Sample, Target};
use crate::client::{ask, get};
use crate::terminal::{Style, human, say};

/// What is measured against a bound is waited for so many times as long, so that the figure is told also where the bound is missed.
const LONGER: u32 = 4;
/// How often a worker is asked where it is at home, and a service whether it is back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A request that is on a way that is no more does not hold up the next.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Happened {
    /// What clients asked.
    pub(super) samples: Vec<Sample>,
    /// Faults, in the order of the scenario.
    pub(super) faults: Vec<Suffered>,
    /// What was changed, and who knew it when.
    pub(super) changes: Vec<Changed>,
    /// How long registries differed after the last fault, or after the changes where there was none; or why they still do.
    pub(super) agreed: Option<Result<Duration, String>>,
    /// Until all who share a LAN were connected there; or why they are not.
    pub(super) on_lan: Option<Result<Duration, String>>,
    /// How long it took after the last fault until all that can have a direct path had one.
    pub(super) paths_back: Option<Result<Duration, String>>,
    /// What each node's device has sent and received, in the order of the nodes.
    pub(super) traffic: Vec<Traffic>,
    /// Over how long.
    pub(super) counted_for: Duration,
}

/// A fault that was.
#[derive(Debug)]
pub(super) struct Suffered {
    /// When it began and ended, from the beginning of the load.
    pub(super) from: Duration,
    pub(super) until: Option<Duration>,
    /// How many coordinators those that were hit were connected to when it was over; none where that need not be known.
    pub(super) connected: Option<u64>,
    /// Of the workers that lost their home by it, until the last one had another; or who has none.
    pub(super) rehomed: Option<Result<Duration, String>>,
    /// Until those that were hit and serve answered again, each by its name; or why it did not.
    pub(super) back: Vec<(String, Result<Duration, String>)>,
}

/// Plays a scenario in a lab where all have joined. To be called from where clients are.
pub(super) async fn play(scenario: &Scenario, world: &World, people: &People, style: Style) -> Result<Happened> {
    let began = Instant::now();
    let load = scenario.load.as_ref().map(|asked| Load::start(plan(asked, people)));
    // Times are told from here, and the load's are told from its own beginning, which is the same moment.
    let began = load.as_ref().map_or(began, Load::began);
    let stage = Stage { scenario, world, people, began, style };
    let faults = async {
        let faults = try_join_all(scenario.timeline.iter().map(|timed| stage.suffer(timed))).await?;
        // Without a fault it is what has changed that all must agree on.
        let over = faults.iter().map(|fault| fault.until.unwrap_or(fault.from)).max();
        let (agreed, back) = match over {
            Some(over) => tokio::join!(stage.agree(over), stage.paths_back(over)),
            None => (None, None),
        };
        anyhow::Ok((faults, agreed, back))
    };
    let changes = async {
        let changes = stage.change().await?;
        let agreed = if scenario.timeline.is_empty() { stage.agree(began.elapsed()).await } else { None };
        anyhow::Ok((changes, agreed))
    };
    let (faults, changes, counted, on_lan) = tokio::join!(faults, changes, stage.count(), stage.meet_on_lan());
    let ((faults, after_faults, paths_back), (changes, after_changes)) = (faults?, changes?);
    let (agreed, (traffic, counted_for)) = (after_faults.or(after_changes), counted?);
    let samples = match load {
        Some(load) => load.stop().await,
        None => Vec::new(),
    };
    Ok(Happened { samples, faults, changes, agreed, on_lan, paths_back, traffic, counted_for })
}

/// Bytes at one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traffic {
    /// All of them.
    pub(super) bytes: u64,
    /// Of each kind, in the order of [`KINDS`].
    pub(super) bytes_of: [u64; KINDS.len()],
}

impl Traffic {
    fn between(before: Counters, after: Counters) -> Self {
        let bytes = after.sent_bytes + after.received_bytes - before.sent_bytes - before.received_bytes;
        Self { bytes, bytes_of: std::array::from_fn(|kind| after.bytes_of[kind] - before.bytes_of[kind]) }
    }
}

fn traffic(world: &World, people: &People) -> Result<Vec<Counters>> {
    let of = |node: &Node| Ok(world.wire().counters(world.port(&node.member.name)?));
    people.nodes.iter().map(of).collect()
}

fn plan(asked: &Asked, people: &People) -> Plan {
    let target =
        |path: String| Target { label: "GET", method: "GET", path, body: Bytes::new(), expected: SERVICE, weight: 1 };
    let targets = match asked.by_id {
        true => people.serving().map(|node| target(by_id(node))).collect(),
        false => vec![target(format!("/service/{SERVICE}/slow?ms=5"))],
    };
    Plan { to: People::door(), targets, clients: asked.clients, rest: asked.rest.0, total: None }
}

/// Where this node alone answers.
fn by_id(node: &Node) -> String {
    format!("/service/~{}/{SERVICE}/slow?ms=5", node.id)
}

struct Stage<'a> {
    scenario: &'a Scenario,
    world: &'a World,
    people: &'a People,
    began: Instant,
    style: Style,
}

impl Stage<'_> {
    fn tell(&self, what: &str) {
        let at = format!("{:>7.2} s", self.began.elapsed().as_secs_f64());
        say(format!("{}  {}", self.style.dim(at), self.style.yellow(what)));
    }

    async fn suffer(&self, timed: &Timed) -> Result<Suffered> {
        let homes_before = match self.scenario.must.home_within {
            Some(_) => {
                sleep_until((self.began + timed.at.0).into()).await;
                self.homes().await?
            }
            None => Vec::new(),
        };
        sleep_until((self.began + timed.at.0).into()).await;
        let from = self.began.elapsed();
        let struck = strike(&timed.fault, self.world, self.people).await.with_context(|| timed.fault.to_string())?;
        let hit = struck.who.join(", ");
        self.tell(&format!("{} ({hit})", timed.fault));
        let begun = Instant::now();
        let ending = async {
            let Some(lasts) = timed.lasts else {
                return Ok((None, None));
            };
            sleep_until((begun + lasts.0).into()).await;
            let connected = self.connected(&struck.who).await?;
            undo(&timed.fault, &struck, self.world, self.people)?;
            self.tell(&format!("over: {}", timed.fault));
            anyhow::Ok((Some(self.began.elapsed()), connected))
        };
        let ended_and_back = async {
            let (until, connected) = ending.await?;
            anyhow::Ok((until, connected, self.back(timed, &struck.who).await))
        };
        let (ended, rehomed) = tokio::join!(ended_and_back, self.rehome(&homes_before, &struck.who, begun));
        let (until, connected, back) = ended?;
        Ok(Suffered { from, until, connected, rehomed, back })
    }

    /// Waits until all that were hit answer again. To be called when the fault is over, or when it has begun and has no end.
    async fn back(&self, timed: &Timed, hit: &[String]) -> Vec<(String, Result<Duration, String>)> {
        let Some(within) = self.scenario.must.back_within.filter(|_| timed.is_mended()) else {
            return Vec::new();
        };
        let nodes =
            self.people.serving().filter(|node| hit.iter().any(|name| name == "entry" || *name == node.member.name));
        let began = Instant::now();
        let one = |node: &Node| {
            let (name, path) = (node.member.name.clone(), by_id(node));
            async move {
                while began.elapsed() < within.0 * LONGER {
                    if let Ok(Ok(answer)) = timeout(ONE_REQUEST, ask(People::door(), get(&path))).await
                        && answer.status == 200
                    {
                        return (name, Ok(began.elapsed()));
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                (name, Err(format!("not after {}", human(within.0 * LONGER))))
            }
        };
        join_all(nodes.map(one)).await
    }

    /// To how many other coordinators these are connected, all together, if that is to be known.
    async fn connected(&self, hit: &[String]) -> Result<Option<u64>> {
        if !self.scenario.must.parted {
            return Ok(None);
        }
        let mut connected = 0;
        for node in self.people.coordinators().filter(|node| hit.contains(&node.member.name)) {
            let shown = node.on_the_mesh().await?;
            connected += shown["coordinators"].as_u64().with_context(|| format!("no number in {shown}"))?;
        }
        Ok(Some(connected))
    }

    /// Which worker is at home where, by name.
    async fn homes(&self) -> Result<Vec<(String, String)>> {
        let mut homes = Vec::new();
        for worker in self.people.serving().filter(|node| !node.member.role.coordinates()) {
            if let Some(home) = worker.home().await? {
                homes.push((worker.member.name.clone(), self.people.node_of(&home)?.member.name.clone()));
            }
        }
        Ok(homes)
    }

    /// Waits until those who were at home with one that was hit are elsewhere.
    async fn rehome(
        &self,
        before: &[(String, String)],
        hit: &[String],
        begun: Instant,
    ) -> Option<Result<Duration, String>> {
        let within = self.scenario.must.home_within?;
        let lost: BTreeSet<&str> =
            before.iter().filter(|(_, home)| hit.contains(home)).map(|(worker, _)| worker.as_str()).collect();
        let one = |name| async move {
            let worker = self.people.nodes.iter().find(|node| node.member.name == name)?;
            while begun.elapsed() < within.0 * LONGER {
                // One that is being killed itself has no home.
                if let Ok(Some(home)) = worker.home().await
                    && self.people.node_of(&home).is_ok_and(|node| !hit.contains(&node.member.name))
                {
                    return Some(begun.elapsed());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            None
        };
        let took = join_all(lost.iter().map(|name| one(*name))).await;
        let homeless: Vec<&str> =
            lost.iter().zip(&took).filter(|(_, took)| took.is_none()).map(|(name, _)| *name).collect();
        let last = took.iter().flatten().max().copied();
        Some(match (last, homeless.as_slice()) {
            (Some(last), []) => Ok(last),
            (None, []) => Err("nobody was at home there: the fault proves nothing".to_owned()),
            (_, names) => Err(format!("{} found no other home", names.join(", "))),
        })
    }

    /// The traffic from when it is to be counted until the end, and how long that was.
    async fn count(&self) -> Result<(Vec<Traffic>, Duration)> {
        sleep_until((self.began + self.scenario.count_from.0).into()).await;
        let (from, before) = (Instant::now(), traffic(self.world, self.people)?);
        sleep_until((self.began + self.scenario.duration.0).into()).await;
        let after = traffic(self.world, self.people)?;
        let between = before.iter().zip(&after).map(|(before, after)| Traffic::between(*before, *after));
        Ok((between.collect(), from.elapsed()))
    }

    /// Waits until all who share a LAN are connected there, if they must be.
    async fn meet_on_lan(&self) -> Option<Result<Duration, String>> {
        let within = self.scenario.must.on_lan_within?;
        let met = lans::meet(self.people, within.0 * LONGER).await.map_err(|error| format!("{error:#}"));
        if let Ok(took) = &met {
            self.tell(&format!("all who share a LAN are connected there, after {}", human(*took)));
        }
        Some(met)
    }

    async fn change(&self) -> Result<Vec<Changed>> {
        match &self.scenario.changes {
            Some(changes) => {
                let watched = self.scenario.must.change_p50.or(self.scenario.must.change_p99).is_some();
                changes::make(changes, watched, self.world, self.people, self.began).await
            }
            None => Ok(Vec::new()),
        }
    }

    /// Waits until all that can have a direct path have one, if they must; how long that took since then.
    async fn paths_back(&self, since: Duration) -> Option<Result<Duration, String>> {
        let within = self.scenario.must.paths_back_within?;
        let back = paths::met(self.people, self.began + since, within.0 * LONGER).await;
        if let Ok(took) = &back {
            self.tell(&format!("all paths that can be direct are, after {}", human(*took)));
        }
        Some(back)
    }

    /// Waits until all registries are equal, if they must be; how long that took since then.
    async fn agree(&self, since: Duration) -> Option<Result<Duration, String>> {
        let within = self.scenario.must.agree_within?;
        let agreed = doors::agree(self.people, within.0 * LONGER).await.map_err(|error| format!("{error:#}"));
        let took = agreed.map(|_| self.began.elapsed().saturating_sub(since));
        if let Ok(took) = &took {
            self.tell(&format!("all registries are equal, after {}", human(*took)));
        }
        Some(took)
    }
}
