//! How things stand: what is sampled, and what must be so at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Kind, Version};
use hedgerow_proto::registry::Registry;
use hedgerow_sim_core::safety;
use hedgerow_sim_model::results::{Sample, Violation};

use super::super::evidence::Asked;
use super::super::node::Running;
use super::{Agreement, WATCH_INTERVAL, World};
use crate::time;

/// Once nothing is wrong any more, every request is served after this: tunnels are back within seconds, and what hangs on a lease
/// takes as long as that.
const SERVED_AFTER: Duration = Duration::from_secs(90);

/// Something that a node has said of itself: its place among all that is said, and which version it was.
#[derive(Debug, Clone)]
pub(super) struct Said {
    node: u32,
    writer: NodeId,
    kind: Kind,
    subject: Vec<u8>,
    version: Version,
}

impl World {
    /// What every running node says now, and all must come to know.
    pub(super) fn what_all_say(&self) -> Vec<Said> {
        let of_one = |(node, running): (u32, &Running)| {
            let writer = running.id();
            running.membership.replica.read(|registry| {
                let own = registry.records_of(&writer);
                let asked = own.filter(|signed| safety::is_for_all(signed.kind(), running.coordinates()));
                let said = asked.map(|signed| Said {
                    node,
                    writer,
                    kind: signed.kind(),
                    subject: signed.subject().to_vec(),
                    version: signed.version(),
                });
                said.collect::<Vec<_>>()
            })
        };
        self.all_running().flat_map(of_one).collect()
    }

    /// How much of what had been said a coordinator does not know.
    fn unknown_to(&self, running: &Running) -> Vec<&Said> {
        running.membership.replica.read(|registry| {
            // With tiny limits there may be no room for all.
            if *registry.limits() != Limits::PRODUCTION {
                return Vec::new();
            }
            let known = |said: &&Said| {
                let mut records = registry.records_of(&said.writer);
                records.any(|signed| {
                    signed.kind() == said.kind && signed.subject() == said.subject && signed.version() >= said.version
                })
            };
            self.said.iter().filter(|said| !known(said)).collect()
        })
    }

    pub(super) fn all_running(&self) -> impl Iterator<Item = (u32, &Running)> {
        self.places.iter().filter_map(|(node, place)| Some((*node, place.running.as_ref()?)))
    }

    pub(super) fn coordinators_running(&self) -> Vec<(u32, &Running)> {
        self.all_running().filter(|(_, running)| running.coordinates()).collect()
    }

    /// The next change.
    pub(super) fn change(&mut self) {
        let Some(changes) = self.settings.scenario.changes.clone() else { return };
        let mut made = std::mem::take(&mut self.changes);
        made.next(&changes, &self.coordinators_running());
        self.changes = made;
    }

    /// Notes what is waited for, if it has come. When to look again, if anything is waited for still.
    pub(super) fn watch(&mut self, now: Duration) -> Option<Duration> {
        let mut made = std::mem::take(&mut self.changes);
        let coordinators = self.coordinators_running();
        made.look(&coordinators);
        let awaited = self.agreement.after_joining.is_none()
            || (self.agreement.after_faults.is_none() && now >= self.faults_over_at());
        let agree = awaited
            && coordinators.len() == self.layout.coordinators.len()
            && coordinators.windows(2).all(|two| two[0].1.digest() == two[1].1.digest())
            && self.entries.values().filter_map(|place| place.running.as_ref()).all(|entry| {
                entry
                    .digest()
                    .is_some_and(|digest| coordinators.first().is_none_or(|(_, first)| first.digest() == digest))
            });
        if agree {
            self.agreement.after_joining.get_or_insert(now);
            if now >= self.faults_over_at() {
                self.agreement.after_faults.get_or_insert(now);
            }
        }
        self.changes = made;
        let next = now + WATCH_INTERVAL;
        let Agreement { after_joining, after_faults, .. } = self.agreement;
        match (after_joining, after_faults) {
            _ if self.settings.scenario.changes.is_some() => Some(next),
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(next.max(self.faults_over_at())),
            (None, _) => Some(next),
        }
    }

    fn faults_over_at(&self) -> Duration {
        self.plan.over_at().max(self.settings.scenario.population.joins_over.0)
    }

    fn digests(&self) -> BTreeMap<[u8; 32], u32> {
        let mut digests = BTreeMap::new();
        for (_, running) in self.all_running().filter(|(_, running)| running.coordinates()) {
            *digests.entry(running.digest().0).or_default() += 1;
        }
        digests
    }

    pub(super) fn look(&self) -> Sample {
        let digests = self.digests();
        let coordinators_up: u32 = digests.values().sum();
        let most = digests.values().max().copied().unwrap_or_default();
        let workers = || self.all_running().filter(|(_, running)| !running.coordinates());
        let at_home = workers().filter(|(_, running)| running.membership.mesh.attached.borrow().is_some());
        let records = self.all_running().map(|(_, running)| running.membership.replica.read(Registry::len) as u64);
        let (traffic, asked) = (self.network.traffic(), self.evidence.counts());
        Sample {
            t_s: time::now().since_origin().as_secs_f64(),
            nodes_up: self.all_running().count() as u32,
            coordinators_up,
            digests: digests.len() as u32,
            agreeing: f64::from(most) / f64::from(coordinators_up.max(1)),
            records: records.max().unwrap_or_default(),
            mesh_connections: self.neighbours().len() as u64,
            messages: traffic.messages,
            bytes: traffic.bytes,
            requests: asked.requests,
            answered: asked.answered,
            failed: asked.failed,
            routable: at_home.count() as u32,
            workers_up: workers().count() as u32,
            faults: self.faults_now,
            ..Sample::default()
        }
    }

    /// Who is connected to whom among the coordinators, each pair once.
    pub(super) fn neighbours(&self) -> Vec<(u32, u32)> {
        let by_id: BTreeMap<NodeId, u32> = self.all_running().map(|(node, running)| (running.id(), node)).collect();
        let mut pairs = BTreeSet::new();
        for (node, running) in self.all_running() {
            for other in running.membership.mesh.host_status().coordinators {
                if let Some(other) = by_id.get(&other).filter(|other| **other != node) {
                    pairs.insert((node.min(*other), node.max(*other)));
                }
            }
        }
        pairs.into_iter().collect()
    }

    pub(super) fn figures(&self) -> BTreeMap<String, f64> {
        let traffic = self.network.traffic();
        let asked = self.evidence.counts();
        let mut figures = BTreeMap::from([
            ("requests".to_owned(), asked.requests as f64),
            ("requests_answered".to_owned(), asked.answered as f64),
            ("requests_failed".to_owned(), asked.failed as f64),
            ("connections".to_owned(), traffic.connections as f64),
            ("connections_given_up".to_owned(), traffic.given_up as f64),
            ("messages".to_owned(), traffic.messages as f64),
            ("bytes".to_owned(), traffic.bytes as f64),
            ("stopped_by_themselves".to_owned(), self.restarts as f64),
        ]);
        figures.extend(self.seen.let_in().map(|count| ("hostile_let_in".to_owned(), count as f64)));
        let since = |from: Duration| move |at: Duration| at.saturating_sub(from).as_secs_f64();
        let Agreement { joined_at, after_joining, after_faults } = self.agreement;
        // With very many coordinators there is always some lease on its way.
        figures.extend(after_joining.map(since(joined_at)).map(|after| ("joined_after_s".to_owned(), after)));
        let agreed = after_faults.map(since(self.faults_over_at()));
        figures.extend(agreed.map(|after| ("agreed_after_s".to_owned(), after)));
        if self.settings.scenario.changes.is_some() {
            let (after, never) = self.changes.known_after(self.layout.coordinators.len());
            figures.insert("changes_not_known".to_owned(), never as f64);
            for (name, share) in [("change_p50_s", 0.5), ("change_p99_s", 0.99)] {
                let nearest = ((after.len() as f64 * share).ceil() as usize).saturating_sub(1);
                figures.extend(after.get(nearest).map(|after| (name.to_owned(), after.as_secs_f64())));
            }
        }
        figures
    }

    /// What must be so once nothing has been wrong for a while.
    pub(super) fn wrong_at_the_end(&self) -> Vec<Violation> {
        let at_s = time::now().since_origin().as_secs_f64();
        let violation = |rule: &str, node, what| Violation { rule: rule.to_owned(), at_s, node, what };
        let mut wrong = Vec::new();
        for (node, running) in self.all_running().filter(|(_, running)| running.coordinates()) {
            let unknown = self.unknown_to(running);
            if let Some(first) = unknown.first() {
                let (count, kind, of) = (unknown.len(), first.kind, first.node);
                let what = format!(
                    "does not know {count} of {} records, such as one of kind {kind:?} of node {of}",
                    self.said.len()
                );
                wrong.push(violation("convergence", Some(node), what));
            }
        }
        for (node, place) in &self.places {
            match &place.running {
                None if place.wanted => {
                    wrong.push(violation("runs", Some(*node), "it should run and does not".into()));
                }
                Some(running) if !running.coordinates() && running.membership.mesh.attached.borrow().is_none() => {
                    wrong.push(violation("home", Some(*node), "a worker has no home".into()));
                }
                _ => {}
            }
        }
        for (node, what) in self.changes.wrong(&self.coordinators_running()) {
            wrong.push(violation("agents", node, what));
        }
        for (id, asked) in self.evidence.ran_twice() {
            wrong.push(violation(
                "once",
                None,
                format!("request {id} must not run twice and ran {} times", asked.runs),
            ));
        }
        for (id, asked) in self.not_served() {
            let what = format!(
                "request {id} for {}, asked at {:?}, was not served: {:?}",
                asked.service, asked.at, asked.outcome
            );
            wrong.push(violation("served", None, what));
        }
        wrong
    }

    /// Requests that could be served and were not: asked when nothing had been wrong for a while, of services that somebody offers.
    fn not_served(&self) -> Vec<(u64, Asked)> {
        let scenario = &self.settings.scenario;
        let Some(load) = &scenario.load else { return Vec::new() };
        let end = scenario.duration.0;
        let quiet = end.saturating_sub(scenario.settle.0) + SERVED_AFTER;
        let offered: BTreeSet<&str> = self
            .places
            .values()
            .filter(|place| place.running.is_some())
            .flat_map(|place| place.plan.services.iter().map(|(name, _)| name.as_str()))
            .collect();
        let mut failed = self.evidence.failed_between(quiet, end.saturating_sub(load.patience.0));
        failed.retain(|(_, asked)| offered.contains(asked.service.as_str()));
        failed
    }
}
