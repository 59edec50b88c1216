//! Faults: how each begins and how it ends.

use hedgerow_sim_model::plan::Effect;
use hedgerow_sim_model::random;

use super::{Disk, World};
use crate::context::Stored;
use crate::net::{Event, Input, Told, Up};

impl World {
    pub(super) fn begin(&mut self, index: usize) {
        let Some(incident) = self.plan.incidents.get(index).cloned() else { return };
        let (now, number) = (self.net.now, index as u64);
        self.faults += 1;
        self.narrator.fault(now, &incident.effect, true);
        if self.net.begin(number, &incident.effect) {
            return;
        }
        let for_ever = incident.until.is_none();
        match incident.effect {
            Effect::Crash { node, silent, wipe } => {
                let machine = &mut self.machines[node as usize];
                machine.down += 1;
                machine.hurt |= for_ever;
                self.stop(node, silent);
                if wipe {
                    self.machines[node as usize].disk = Disk::default();
                }
            }
            Effect::Leave { node } => {
                let machine = &mut self.machines[node as usize];
                machine.down += 1;
                machine.hurt |= for_ever;
                let run = machine.run;
                self.act(node, run, Input::Leave);
            }
            Effect::Pause { node } | Effect::Suspend { node } => {
                let machine = &mut self.machines[node as usize];
                machine.still += 1;
                machine.hurt |= for_ever;
                if machine.still == 1 {
                    machine.still_since = now;
                    let run = machine.run;
                    if machine.process.is_some() {
                        self.net.set_up(node, Up::Still(run));
                        let at = now + self.net.links.gives_up_after();
                        self.net.schedule(at, Event::SilenceCheck { node, run, since: now });
                    }
                }
            }
            Effect::ClockJump { node, by } => {
                let machine = &mut self.machines[node as usize];
                machine.clock.jump(now, by.0);
                machine.jumped_at = Some(now);
                self.wake(node);
            }
            Effect::ClockDrift { node, ppm } => {
                self.machines[node as usize].clock.drift(now, i64::from(ppm));
                self.wake(node);
            }
            Effect::SlowCpu { node, per_message } => self.machines[node as usize].slow += per_message.0,
            Effect::DiskFull { node } => self.machines[node as usize].disk.full += 1,
            Effect::CorruptSnapshot { node } => {
                let mut random = random::stream(self.settings.seed, "corrupt", number);
                let disk = &mut self.machines[node as usize].disk;
                if let Some(mut bytes) = disk.snapshot.as_ref().map(Stored::bytes)
                    && !bytes.is_empty()
                {
                    let at = random.usize(..bytes.len());
                    bytes[at] ^= 1 << random.u8(..8);
                    disk.snapshot = Some(Stored::Damaged(bytes));
                }
            }
            Effect::Clone { of, node } => {
                self.adversaries[node as usize].clone_of = Some(of);
                self.book.cloned(of, node);
                self.start(node);
            }
            Effect::Byzantine { node, malice } => {
                self.adversaries[node as usize].malice = malice;
                self.book.untrusted.insert(self.settings.id(node));
                self.start(node);
            }
            Effect::Sybil { node, identities_per_second } => {
                self.adversaries[node as usize].invents_per_second = identities_per_second;
                self.book.untrusted.insert(self.settings.id(node));
                self.start(node);
            }
            Effect::Join { node } => self.start(node),
            // Those are the network's.
            Effect::Cut { .. } | Effect::OneWay { .. } | Effect::Loss { .. } => {}
        }
    }

    pub(super) fn end(&mut self, index: usize) {
        let Some(incident) = self.plan.incidents.get(index).cloned() else { return };
        let now = self.net.now;
        self.faults = self.faults.saturating_sub(1);
        self.narrator.fault(now, &incident.effect, false);
        self.net.end(index as u64);
        match incident.effect {
            Effect::Crash { node, .. } | Effect::Leave { node } => {
                self.machines[node as usize].down -= 1;
                self.start(node);
            }
            Effect::Pause { node } => self.wakes(node, false),
            Effect::Suspend { node } => self.wakes(node, true),
            Effect::ClockDrift { node, ppm } => {
                self.machines[node as usize].clock.drift(now, -i64::from(ppm));
                self.wake(node);
            }
            Effect::SlowCpu { node, per_message } => {
                let machine = &mut self.machines[node as usize];
                machine.slow = machine.slow.saturating_sub(per_message.0);
            }
            Effect::DiskFull { node } => {
                let disk = &mut self.machines[node as usize].disk;
                disk.full = disk.full.saturating_sub(1);
            }
            Effect::Clone { node, .. }
            | Effect::Byzantine { node, .. }
            | Effect::Sybil { node, .. }
            | Effect::Join { node } => {
                self.machines[node as usize].stopped = true;
                self.stop(node, false);
            }
            Effect::Cut { .. }
            | Effect::OneWay { .. }
            | Effect::Loss { .. }
            | Effect::ClockJump { .. }
            | Effect::CorruptSnapshot { .. } => {}
        }
    }

    /// A process that stood still goes on; after a suspend it knows for how long it did not.
    pub(super) fn wakes(&mut self, node: u32, slept: bool) {
        let now = self.net.now;
        let machine = &mut self.machines[node as usize];
        machine.still -= 1;
        if slept {
            machine.clock.slept(now - machine.still_since);
            machine.jumped_at = Some(now);
        }
        if machine.still > 0 {
            return;
        }
        let run = machine.run;
        machine.busy_until = now;
        let waiting = std::mem::take(&mut machine.inbox);
        if machine.process.is_some() {
            self.net.set_up(node, Up::Running(run));
            self.act(node, run, Input::Timeout);
            waiting.into_iter().for_each(|input| self.tell(Told { node, run, input }));
        }
    }

    /// A clock has changed: timers have to follow.
    pub(super) fn wake(&mut self, node: u32) {
        let run = self.machines[node as usize].run;
        self.tell(Told { node, run, input: Input::Timeout });
    }
}
