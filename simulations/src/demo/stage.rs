//! The cast: one entry, three coordinators, four workers, and eight small services behind them. An agent comes later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::registry::{Witnesses, short};
use super::view::{Board, State};
use crate::binaries::Binaries;
use crate::federation::{Entry, Lab, Node, NodeSpec, Service};
use crate::service::Kind;
use crate::terminal::human;

/// How many requests a service takes at once.
const CAPACITY: usize = 16;
/// Where the nodes say they are.
const PLACES: [&str; 7] = ["Lisbon", "Nairobi", "Osaka", "Quito", "Tartu", "Pune", "Perth"];

/// What the entry is called.
pub(super) const ENTRY: &str = "entry";
/// What the agent is called, which comes later.
pub(super) const AGENT: &str = "agent-1";

/// All that runs.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Arc<Lab>,
    pub(super) entry: Entry,
    pub(super) coordinators: Vec<Node>,
    pub(super) workers: Vec<Node>,
    services: Vec<(Kind, Service)>,
    /// Who is asked what they hold of the registry.
    pub(super) witnesses: Witnesses,
}

impl Stage {
    /// Starts everything and waits until all tunnels are up, all coordinators agree, and all workers are at home.
    pub(super) async fn set(binaries: &Binaries, board: &Board) -> Result<Self> {
        let lab = Lab::new(binaries)?;
        let phase = board.phase("starting the entry");
        let entry = lab.entry(ENTRY, &["--allow-private-urls"]).await?;
        board.add(ENTRY, "entry", format!("{}", entry.http), State::Up);
        let mut stage = Self {
            lab: lab.clone(),
            entry,
            coordinators: Vec::new(),
            workers: Vec::new(),
            services: Vec::new(),
            witnesses: Witnesses::default(),
        };
        for number in 1..=3 {
            phase.set_message(format!("starting coordinator {number} of 3"));
            let place = PLACES[number - 1];
            let spec = NodeSpec::coordinator(&format!("coordinator-{number}")).extra(&["--location", place]);
            board.add(&format!("coordinator-{number}"), "coordinator", place.to_owned(), State::Starting);
            stage.coordinators.push(lab.start_node(spec, &[&stage.entry])?);
        }
        for number in 1..=4 {
            phase.set_message(format!("starting worker {number} of 4 and its services"));
            // Every worker says hello; each odd one echoes, each even one streams events.
            let second = if number % 2 == 1 { Kind::Echo } else { Kind::Events };
            let place = PLACES[number + 2];
            let mut spec = NodeSpec::worker(&format!("worker-{number}")).extra(&["--location", place]);
            for kind in [Kind::Hello, second] {
                let service = lab.service(&format!("{}-{number}", kind.as_str()), kind).await?;
                spec = spec.offers(kind.as_str(), service.listen, CAPACITY);
                stage.services.push((kind, service));
            }
            let detail = format!("{place}: hello, {}", second.as_str());
            board.add(&format!("worker-{number}"), "worker", detail, State::Starting);
            stage.workers.push(lab.start_node(spec, &[&stage.entry])?);
        }
        phase.set_message("waiting for the tunnels");
        let mut names = vec![ENTRY.to_owned()];
        for node in stage.coordinators.iter_mut().chain(&mut stage.workers) {
            node.joined().await?;
            board.identify(node.name(), &node.id);
            names.push(node.name().to_owned());
        }
        for name in &names {
            stage.up(board, name)?;
        }
        phase.set_message("waiting until all hold the same registry, and each worker has a home");
        let joined = Instant::now();
        let (settled, look) = stage.witnesses.settled(joined).await?;
        phase.finish_and_clear();
        board.note(format!(
            "   all coordinators hold one registry ({}), and each worker has a home, {} after the last tunnel was up",
            look.coordinators_agreed().map(short).unwrap_or_default(),
            human(settled)
        ));
        Ok(stage)
    }

    /// This process runs: it may be asked what it holds of the registry.
    pub(super) fn up(&self, board: &Board, name: &str) -> Result<()> {
        let called = |nodes: &'_ [Node]| nodes.iter().position(|node| node.name() == name);
        if let Some(index) = called(&self.workers) {
            self.witnesses.has_home(name, self.workers[index].control_socket());
        } else if let Some(index) = called(&self.coordinators) {
            self.witnesses.holds_registry(name, self.coordinators[index].own_port()?);
        } else {
            self.witnesses.holds_registry(name, self.entry.http);
        }
        board.set(name, State::Up);
        Ok(())
    }

    /// This process is not to be asked any more, for this reason.
    pub(super) fn gone(&self, board: &Board, name: &str, state: State) {
        self.witnesses.forget(name);
        board.set(name, state);
    }

    /// How often each POST ran, as the services saw it.
    pub(super) async fn runs_of_posts(&self) -> Result<BTreeMap<String, u64>> {
        let mut runs = BTreeMap::new();
        for (_, service) in self.services.iter().filter(|(kind, _)| *kind == Kind::Echo) {
            for (key, count) in service.evidence().await?.runs {
                *runs.entry(key).or_default() += count;
            }
        }
        Ok(runs)
    }

    /// What a person may try while it runs on.
    pub(super) fn directions(&self) -> String {
        let url = self.entry.url();
        let worker = self.workers.first().map(|node| node.id.as_str()).unwrap_or_default();
        format!(
            "  curl {url}/service/hello/\n  curl -N {url}/service/events/\n  curl -d hi {url}/service/echo/\n  \
             curl {url}/service/~{worker}/hello/\n  curl {url}/mesh/registry\n  curl http://{}/metrics",
            self.entry.admin
        )
    }

    /// For when something went wrong.
    pub(super) fn log_tails(&self) -> String {
        self.lab.log_tails(4)
    }
}
