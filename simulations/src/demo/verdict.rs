//! Which failures the design allows and which it does not, and the summary that says so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::AGENT_TARGET;
use super::listener::Heard;
use super::marks::{AgentMarks, Agreement, CatchingUp, Marks, Rehoming};
use super::registry::short;
use crate::client::load::{Failure, Sample, Target, quantile};
use crate::terminal::{Style, grouped, human};

/// How long an entry may take from its start to the first request that it routes.
const FIRST_ROUTE_WITHIN: Duration = Duration::from_secs(2);
/// How long it may take until all nodes have dialled back.
const ALL_BACK_WITHIN: Duration = Duration::from_secs(5);

/// How long the registry and the homes may take to be right again after what is done to coordinators. Generous: it says that they
/// come right by themselves; the figures beside it say how quickly.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// What was measured, and whether it is what was promised.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Verdict {
    /// All requests.
    requests: usize,
    /// GETs that were asked while an entry was up.
    must_not_fail: usize,
    /// Those of them that failed, by reason.
    failed: BTreeMap<String, usize>,
    /// Requests that met no entry, or one that was killed under them.
    while_no_entry: usize,
    /// Requests that a new entry refused until its nodes had dialled back; nothing of them ran.
    while_nodes_returned: usize,
    /// POSTs whose worker was killed under them: 502, outcome unknown.
    posts_unknown: usize,
    /// POSTs that ran.
    posts_run: usize,
    /// POSTs that ran twice.
    posts_run_twice: usize,
    /// Good answers that needed a second node.
    tried_elsewhere: usize,
    #[serde(serialize_with = "as_milliseconds")]
    p50: Duration,
    #[serde(serialize_with = "as_milliseconds")]
    p99: Duration,
    #[serde(serialize_with = "as_milliseconds")]
    longest: Duration,
    /// The longest answer to a request that was under way when the worker was killed.
    #[serde(serialize_with = "as_milliseconds")]
    longest_at_worker_kill: Duration,
    #[serde(serialize_with = "as_milliseconds")]
    first_route: Duration,
    #[serde(serialize_with = "as_milliseconds")]
    all_back: Duration,
    #[serde(serialize_with = "as_milliseconds")]
    rejoined: Duration,
    events: Heard,
    /// Good answers of the agent, by what the entry says who answered.
    agent_answers: usize,
    /// Requests for the agent's service while it was there, an entry was up, and knew of it.
    agent_must_not_fail: usize,
    agent: AgentMarks,
    catching_up: CatchingUp,
    rehoming: Rehoming,
    agreement: Agreement,
}

/// What the design says of one failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    NoEntry,
    NodesReturning,
    PostUnknown,
    Broken,
}

impl Verdict {
    /// Judges a run. `runs` says how often each POST ran.
    pub(super) fn of(
        samples: &[Sample],
        targets: &[Target],
        marks: &Marks,
        runs: BTreeMap<String, u64>,
        events: &Heard,
    ) -> Self {
        let mut counts = [0_usize; 3];
        let mut failed = BTreeMap::new();
        let (mut gets_apart, mut agent_apart) = (0, 0);
        for sample in samples {
            let Err(failure) = &sample.result else { continue };
            let is_get = targets[sample.target].method == "GET";
            let of_agent = sample.target == AGENT_TARGET;
            let back = if of_agent { marks.agent_was_back } else { marks.nodes_were_back };
            let class = classify(sample, failure, is_get, marks, back);
            match class {
                Class::NoEntry => counts[0] += 1,
                Class::NodesReturning => counts[1] += 1,
                Class::PostUnknown => counts[2] += 1,
                Class::Broken => *failed.entry(format!("{} {failure}", targets[sample.target].label)).or_default() += 1,
            }
            gets_apart += usize::from(is_get && class != Class::Broken);
            agent_apart += usize::from(of_agent && class != Class::Broken);
        }
        let of_agent = || samples.iter().filter(|sample| sample.target == AGENT_TARGET);
        let by_agent = |sample: &&Sample| sample.result.as_ref().is_ok_and(|good| *good.node == *marks.agent.worker_id);
        let gets = samples.iter().filter(|sample| targets[sample.target].method == "GET").count();
        let good = || samples.iter().filter(|sample| sample.result.is_ok());
        let mut took: Vec<_> = good().map(|sample| sample.took).collect();
        let under_way = |sample: &&Sample| {
            sample.at <= marks.worker_killed + Duration::from_millis(100)
                && sample.at + sample.took >= marks.worker_killed
        };
        Self {
            requests: samples.len(),
            must_not_fail: gets - gets_apart,
            failed,
            while_no_entry: counts[0],
            while_nodes_returned: counts[1],
            posts_unknown: counts[2],
            posts_run: runs.len(),
            posts_run_twice: runs.values().filter(|count| **count > 1).count(),
            tried_elsewhere: good().filter(|sample| sample.result.as_ref().is_ok_and(|good| good.attempts > 1)).count(),
            p50: quantile(&mut took, 0.5),
            p99: quantile(&mut took, 0.99),
            longest: quantile(&mut took, 1.0),
            longest_at_worker_kill: good().filter(under_way).map(|sample| sample.took).max().unwrap_or_default(),
            first_route: marks.first_route,
            all_back: marks.all_back,
            rejoined: marks.rejoined,
            events: events.clone(),
            agent_answers: of_agent().filter(by_agent).count(),
            agent_must_not_fail: of_agent().count() - agent_apart,
            agent: marks.agent.clone(),
            catching_up: marks.catching_up.clone(),
            rehoming: marks.rehoming.clone(),
            agreement: marks.agreement.clone(),
        }
    }

    /// The promises: what each is, what was measured, and whether it holds.
    fn promises(&self) -> Vec<(&'static str, String, String, bool)> {
        let failed: usize = self.failed.values().sum();
        let settled = || format!("≤ {}", human(SETTLED_WITHIN));
        vec![
            (
                "requests that must not fail",
                format!("{} asked, {failed} failed", grouped(self.must_not_fail + self.posts_run)),
                "0 failed".to_owned(),
                failed == 0 && self.must_not_fail > 0,
            ),
            (
                "no POST runs twice",
                format!("{} ran, {} twice", grouped(self.posts_run), self.posts_run_twice),
                "0 twice".to_owned(),
                self.posts_run_twice == 0,
            ),
            (
                "entry restarted: first route",
                human(self.first_route),
                format!("≤ {}", human(FIRST_ROUTE_WITHIN)),
                self.first_route <= FIRST_ROUTE_WITHIN,
            ),
            (
                "entry restarted: all nodes back",
                human(self.all_back),
                format!("≤ {}", human(ALL_BACK_WITHIN)),
                self.all_back <= ALL_BACK_WITHIN,
            ),
            (
                "coordinator killed: workers rehomed",
                format!("{} in {}", self.rehoming.workers, human(self.rehoming.took)),
                settled(),
                self.rehoming.workers > 0 && self.rehoming.took <= SETTLED_WITHIN,
            ),
            (
                "coordinator paused: caught up",
                human(self.catching_up.took),
                settled(),
                self.catching_up.missed_something && self.catching_up.took <= SETTLED_WITHIN,
            ),
            (
                "agent of the existing contract",
                format!("{} asked, {} answered", grouped(self.agent_must_not_fail), grouped(self.agent_answers)),
                "all answered".to_owned(),
                self.agent_answers > 0 && self.agent_answers == self.agent_must_not_fail,
            ),
            (
                "its heartbeats",
                format!("{} answered, {} refused", self.agent.heartbeats, self.agent.heartbeats_refused),
                "0 refused".to_owned(),
                self.agent.heartbeats > 0 && self.agent.heartbeats_refused == 0,
            ),
            (
                "one registry at the end",
                format!("{} have {}", self.agreement.holders, short(&self.agreement.digest)),
                "all have it".to_owned(),
                !self.agreement.digest.is_empty() && self.agreement.took <= SETTLED_WITHIN,
            ),
        ]
    }

    /// Those that do not hold, with what was measured instead.
    pub(super) fn broken_promises(&self) -> Vec<String> {
        let broken = self.promises().into_iter().filter(|promise| !promise.3);
        broken.map(|(name, measured, promised, _)| format!("{name} ({measured}; promised {promised})")).collect()
    }

    /// Whether all hold.
    pub(super) fn holds(&self) -> bool {
        self.broken_promises().is_empty()
    }

    /// The summary for a person.
    pub(super) fn to_text(&self, style: Style) -> String {
        let mut lines = vec![String::new(), style.bold("What was promised, and what was measured")];
        for (name, measured, promised, holds) in self.promises() {
            let sign = if holds { style.green("✔") } else { style.red("✘") };
            lines.push(format!("  {sign} {name:36} {measured:28} {}", style.dim(format!("promised {promised}"))));
        }
        for (reason, count) in &self.failed {
            lines.push(format!("      {} × {}", grouped(*count), style.red(reason)));
        }
        let mut apart = |name: &str, figure: String| lines.push(format!("    {name:36} {figure}"));
        apart("all requests", grouped(self.requests));
        apart(
            "  while no entry was up",
            format!("{} refused or cut off, apart from the above", grouped(self.while_no_entry)),
        );
        apart(
            "  while its nodes dialled back",
            format!("{} told 503, nothing ran", grouped(self.while_nodes_returned)),
        );
        apart("  POSTs under a killed worker", format!("{} told 502, outcome unknown", self.posts_unknown));
        apart("  answered by a second node", grouped(self.tried_elsewhere));
        apart("latency", format!("p50 {}, p99 {}, longest {}", human(self.p50), human(self.p99), human(self.longest)));
        apart("  longest under the killed worker", human(self.longest_at_worker_kill));
        apart("killed nodes started again", format!("in after {}", human(self.rejoined)));
        let Self { agent, catching_up, rehoming, .. } = self;
        apart(
            "killed coordinator",
            format!("{}; the others agreed after {}", rehoming.coordinator, human(rehoming.agreed)),
        );
        apart(
            "paused coordinator",
            format!("{}; cut off from everybody for {}", catching_up.coordinator, human(catching_up.paused)),
        );
        apart(
            "agent",
            format!(
                "{}: found after {}, first answer after {}",
                agent.services.join(", "),
                human(agent.found),
                human(agent.first_answer)
            ),
        );
        apart("  after the entry's restart", format!("answers again after {}", human(agent.back)));
        apart("  after its unregistering", format!("nobody sent to it after {}", human(agent.gone)));
        apart(
            "event stream",
            format!(
                "{} events, begun again {} ×, longest gap {}",
                grouped(self.events.events),
                self.events.reconnects,
                human(self.events.longest_gap)
            ),
        );
        lines.join("\n")
    }
}

/// `back` is when the entry had found again whom the request was for.
fn classify(sample: &Sample, failure: &Failure, is_get: bool, marks: &Marks, back: Duration) -> Class {
    let ended = sample.at + sample.took;
    let met = |from: Duration, to: Duration| sample.at <= to && ended >= from;
    let no_answer = matches!(failure, Failure::NoConnection | Failure::Broken(_));
    match failure {
        _ if no_answer && met(marks.entry_killed, marks.entry_listened) => Class::NoEntry,
        // It listens a moment before it is ready, and a killed one answers nothing.
        Failure::Status(503, _) if met(marks.entry_killed, back) => Class::NodesReturning,
        Failure::Status(502, detail) if !is_get && detail.contains("unknown") => Class::PostUnknown,
        _ => Class::Broken,
    }
}

/// Durations as milliseconds, for JSON.
pub(super) fn as_milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::load::Served;

    fn seconds(value: f64) -> Duration {
        Duration::from_secs_f64(value)
    }

    fn marks() -> Marks {
        Marks {
            entry_killed: seconds(5.0),
            entry_listened: seconds(5.2),
            nodes_were_back: seconds(5.5),
            ..Marks::default()
        }
    }

    fn class(at: f64, failure: Failure, is_get: bool) -> Class {
        let sample = Sample { at: seconds(at), took: seconds(0.01), target: 0, result: Err(failure.clone()) };
        classify(&sample, &failure, is_get, &marks(), marks().nodes_were_back)
    }

    #[test]
    fn only_what_met_no_entry_is_counted_apart() {
        assert_eq!(class(5.1, Failure::NoConnection, true), Class::NoEntry);
        assert_eq!(class(4.995, Failure::Broken("cut".into()), true), Class::NoEntry, "killed under the request");
        assert_eq!(class(4.0, Failure::NoConnection, true), Class::Broken);
        assert_eq!(class(5.3, Failure::NoConnection, true), Class::Broken, "a new entry listens and does not answer");
    }

    #[test]
    fn a_503_is_forgiven_only_until_the_nodes_are_back() {
        assert_eq!(class(5.3, Failure::Status(503, "not-run".into()), true), Class::NodesReturning);
        assert_eq!(class(5.6, Failure::Status(503, "not-run".into()), true), Class::Broken);
        assert_eq!(class(5.3, Failure::Status(502, "unknown".into()), true), Class::Broken);
    }

    #[test]
    fn an_unknown_outcome_is_honest_for_a_post_and_a_failure_for_a_get() {
        assert_eq!(class(1.0, Failure::Status(502, "x unknown".into()), false), Class::PostUnknown);
        assert_eq!(class(1.0, Failure::Status(502, "x unknown".into()), true), Class::Broken);
        assert_eq!(class(1.0, Failure::Status(502, "x not-run".into()), false), Class::Broken);
    }

    /// What a run would have to show of registry and agent, with 1 s for everything.
    fn good() -> Marks {
        let took = seconds(1.0);
        Marks {
            catching_up: CatchingUp { missed_something: true, took, ..CatchingUp::default() },
            rehoming: Rehoming { workers: 2, took, ..Rehoming::default() },
            agent: AgentMarks { worker_id: "agent".into(), heartbeats: 3, ..AgentMarks::default() },
            agreement: Agreement { digest: "ab".repeat(32), holders: 4, took },
            ..marks()
        }
    }

    fn broken(marks: &Marks, by: &str) -> Vec<String> {
        let target = |label| Target {
            label,
            method: "GET",
            path: "/".into(),
            body: bytes::Bytes::new(),
            expected: "",
            weight: 1,
        };
        let targets = [target("a"), target("b"), target("agent")];
        let served = || Ok(Served { node: by.into(), attempts: 1 });
        let samples =
            [0, AGENT_TARGET].map(|target| Sample { at: seconds(1.0), took: seconds(0.01), target, result: served() });
        Verdict::of(&samples, &targets, marks, BTreeMap::new(), &Heard::default()).broken_promises()
    }

    #[test]
    fn each_promise_about_registry_and_agent_can_be_broken_alone() {
        assert_eq!(broken(&good(), "agent"), [""; 0]);
        type Spoil = fn(&mut Marks);
        let spoilt: [(&str, Spoil); 8] = [
            ("workers rehomed", |marks| marks.rehoming.workers = 0),
            ("workers rehomed", |marks| marks.rehoming.took = seconds(11.0)),
            ("caught up", |marks| marks.catching_up.missed_something = false),
            ("caught up", |marks| marks.catching_up.took = seconds(11.0)),
            ("its heartbeats", |marks| marks.agent.heartbeats_refused = 1),
            ("its heartbeats", |marks| marks.agent.heartbeats = 0),
            ("one registry", |marks| marks.agreement.digest.clear()),
            ("one registry", |marks| marks.agreement.took = seconds(11.0)),
        ];
        for (promise, spoil) in spoilt {
            let mut marks = good();
            spoil(&mut marks);
            let broken = broken(&marks, "agent");
            assert!(broken.len() == 1 && broken[0].contains(promise), "{promise}: {broken:?}");
        }
        let by_another = broken(&good(), "somebody else");
        assert!(by_another.len() == 1 && by_another[0].contains("agent of the existing contract"), "{by_another:?}");
    }
}
