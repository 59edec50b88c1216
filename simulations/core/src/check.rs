//! What must hold. Safety at every step: nothing forged, nothing that goes back, nothing that comes back from the dead, nobody kept
//! alive by others, nothing run twice. Liveness at the end, when faults have been over for as long as the scenario says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Kind, Signed, Version};
use hedgerow_proto::registry::{Presence, Registry};

use crate::book::{Ended, Key};
use crate::entry::Entry;
use crate::message::RequestNumber;
use crate::safety;
use crate::world::{Process, World};

/// With so many nodes or fewer every change of a replica is looked at.
const ALL_UP_TO: u32 = 64;
/// With more, every one of so many at least …
const ONE_OF: u64 = 64;
/// … and of so many times fewer than there are nodes. A look costs as much as there are, and there are as many changes.
const ONE_OF_NODES: u64 = 16;
/// What was said so long ago must be known to everybody, when nothing is wrong.
const KNOWN_AFTER: Duration = Duration::from_secs(10);
/// A node that has been up for so long must be reached.
const REACHED_AFTER: Duration = Duration::from_secs(30);
/// What coordinators say to each other in the last half minute, for each, when nothing is wrong: leases at their highest rate to
/// and from a dozen neighbours, and a synchronisation a second.
const IDLE_BYTES_PER_SECOND_MAX: f64 = 96.0 * 1024.0;
/// The stretch for which that is measured.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// What a replica held when it was looked at last.
#[derive(Debug, Default)]
struct Seen {
    generation: u64,
    changes: u64,
    /// What each writer had said, by its index, in the registry's order.
    held: Vec<Vec<Signed>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Checker {
    seen: Vec<Seen>,
    /// Every one of so many changes of a replica is looked at.
    one_of: u64,
    /// Bytes that had been sent when the last stretch began.
    idle_from: Option<u64>,
}

impl Checker {
    pub(crate) fn new(nodes: u32) -> Self {
        let seen = (0..nodes).map(|_| Seen::default()).collect();
        let one_of = if nodes <= ALL_UP_TO { 1 } else { ONE_OF.max(u64::from(nodes) / ONE_OF_NODES) };
        Self { seen, one_of, idle_from: None }
    }

    /// A process has started: it knows what its disk knew.
    pub(crate) fn started(&mut self, node: u32) {
        self.seen[node as usize] = Seen::default();
    }

    /// A process has dealt with something.
    pub(crate) fn after(world: &mut World, node: u32) {
        let Some(generation) = registry(world, node).map(Registry::generation) else { return };
        let (one_of, seen) = (world.checker.one_of, &mut world.checker.seen[node as usize]);
        if seen.generation == generation {
            return;
        }
        seen.generation = generation;
        seen.changes += 1;
        if seen.changes.is_multiple_of(one_of) {
            Self::look(world, node);
        }
    }

    /// Looks at all that a replica holds.
    fn look(world: &mut World, node: u32) {
        let changes = world.checker.seen[node as usize].changes;
        let mut held = std::mem::take(&mut world.checker.seen[node as usize].held);
        held.resize_with(world.machines.len(), Vec::new);
        let mut wrong = Vec::new();
        if let Some(registry) = registry(world, node) {
            for (id, index) in &world.book.index {
                look_at_writer(world, registry, *id, &mut held[*index as usize], &mut wrong);
                if let Some(what) = lives_on(world, registry, node, *id, *index) {
                    wrong.push(("lives-on", what));
                }
            }
            if changes.is_multiple_of(ONE_OF) {
                wrong.extend(safety::bounded(registry)); // Looks at every node, and so not at every step.
            }
        }
        world.checker.seen[node as usize].held = held;
        let now = world.net.now;
        wrong.into_iter().for_each(|(rule, what)| world.book.wrong(now, rule, Some(node), what));
    }

    /// The time of a request is over.
    pub(crate) fn request_over(world: &mut World, number: RequestNumber) {
        let Some(asked) = world.book.requests.get(&number) else { return };
        let answered = matches!(asked.end, Some((_, Ended::Answered)));
        if answered || asked.at < world.quiet_from + KNOWN_AFTER {
            return;
        }
        let offers = |node: &u32| world.settings.services_of(*node).contains(&asked.service);
        let able = world.settings.layout.honest().filter(offers).filter(|node| is_well(world, *node, asked.at)).count();
        if able > 0 {
            let what = format!(
                "request {number} for service {} was not answered ({:?}), though {able} nodes offer it",
                asked.service, asked.end
            );
            let at = world.net.now;
            world.book.wrong(at, "not-served", None, what);
        }
    }

    /// Faults have been over for long: everything must be right.
    pub(crate) fn at_the_end(world: &mut World) {
        let now = world.net.now;
        for node in 0..world.machines.len() as u32 {
            Self::look(world, node);
        }
        let mut wrong = Vec::new();
        let replicas: Vec<u32> = (0..world.machines.len() as u32)
            .filter(|node| is_well(world, *node, now))
            .filter(|node| world.member(*node).is_none_or(|member| member.coordinates() && member.is_honest()))
            .collect();
        let due = due(world, &replicas);
        for node in &replicas {
            let Some(registry) = registry(world, *node) else { continue };
            if *registry.limits() == Limits::PRODUCTION {
                wrong.extend(stale(world, &due, registry).into_iter().map(|what| ("stale", *node, what)));
            }
        }
        for node in replicas.iter().filter(|node| world.settings.layout.entries.contains(node)) {
            wrong.extend(unreached(world, *node).map(|what| ("unreached", *node, what)));
        }
        for (rule, node, what) in wrong {
            world.book.wrong(now, rule, Some(node), what);
        }
        Self::quiet(world);
    }

    /// A second has passed: what is said in the last stretch is measured.
    pub(crate) fn second(world: &mut World) {
        let said = world.net.traffic.gossip_bytes + world.net.traffic.sync_bytes;
        if world.net.now + IDLE_FOR >= world.ends {
            world.checker.idle_from.get_or_insert(said);
        }
    }

    /// Nobody talks more than there is to say.
    fn quiet(world: &mut World) {
        let said = world.net.traffic.gossip_bytes + world.net.traffic.sync_bytes;
        let coordinators = world.coordinators().count().max(1);
        let since = said - world.checker.idle_from.unwrap_or(said);
        let each = since as f64 / IDLE_FOR.as_secs_f64() / coordinators as f64;
        if each > IDLE_BYTES_PER_SECOND_MAX {
            let what = format!("each coordinator says {each:.0} bytes a second, though nothing happens");
            let at = world.net.now;
            world.book.wrong(at, "talks-too-much", None, what);
        }
    }
}

/// The registry that a process holds, if it holds one of others' words.
fn registry(world: &World, node: u32) -> Option<&Registry> {
    match &world.machines.get(node as usize)?.process {
        Some(Process::Entry(entry)) => Some(&entry.registry),
        Some(Process::Member(member)) if member.coordinates() && member.is_honest() => Some(member.core.registry()),
        _ => None,
    }
}

/// Whether a node runs, has done so for a while, and nothing holds it.
fn is_well(world: &World, node: u32, at: Duration) -> bool {
    let Some(machine) = world.machines.get(node as usize) else { return false };
    let up = machine.process.is_some() && !machine.hurt && !machine.stopped;
    up && machine.up_since + REACHED_AFTER <= at && !world.settings.layout.adversaries.contains(&node)
}

/// What a replica holds of one writer, beside what it held when it was looked at last.
fn look_at_writer(
    world: &World,
    registry: &Registry,
    id: NodeId,
    before: &mut Vec<Signed>,
    wrong: &mut Vec<(&'static str, String)>,
) {
    if registry.records_of(&id).eq(before.iter()) {
        return;
    }
    let trusted = !world.book.untrusted.contains(&id);
    let now: Vec<Signed> = registry.records_of(&id).cloned().collect();
    if trusted {
        wrong.extend(safety::forged(id, &now, |hash| world.book.has_signed(hash)));
    }
    wrong.extend(safety::went_on(id, before, &now, trusted && *registry.limits() == Limits::PRODUCTION));
    *before = now;
}

/// Whether a coordinator is taken for one that is there, long after it was.
fn lives_on(world: &World, registry: &Registry, node: u32, id: NodeId, index: u32) -> Option<String> {
    let there = &world.machines[index as usize];
    if index == node || there.process.is_some() {
        return None;
    }
    if registry.presence(&id) == Presence::Absent || world.book.untrusted.contains(&id) {
        return None;
    }
    let now = world.net.now;
    let bound = safety::seems_there_max(registry);
    let here = &world.machines[node as usize];
    // After a suspend, and from a snapshot, leases run once more.
    let excused = here.jumped_at.is_some_and(|at| now - at < bound) || (here.restored && now - here.up_since < bound);
    let gone_for = now.saturating_sub(there.up_last);
    (!excused && gone_for > bound).then(|| {
        format!(
            "coordinator {} counts as {:?} {gone_for:?} after it was there last",
            id.short(),
            registry.presence(&id)
        )
    })
}

/// What everybody should know by now: of those who are there, what they said last; of the others, the newest that anybody knows.
fn due(world: &World, replicas: &[u32]) -> BTreeMap<Key, Version> {
    let now = world.net.now;
    let before = now.saturating_sub(KNOWN_AFTER);
    let is_trusted = |writer: &NodeId| !world.book.untrusted.contains(writer);
    let mut due = BTreeMap::new();
    let said_before = |key: &Key, version: Version| {
        let said = world.book.newest.get(key).filter(|(newest, ..)| *newest == version);
        said.is_none_or(|(.., said)| *said <= before)
    };
    for node in world.settings.layout.honest().filter(|node| is_well(world, *node, now)) {
        let Some(member) = world.member(node).filter(|member| is_trusted(&member.id())) else { continue };
        let id = member.id();
        let own = member.core.registry().records_of(&id);
        let asked = own.filter(|signed| safety::is_for_all(signed.kind(), member.coordinates()));
        for signed in asked {
            let key = (id, signed.kind(), signed.subject().to_vec());
            if said_before(&key, signed.version()) {
                due.insert(key, signed.version());
            }
        }
    }
    for registry in replicas.iter().filter_map(|node| registry(world, *node)) {
        for id in world.book.index.keys().filter(|id| is_trusted(id)) {
            for signed in registry.records_of(id) {
                let key = (*id, signed.kind(), signed.subject().to_vec());
                if said_before(&key, signed.version()) {
                    let newest = due.entry(key).or_insert(signed.version());
                    *newest = (*newest).max(signed.version());
                }
            }
        }
    }
    due
}

/// What this replica does not know, and should.
fn stale(world: &World, due: &BTreeMap<Key, Version>, registry: &Registry) -> Vec<String> {
    let behind = |((writer, kind, subject), version): (&Key, &Version)| {
        let mut records = registry.records_of(writer);
        let held = records.find(|signed| signed.kind() == *kind && signed.subject() == &subject[..]);
        let held = held.map(|signed| signed.version());
        let left = registry.records_of(writer).find(|signed| signed.kind() == Kind::LEAVE);
        let is_over = left.is_some_and(|left| left.version() >= *version);
        let behind = !is_over && held.is_none_or(|held| held < *version);
        let index = world.book.index.get(writer);
        behind.then(|| format!("{kind:?} of node {index:?} at {version:?} is not known; {held:?} is"))
    };
    due.iter().filter_map(behind).collect()
}

/// Workers that this entry does not reach, and should.
fn unreached(world: &World, entry: u32) -> impl Iterator<Item = String> {
    let workers = world.settings.layout.workers.clone().chain(world.settings.layout.crowd.clone());
    let well = workers.filter(|node| is_well(world, *node, world.net.now));
    let reached: BTreeSet<NodeId> = world.entry(entry).into_iter().flat_map(Entry::reached).collect();
    well.filter_map(move |node| {
        let id = world.member(node)?.id();
        let reached = world.book.untrusted.contains(&id) || reached.contains(&id);
        (!reached).then(|| format!("worker {node} ({}) runs, and no request would reach it", id.short()))
    })
}
