//! The scenarios that come with Hedgerow (`simulations/scenarios`), built in, so that they are there wherever the program is.

use crate::scenario::{Scenario, ScenarioError};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipped {
    /// What it is called: its file's name without the ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

impl Shipped {
    /// Reads it. A test reads all of them, so that this fails for nobody.
    pub fn scenario(&self) -> Result<Scenario, ScenarioError> {
        Scenario::parse(self.name, self.text)
    }
}

macro_rules! shipped {
    ($($name:literal)*) => {
        &[$(Shipped { name: $name, text: include_str!(concat!("../../scenarios/", $name, ".toml")) }),*]
    };
}

/// All of them: the quiet ones first, then one kind of fault each, and all at once at the end.
pub const SHIPPED: &[Shipped] = shipped! {
    "idle"
    "steady-load"
    "thousand"
    "regions"
    "cgnat-majority"
    "mixed-versions"
    "churn"
    "rolling-restart"
    "flash-crowd"
    "coordinators-die"
    "entry-restart"
    "partition-halves"
    "partition-ring"
    "partition-bridge"
    "partition-mesh"
    "flapping-mesh"
    "one-way"
    "bursty-loss"
    "slow-cpu"
    "suspended-laptops"
    "clock-jumps"
    "disks"
    "clones"
    "byzantine"
    "sybil"
    "parity"
    "everything"
};

/// The one of this name.
pub fn named(name: &str) -> Option<Shipped> {
    SHIPPED.iter().copied().find(|shipped| shipped.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::plan::Plan;
    use crate::scenario::{Fault, Latency, Malice, Shape};

    fn all() -> impl Iterator<Item = (&'static str, Scenario)> {
        SHIPPED.iter().map(|shipped| (shipped.name, shipped.scenario().unwrap()))
    }

    fn faults() -> Vec<Fault> {
        let of = |scenario: Scenario| {
            let timed = scenario.timeline.into_iter().map(|timed| timed.fault);
            timed.chain(scenario.random.into_iter().map(|recurring| recurring.fault)).collect::<Vec<_>>()
        };
        all().flat_map(|(_, scenario)| of(scenario)).collect()
    }

    #[test]
    fn every_file_of_the_folder_is_built_in_and_can_be_run() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
        let files: BTreeSet<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_suffix(".toml").expect("only scenarios").to_owned())
            .collect();
        let built_in: BTreeSet<String> = SHIPPED.iter().map(|shipped| shipped.name.to_owned()).collect();
        assert_eq!(files, built_in);
        assert!(files.len() >= 18);
        for (name, scenario) in all() {
            assert!(scenario.about.len() > 40, "{name} does not say what it shows");
            assert_eq!(Scenario::load(&folder.join(format!("{name}.toml"))).unwrap(), scenario);
        }
    }

    #[test]
    fn every_kind_of_fault_is_in_one_of_them() {
        // A kind that is new is an error here until there is a scenario with it.
        let number = |fault: &Fault| match fault {
            Fault::Crash { .. } => 0,
            Fault::Leave { .. } => 1,
            Fault::Pause { .. } => 2,
            Fault::Suspend { .. } => 3,
            Fault::EntryRestart {} => 4,
            Fault::Partition { shape: Shape::Halves } => 5,
            Fault::Partition { shape: Shape::Ring } => 6,
            Fault::Partition { shape: Shape::Bridge } => 7,
            Fault::Partition { shape: Shape::One } => 8,
            Fault::Partition { shape: Shape::Mesh } => 9,
            Fault::OneWay { .. } => 10,
            Fault::Loss { .. } => 11,
            Fault::ClockJump { .. } => 12,
            Fault::ClockDrift { .. } => 13,
            Fault::SlowCpu { .. } => 14,
            Fault::DiskFull { .. } => 15,
            Fault::CorruptSnapshot { .. } => 16,
            Fault::Clone { .. } => 17,
            Fault::Byzantine { .. } => 18,
            Fault::Sybil { .. } => 19,
            Fault::FlashCrowd { .. } => 20,
        };
        let found: BTreeSet<u32> = faults().iter().map(number).collect();
        assert_eq!(found, (0..=20).collect());
        let crashes = |wanted: (bool, bool)| {
            faults()
                .iter()
                .any(|fault| matches!(fault, Fault::Crash { silent, wipe, .. } if (*silent, *wipe) == wanted))
        };
        assert!(crashes((true, false)) && crashes((false, true)));
        let malices: BTreeSet<Malice> = faults()
            .into_iter()
            .flat_map(|fault| if let Fault::Byzantine { malice, .. } = fault { malice } else { Vec::new() })
            .collect();
        assert_eq!(malices.len(), 6);
    }

    #[test]
    fn every_kind_of_network_is_in_one_of_them() {
        let number = |latency: &Latency| match latency {
            Latency::Uniform { .. } => 0,
            Latency::LogNormal { .. } => 1,
            Latency::Regions { .. } => 2,
        };
        let found: BTreeSet<u32> = all().map(|(_, scenario)| number(&scenario.network.latency)).collect();
        assert_eq!(found, BTreeSet::from([0, 1, 2]));
        let nats: BTreeSet<_> =
            all().flat_map(|(_, scenario)| scenario.nat).map(|nat| (nat.mapping, nat.filtering, nat.udp)).collect();
        assert!(nats.len() >= 4, "{nats:?}");
    }

    #[test]
    fn a_scenario_with_faults_has_some_with_nearly_every_seed() {
        for (name, scenario) in all().filter(|(_, scenario)| !scenario.random.is_empty()) {
            let quiet = (0..100).filter(|seed| Plan::draw(&scenario, *seed).0.incidents.is_empty()).count();
            assert!(quiet <= 2, "{name}: nothing happens with {quiet} seeds of 100");
        }
    }
}
