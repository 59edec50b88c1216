//! What a lab is made of and what is done to it, as TOML. `simulations/README.md` describes every key; one that there is not is an
//! error which names the nearest.

use std::collections::BTreeSet;
use std::path::Path;

use hedgerow_process::config;
use hedgerow_process::exit::Failure;
use hedgerow_sim_model::span::Span;
use serde::Deserialize;

use super::fault::{Fault, Who};
use super::router::Router;
use super::segment::Line;

/// Places on the segment; each has a byte of the segment's addresses.
pub(super) const PLACES_MAX: usize = 100;
/// Processes that fit on a small machine.
const CLIENTS_MAX: usize = 256;

/// A scenario of the lab.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Scenario {
    /// What it shows, in a sentence.
    pub(super) about: String,
    /// For so long it goes on, from when all have joined.
    pub(super) duration: Span,
    /// Traffic is counted from then on.
    #[serde(default)]
    pub(super) count_from: Span,
    /// Every node's line to the segment that has none of its own.
    #[serde(default)]
    pub(super) line: Line,
    /// Who takes part, beside an entry and a client, who are on the segment.
    #[serde(rename = "node")]
    pub(super) groups: Vec<Group>,
    /// What the client asks.
    #[serde(default)]
    pub(super) load: Option<Load>,
    /// What changes in the registry.
    #[serde(default)]
    pub(super) changes: Option<Changes>,
    /// What goes wrong.
    #[serde(default)]
    pub(super) timeline: Vec<Timed>,
    /// What must hold.
    pub(super) must: Must,
}

/// Nodes that are alike.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Group {
    /// What it is called. With more than one, they are NAME-1, NAME-2, …
    pub(super) name: String,
    /// How many.
    #[serde(default = "one")]
    pub(super) count: usize,
    /// What they are in the federation.
    pub(super) role: Role,
    /// What they are behind.
    #[serde(default)]
    pub(super) router: Router,
    /// Their line to the segment.
    #[serde(default)]
    pub(super) line: Option<Line>,
    /// All that name the same one share a LAN, its router and its line. Without it each has its own.
    #[serde(default)]
    pub(super) lan: Option<String>,
    /// `--lan-discovery` of the nodes.
    #[serde(default)]
    pub(super) lan_discovery: LanDiscovery,
}

fn one() -> usize {
    1
}

/// `--lan-discovery` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LanDiscovery {
    /// As the node sees fit.
    #[default]
    Auto,
    /// Not at all.
    Off,
}

impl LanDiscovery {
    /// As on the command line.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }
}

/// `--role` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Role {
    /// Holds the registry.
    Coordinator,
    /// Serves.
    Worker,
    /// Both.
    Both,
    /// Serves, and may be elected.
    Auto,
}

impl Role {
    /// As on the command line.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
            Self::Both => "both",
            Self::Auto => "auto",
        }
    }

    /// Whether it has a service.
    pub(super) fn serves(self) -> bool {
        self != Self::Coordinator
    }

    /// Whether it is a coordinator for good.
    pub(super) fn coordinates(self) -> bool {
        matches!(self, Self::Coordinator | Self::Both)
    }
}

/// What the client asks of the entry: GETs, which may run twice, answered after 5 ms.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Load {
    /// Requests at once.
    pub(super) clients: usize,
    /// Between an answer and the next request of the same client.
    pub(super) rest: Span,
    /// Whether each node is asked by its id, in turn, and not just whoever serves.
    pub(super) by_id: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self { clients: 8, rest: Span::millis(20), by_id: false }
    }
}

/// Agents of the existing contract that register at one coordinator after another.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Changes {
    /// From then on.
    #[serde(default)]
    pub(super) from: Span,
    /// One after so long.
    pub(super) every: Span,
    /// How many.
    pub(super) count: usize,
    /// So many stay: with each that registers beyond them the oldest one leaves.
    #[serde(default)]
    pub(super) leaves_after: Option<usize>,
    /// Only at these coordinators, by name; and when they are known is measured among these.
    #[serde(default)]
    pub(super) at: Option<String>,
}

impl Changes {
    /// Whether they are made at this node, if it is a coordinator.
    pub(super) fn are_made_at(&self, member: &Member) -> bool {
        self.at.as_ref().is_none_or(|name| member.is_called(name))
    }
}

/// A fault at a time of its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Timed {
    /// When, from when all have joined.
    pub(super) at: Span,
    /// For how long; without it, for good.
    #[serde(default)]
    pub(super) lasts: Option<Span>,
    /// What.
    pub(super) fault: Fault,
}

impl Timed {
    /// When it is over.
    pub(super) fn until(&self) -> Span {
        Span(self.at.0 + self.lasts.unwrap_or_default().0)
    }

    /// Whether those that it hits can be back at some time: it is over at some time, or they can mend it.
    pub(super) fn is_mended(&self) -> bool {
        self.lasts.is_some() || matches!(self.fault, Fault::BlackHole { .. } | Fault::Rebind { .. })
    }
}

/// What must hold. What is not asked for is neither measured nor judged.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Must {
    /// From the start of the last node until all have joined, and all coordinators know all.
    pub(super) join_within: Option<Span>,
    /// From the start of the last node until all coordinators whose routers allow a direct path have one. At the end those whose do not are
    /// connected by way of the entry, and nothing else is being tried.
    pub(super) paths_within: Option<Span>,
    /// From the end of the last fault until they have it again.
    pub(super) paths_back_within: Option<Span>,
    /// Requests that were not answered.
    pub(super) failed_max: Option<usize>,
    /// Each node that serves has served.
    pub(super) all_serve: bool,
    /// From a fault until the entry sent the last request that had to be tried elsewhere.
    pub(super) stops_sending_within: Option<Span>,
    /// From the end of a fault, or from its beginning if it has none, until each that it hit answers again under its own id.
    pub(super) back_within: Option<Span>,
    /// When it ends, no coordinator that a fault has hit is connected to another.
    pub(super) parted: bool,
    /// From a fault until all workers that lost their home by it have another.
    pub(super) home_within: Option<Span>,
    /// From when all have joined until all coordinators of a LAN are connected directly, and its workers with their homes there.
    pub(super) on_lan_within: Option<Span>,
    /// None of them ever found another one there.
    pub(super) never_on_lan: bool,
    /// From the end of the last fault, or of the changes where there is none, until all registries are equal, and hold what they must.
    pub(super) agree_within: Option<Span>,
    /// Half of the changes are everywhere after so long.
    pub(super) change_p50: Option<Span>,
    /// And nearly all.
    pub(super) change_p99: Option<Span>,
    /// What a coordinator's device sends and receives, for each other coordinator that it is connected to.
    pub(super) coordinator_kbit_max: Option<f64>,
    /// What a worker's device sends and receives.
    pub(super) worker_kbit_max: Option<f64>,
    /// What a coordinator holds in memory.
    pub(super) coordinator_mib_max: Option<f64>,
}

/// A node that takes part.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    /// What it is called.
    pub(super) name: String,
    /// What its group is called.
    pub(super) group: String,
    /// What it is in the federation.
    pub(super) role: Role,
    /// What it is behind.
    pub(super) router: Router,
    /// Its line to the segment.
    pub(super) line: Line,
    /// The LAN that it shares with others.
    pub(super) lan: Option<String>,
    /// Whether it looks for others there.
    pub(super) lan_discovery: LanDiscovery,
}

impl Scenario {
    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        config::load::<Self>(path)?.checked(path)
    }

    /// Reads the text of a file; its name is for errors.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let path = Path::new(name);
        config::parse::<Self>(text, path)?.checked(path)
    }

    fn checked(self, path: &Path) -> Result<Self, Failure> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(reason) => Err(Failure::usage(format!("{} cannot be played: {reason}", path.display()))),
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.check_members()?;
        self.check_timeline()?;
        if self.count_from >= self.duration {
            return Err("traffic is counted from a time when it is over".to_owned());
        }
        let needs = |wanted: bool, what: &str, has: bool| match wanted && !has {
            true => Err(format!("what must hold can be told only with {what}")),
            false => Ok(()),
        };
        let must = &self.must;
        let of_load = must.failed_max.is_some() || must.all_serve || must.stops_sending_within.is_some();
        needs(of_load, "a [load]", self.load.is_some())?;
        let of_faults = must.parted
            || must.stops_sending_within.is_some()
            || must.back_within.is_some()
            || must.home_within.is_some()
            || must.paths_back_within.is_some();
        needs(of_faults, "a [[timeline]]", !self.timeline.is_empty())?;
        if let Some(changes) = &self.changes
            && !self.members().iter().any(|member| member.role.coordinates() && changes.are_made_at(member))
        {
            return Err("nobody is a coordinator of the name at which something changes".to_owned());
        }
        needs(must.change_p50.is_some() || must.change_p99.is_some(), "[changes]", self.changes.is_some())?;
        let any = |is: fn(&Member) -> bool| self.members().iter().any(is);
        let of_mesh = must.agree_within.is_some() || must.parted || self.changes.is_some();
        let of_coordinators = must.coordinator_kbit_max.is_some() || must.coordinator_mib_max.is_some();
        let of_paths = must.paths_within.is_some() || must.paths_back_within.is_some();
        needs(of_mesh || of_coordinators || of_paths, "coordinators", any(|member| member.role.coordinates()))?;
        needs(must.worker_kbit_max.is_some(), "workers", any(|member| !member.role.coordinates()))?;
        let of_services = must.all_serve || must.back_within.is_some();
        let of_lans = must.on_lan_within.is_some() || must.never_on_lan;
        needs(of_lans, "a LAN that several share", any(|member| member.lan.is_some()))?;
        needs(of_services, "nodes that serve", any(|member| member.role.serves()))?;
        let ends = self.timeline.iter().any(Timed::is_mended);
        needs(must.back_within.is_some(), "a fault that is over at some time, or mended", ends)?;
        if let Some(load) = &self.load
            && !(1..=CLIENTS_MAX).contains(&load.clients)
        {
            return Err(format!("there are from 1 to {CLIENTS_MAX} clients"));
        }
        Ok(())
    }

    fn check_members(&self) -> Result<(), String> {
        let members = self.members();
        if members.is_empty() || members.len() > PLACES_MAX {
            return Err(format!("{} nodes take part, and there must be from 1 to {PLACES_MAX}", members.len()));
        }
        let mut names = BTreeSet::new();
        for member in &members {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !member.name.bytes().all(fits) || member.name.is_empty() || member.name.len() > 32 {
                return Err(format!("'{}' is no name: up to 32 of a-z 0-9 -", member.name));
            }
            if ["entry", "client"].contains(&member.name.as_str()) || !names.insert(&member.name) {
                return Err(format!("two are called {}", member.name));
            }
            member.line.check()?;
            if let Some(lan) = &member.lan {
                let first = members.iter().find(|other| other.lan.as_ref() == Some(lan));
                if member.router == Router::None || first.is_some_and(|first| first.router != member.router) {
                    return Err(format!("all on the LAN {lan} are behind one router, of one kind"));
                }
            }
        }
        Ok(())
    }

    fn check_timeline(&self) -> Result<(), String> {
        for timed in &self.timeline {
            if timed.until() > self.duration {
                return Err(format!("a fault is over at {}, after the end at {}", timed.until(), self.duration));
            }
            for who in timed.fault.who() {
                let Who::Named(name) = who else { continue };
                if name == "entry" && timed.fault.can_hit_the_entry() {
                    continue;
                }
                let hit: Vec<Member> = self.members().into_iter().filter(|member| member.is_called(name)).collect();
                if hit.is_empty() {
                    return Err(format!("a fault hits {name}, and there is nobody of that name"));
                }
                if timed.fault.needs_a_router() && hit.iter().any(|member| member.router == Router::None) {
                    return Err(format!("a fault hits the router of {name}, who has none"));
                }
            }
        }
        Ok(())
    }

    /// All nodes.
    pub(super) fn members(&self) -> Vec<Member> {
        let of = |group: &Group| {
            let line = group.line.unwrap_or(self.line);
            // One more than can be is enough to refuse it.
            let count = group.count.min(PLACES_MAX + 1);
            let name = |number: usize| if count == 1 { group.name.clone() } else { format!("{}-{number}", group.name) };
            (1..=count)
                .map(|number| Member {
                    name: name(number),
                    group: group.name.clone(),
                    role: group.role,
                    router: group.router,
                    line,
                    lan: group.lan.clone(),
                    lan_discovery: group.lan_discovery,
                })
                .collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of).collect()
    }
}

impl Member {
    /// Whether this name means it: its own, or its group's.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.group == name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        about = "a test"
        duration = "10s"
        line = { delay = "20ms", loss = 0.01 }
        node = [
            { name = "alder", role = "worker", router = "masquerade" },
            { name = "oak", count = 3, role = "coordinator", line = { rate-kbit = 1000 } },
        ]
        load = {}
        timeline = [{ at = "2s", lasts = "3s", fault = { kind = "pause", who = "alder" } }]
        must = { failed-max = 0, back-within = "5s" }
    "#;

    fn refused(text: &str) -> String {
        Scenario::parse("test.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_group_is_as_many_nodes_as_it_says_with_a_line_of_their_own_or_everybodys() {
        let members = Scenario::parse("test.toml", SMALL).unwrap().members();
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["alder", "oak-1", "oak-2", "oak-3"]);
        assert_eq!(members[0].line.delay, Span::millis(20));
        assert_eq!((members[1].line.rate_kbit, members[1].line.loss), (1000, 0.0));
        assert!(members[2].is_called("oak") && members[2].is_called("oak-2") && !members[2].is_called("oak-1"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_nearest_one() {
        for (right, wrong) in
            [("loss = 0.01", "los = 0.01"), ("router =", "ruoter ="), ("failed-max", "failed-mx"), ("lasts", "last")]
        {
            let said = refused(&SMALL.replacen(right, wrong, 1));
            let nearest = right.split([' ', '=']).next().unwrap();
            assert!(said.contains(&format!("did you mean `{nearest}`?")), "{said}");
        }
    }

    #[test]
    fn what_cannot_be_played_is_refused_and_said() {
        for (right, wrong, says) in [
            ("who = \"alder\"", "who = \"elder\"", "nobody of that name"),
            ("lasts = \"3s\"", "lasts = \"30s\"", "after the end"),
            ("load = {}", "", "a [load]"),
            ("load = {}", "load = { clients = 0 }", "clients"),
            ("load = {}", "count-from = \"10s\"\nload = {}", "when it is over"),
            ("count = 3", "count = 0", "no name"),
            ("count = 3", "count = 3000", "from 1 to 100"),
            ("name = \"alder\"", "name = \"oak-2\"", "two are called oak-2"),
            ("name = \"alder\"", "name = \"a/b\"", "no name"),
            ("loss = 0.01", "loss = 1.5", "from 0 to 0.9"),
            ("count = 3", "lan = \"home\"", "behind one router"),
            ("failed-max = 0", "never-on-lan = true", "several share"),
            ("kind = \"pause\", who = \"alder\"", "kind = \"rebind\", who = \"oak\"", "who has none"),
        ] {
            let text = SMALL.replacen(right, wrong, 1);
            if wrong == "count = 0" {
                // A group of none is as if it were not there.
                assert!(Scenario::parse("test.toml", &text.replace("\"alder\"", "\"a\"")).is_ok());
                continue;
            }
            let said = refused(&text);
            assert!(said.contains(says), "{wrong}: {said}");
        }
    }
}
