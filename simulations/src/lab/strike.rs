//! Does to a lab what a fault says, and undoes it.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::fault::{Fault, Way, Who};
use super::people::People;
use super::segment::{Cut, Port};
use super::world::World;

/// A fault that holds.
#[derive(Debug)]
pub(super) struct Struck {
    /// Whom it has hit, by name.
    pub(super) who: Vec<String>,
    cuts: Vec<u64>,
}

/// Does it.
pub(super) async fn strike(fault: &Fault, world: &World, people: &People) -> Result<Struck> {
    let mut names = Vec::new();
    for who in fault.who() {
        names.extend(named(who, people).await?);
    }
    let ports = names.iter().map(|name| world.port(name)).collect::<Result<BTreeSet<Port>>>()?;
    let each = |what: &dyn Fn(Port) -> Vec<Cut>| ports.iter().flat_map(|port| what(*port)).collect::<Vec<_>>();
    let mut cuts = Vec::new();
    match fault {
        Fault::Kill { .. } => {
            for name in &names {
                people.actor(name)?.process().kill();
            }
        }
        Fault::Pause { .. } => signal(&names, people, Signal::STOP)?,
        Fault::Cut { .. } => cuts = each(&|port| vec![Cut::From(port), Cut::To(port)]),
        Fault::OneWay { loses: Way::Sent, .. } => cuts = each(&|port| vec![Cut::From(port)]),
        Fault::OneWay { loses: Way::Received, .. } => cuts = each(&|port| vec![Cut::To(port)]),
        Fault::OnlyTunnels { .. } => cuts = each(&|port| vec![Cut::AllButTunnels(port)]),
        Fault::Apart { .. } => cuts = vec![Cut::Apart(ports.clone())],
        Fault::BlackHole { loses, .. } => names.iter().try_for_each(|name| world.dig_hole(name, *loses))?,
        Fault::Rebind { .. } => names.iter().try_for_each(|name| world.rebind(name))?,
    }
    let cuts = cuts.into_iter().map(|cut| world.wire().cut(cut)).collect();
    Ok(Struck { who: names, cuts })
}

/// Undoes it, as far as that can be.
pub(super) fn undo(fault: &Fault, struck: &Struck, world: &World, people: &People) -> Result<()> {
    match fault {
        Fault::Kill { .. } => {
            let again = |name: &String| people.actor(name)?.start_again(people.workdir());
            struck.who.iter().try_for_each(again)?;
        }
        Fault::Pause { .. } => signal(&struck.who, people, Signal::CONT)?,
        Fault::BlackHole { .. } => struck.who.iter().try_for_each(|name| world.fill_hole(name))?,
        Fault::Cut { .. } | Fault::OneWay { .. } | Fault::OnlyTunnels { .. } | Fault::Apart { .. } => {
            struck.cuts.iter().for_each(|cut| world.wire().mend(*cut));
        }
        // A router never knows again what it has forgotten.
        Fault::Rebind { .. } => {}
    }
    Ok(())
}

fn signal(names: &[String], people: &People, signal: Signal) -> Result<()> {
    names.iter().try_for_each(|name| people.actor(name)?.process().signal(signal))
}

async fn named(who: &Who, people: &People) -> Result<Vec<String>> {
    match who {
        Who::Named(name) if name == "entry" => Ok(vec![name.clone()]),
        Who::Named(name) => {
            let called = people.nodes.iter().filter(|node| node.member.is_called(name));
            Ok(called.map(|node| node.member.name.clone()).collect())
        }
        Who::HomeOf(worker) => {
            let node = people.nodes.iter().find(|node| node.member.is_called(worker));
            let node = node.with_context(|| format!("nobody is called {worker}"))?;
            let home = node.home().await?.with_context(|| format!("{worker} has no home"))?;
            Ok(vec![people.node_of(&home)?.member.name.clone()])
        }
    }
}
