//! What a fault does to a node, and what is done when it is over.

use std::time::Duration;

use hedgerow_proto::key::SecretKey;
use hedgerow_sim_model::plan::{Effect, Incident};
use hedgerow_sim_model::random;
use hedgerow_sim_model::scenario::{Malice, Shape};
use tracing::info;

use super::super::hostile::Hostile;
use super::super::node::NodeError;
use super::World;
use crate::time;

/// How long a node that leaves has for its last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

impl World {
    pub(super) async fn begin(&mut self, index: usize) -> Result<(), NodeError> {
        let Some(Incident { effect, until, .. }) = self.plan.incidents.get(index).cloned() else { return Ok(()) };
        info!(?effect, "a fault begins");
        self.faults_now += u32::from(until.is_some());
        if self.network.begin(index as u64, &effect) {
            return Ok(());
        }
        match effect {
            Effect::Crash { node, silent, wipe } => {
                if silent {
                    self.network.power_off(node);
                }
                self.kill_entry(node).await;
                self.kill(node).await?;
                if wipe {
                    self.on_disk(node, wipe_disk)?;
                }
            }
            Effect::Leave { node } => {
                if let Some(running) = self.running(node) {
                    running.say_leave().await;
                    tokio::time::sleep(LAST_WORDS).await;
                }
                self.kill(node).await?;
            }
            Effect::Pause { node } => {
                self.with_process(node, |process| process.stop());
                self.seen.stands_still(node);
            }
            Effect::Suspend { node } => {
                self.network.begin(index as u64, &Effect::Cut { shape: Shape::One, order: vec![node] });
                self.with_process(node, |process| process.stop());
                self.seen.stands_still(node);
            }
            Effect::ClockJump { node, by } => {
                if let Some(place) = self.places.get(&node) {
                    place.clock.jump(by.0);
                }
                self.with_process(node, |process| process.set_wall_skew(by.0));
                self.seen.begins_anew(node);
            }
            Effect::ClockDrift { node, ppm } => {
                if let Some(place) = self.places.get(&node) {
                    self.drifts.insert(index, place.clock.set_drift(ppm));
                }
            }
            Effect::SlowCpu { node, per_message } => self.with_process(node, |process| process.set_slow(per_message.0)),
            Effect::DiskFull { node } => time::set_disk_full(node, true),
            Effect::CorruptSnapshot { node } => self.on_disk(node, flip_a_bit)?,
            Effect::Clone { of, node } => self.clone_node(of, node)?,
            Effect::Byzantine { node, malice } => self.start_hostile(node, malice, 0.0)?,
            Effect::Sybil { node, identities_per_second } => {
                self.start_hostile(node, Vec::new(), identities_per_second)?;
            }
            Effect::Join { node } => self.start(node),
            // The network has them.
            Effect::Cut { .. } | Effect::OneWay { .. } | Effect::Loss { .. } => {}
        }
        Ok(())
    }

    pub(super) async fn end(&mut self, index: usize) -> Result<(), NodeError> {
        let Some(Incident { at, until, effect }) = self.plan.incidents.get(index).cloned() else { return Ok(()) };
        info!(?effect, "a fault is over");
        self.faults_now = self.faults_now.saturating_sub(1);
        self.network.end(index as u64);
        match effect {
            Effect::Crash { node, .. } | Effect::Leave { node } => {
                self.network.power_on(node);
                self.start_entry(node)?;
                self.start(node);
            }
            Effect::Pause { node } => {
                self.with_process(node, |process| process.go_on());
                self.seen.begins_anew(node);
            }
            Effect::Suspend { node } => {
                if let Some(place) = self.places.get(&node) {
                    place.clock.was_suspended(until.unwrap_or(at).0.saturating_sub(at.0));
                }
                self.with_process(node, |process| process.go_on());
                self.seen.begins_anew(node);
            }
            Effect::ClockDrift { node, .. } => {
                if let Some((place, ppm)) = self.places.get(&node).zip(self.drifts.remove(&index)) {
                    place.clock.set_drift(ppm);
                }
            }
            Effect::SlowCpu { node, .. } => self.with_process(node, |process| process.set_slow(Duration::ZERO)),
            Effect::DiskFull { node } => time::set_disk_full(node, false),
            Effect::Clone { of, node } => {
                self.kill(node).await?;
                if let Some(place) = self.places.get_mut(&of) {
                    place.cloned = false;
                }
                // If it was the original that stopped, its operator starts it again.
                self.start(of);
            }
            Effect::Byzantine { node, .. } | Effect::Sybil { node, .. } => {
                if let Some(running) = self.hostiles.remove(&node) {
                    running.kill().await;
                }
            }
            Effect::Join { node } => self.kill(node).await?,
            _ => {}
        }
        Ok(())
    }

    fn running(&self, node: u32) -> Option<&super::Running> {
        self.places.get(&node)?.running.as_ref()
    }

    fn with_process(&self, node: u32, change: impl FnOnce(&super::super::Process)) {
        if let Some(running) = self.running(node) {
            change(&running.process);
        }
    }

    fn on_disk(
        &self,
        node: u32,
        change: impl FnOnce(&std::path::Path) -> std::io::Result<()>,
    ) -> Result<(), NodeError> {
        let Some(place) = self.places.get(&node) else { return Ok(()) };
        match change(&place.plan.directory) {
            // It has not been there yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| NodeError::Disk { node, error }),
        }
    }

    /// A coordinator that keeps no rule joins.
    fn start_hostile(&mut self, node: u32, malice: Vec<Malice>, invents_per_second: f64) -> Result<(), NodeError> {
        let seed = self.settings.seed;
        let key = SecretKey::from_seed(random::bytes(seed, "hostile", u64::from(node)));
        let id = key.id();
        let hostile = Hostile {
            node,
            federation: self.federation(),
            limits: self.limits(),
            key,
            malice,
            invents_per_second,
            security: self.settings.security,
            seed: random::number(seed, "hostile", u64::from(node)),
        };
        info!(node, %id, "a coordinator that keeps no rule starts");
        self.seen.is_hostile(id);
        self.network.note(node, &id.0);
        self.hostiles.insert(node, hostile.start(&self.network)?);
        self.tell_hostile(node);
        Ok(())
    }

    /// Another process with the key of this node, on a machine of its own.
    fn clone_node(&mut self, of: u32, node: u32) -> Result<(), NodeError> {
        let Some(original) = self.places.get_mut(&of) else { return Ok(()) };
        original.cloned = true;
        original.id.into_iter().for_each(|id| self.seen.is_cloned(id));
        let plan = original.plan.clone();
        let Some(copy) = self.places.get_mut(&node) else { return Ok(()) };
        copy.cloned = true;
        copy.plan =
            super::node::Plan { node, directory: copy.plan.directory.clone(), seed: copy.plan.seed, ..plan.clone() };
        let copied = std::fs::create_dir_all(&copy.plan.directory).and_then(|()| {
            std::fs::copy(plan.directory.join("identity.key"), copy.plan.directory.join("identity.key"))
        });
        match copied {
            Ok(_) => self.start(node),
            // The original has never started.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(NodeError::Disk { node, error }),
        }
        Ok(())
    }
}

/// All is lost but the key, of which there is a copy elsewhere.
fn wipe_disk(directory: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != "identity.key") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// One bit of the snapshot is another one.
fn flip_a_bit(directory: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let snapshot = path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("registry-") && !name.contains('.')
        });
        if snapshot {
            let mut content = std::fs::read(&path)?;
            let middle = content.len() / 2;
            if let Some(byte) = content.get_mut(middle) {
                *byte ^= 1;
            }
            std::fs::write(path, content)?;
        }
    }
    Ok(())
}
