//! A scenario of the simulation, as the lab plays it: the same nodes, lines, changes and partitions.

use hedgerow_sim_model::scenario::{
    Changes as SimulatedChanges, Fault as Simulated, Latency, LimitsName, Scenario as Simulation, Shape,
};
use hedgerow_sim_model::span::Span;

use super::fault::{Fault, Who};
use super::router::Router;
use super::scenario::{Changes, Group, Must, Role, Scenario, Timed};
use super::segment::Line;

/// The halves of a partition.
const HALVES: [&str; 2] = ["oak", "elm"];
/// What is waited for longest.
const AGREE_WITHIN: Span = Span::seconds(30);

/// The lab's scenario; why there is none, if it wants what the lab does not have.
pub(super) fn of(simulation: &Simulation) -> Result<Scenario, String> {
    let population = &simulation.population;
    let has = [
        (population.entries != 1, "a number of entries other than one"),
        (population.workers > 0, "workers"),
        (population.coordinators < 2, "a single coordinator"),
        (!simulation.nat.is_empty(), "NATs by shares"),
        (simulation.load.is_some(), "a load"),
        (!simulation.random.is_empty(), "faults at random times"),
        (simulation.changes.is_none(), "no changes"),
        (simulation.timeline.is_empty(), "no fault"),
        (population.limits != LimitsName::Production, "other limits than the binaries'"),
        (population.newer_version > 0.0, "nodes of a later version"),
        (simulation.network.loss_burst > 1.0, "losses in bursts"),
    ];
    if let Some((_, what)) = has.iter().find(|(has, _)| *has) {
        return Err(format!("it has {what}"));
    }
    let half = population.coordinators as usize / 2;
    let counts = [population.coordinators as usize - half, half];
    let group = |(name, count): (&str, usize)| Group {
        name: name.to_owned(),
        count,
        role: Role::Coordinator,
        router: Router::None,
        line: None,
        lan: None,
        lan_discovery: Default::default(),
    };
    let must = Must {
        join_within: Some(AGREE_WITHIN),
        agree_within: Some(AGREE_WITHIN),
        change_p50: Some(AGREE_WITHIN),
        ..Must::default()
    };
    let scenario = Scenario {
        about: simulation.about.clone(),
        duration: simulation.duration,
        count_from: Span::default(),
        line: line(simulation)?,
        groups: HALVES.into_iter().zip(counts).map(group).collect(),
        load: None,
        changes: simulation.changes.as_ref().map(changes),
        timeline: simulation
            .timeline
            .iter()
            .map(|timed| match &timed.fault {
                Simulated::Partition { shape: Shape::Halves } => Ok(Timed {
                    at: timed.at,
                    lasts: timed.lasts,
                    fault: Fault::Apart { who: vec![Who::Named(HALVES[1].to_owned())] },
                }),
                other => Err(format!("it has the fault {other:?}, and the lab plays partitions in halves alone")),
            })
            .collect::<Result<_, _>>()?,
        must,
    };
    scenario.check()?;
    Ok(scenario)
}

fn changes(simulated: &SimulatedChanges) -> Changes {
    let SimulatedChanges { from, every, count, leaves_after } = *simulated;
    Changes { from, every, count, leaves_after, at: None }
}

/// Between two nodes there are two lines: each has half of the time, and each lets so much through that both let through what they must.
fn line(simulation: &Simulation) -> Result<Line, String> {
    let network = &simulation.network;
    let delay = match &network.latency {
        Latency::Uniform { min, max } if min == max => min.0 / 2,
        _ => return Err("its latency is not the same between all".to_owned()),
    };
    Ok(Line {
        delay: Span(delay),
        jitter: Span(network.jitter.0 / 2),
        loss: 1.0 - (1.0 - network.loss).sqrt(),
        rate_kbit: network.uplink_kbit,
        ..Line::default()
    })
}

#[cfg(test)]
mod tests {
    use hedgerow_sim_model::shipped;

    use super::*;

    #[test]
    fn the_scenario_that_is_for_both_is_the_same_in_the_lab() {
        let simulation = shipped::named("parity").unwrap().scenario().unwrap();
        let lab = of(&simulation).unwrap();
        assert_eq!(lab.members().len() as u32, simulation.population.coordinators);
        assert_eq!(lab.timeline.len(), simulation.timeline.len());
        assert_eq!(lab.changes, simulation.changes.as_ref().map(changes));
        assert_eq!(lab.line.delay, Span::millis(25));
        let through = (1.0 - lab.line.loss).powi(2);
        assert!((through - (1.0 - simulation.network.loss)).abs() < 1e-9, "{through}");
    }

    #[test]
    fn what_the_lab_does_not_have_is_named() {
        for shipped in shipped::SHIPPED.iter().filter(|shipped| shipped.name != "parity") {
            let reason = of(&shipped.scenario().unwrap()).unwrap_err();
            assert!(reason.starts_with("it"), "{}: {reason}", shipped.name);
        }
        let ring = Simulation::parse(
            "x",
            "about = 'x'\nlevels = ['full']\nduration = '60s'\nsettle = '10s'\n[population]\nworkers = 0\n[network]\nlatency = { kind = \
             'uniform', min = '9ms', max = '9ms' }\n[changes]\nevery = '1s'\ncount = 9\n[[timeline]]\nat = '1s'\nlasts = '2s'\nfault = { kind = \
             'partition', shape = 'ring' }",
        );
        assert!(of(&ring.unwrap()).unwrap_err().contains("Ring"));
    }
}
