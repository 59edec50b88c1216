//! What goes wrong.

use serde::{Deserialize, Serialize};

use crate::span::Span;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "kind")]
pub enum Fault {
    /// The process is killed; it starts again when the fault is over.
    Crash {
        /// Whose.
        #[serde(default)]
        who: Who,
        /// The machine goes with it: peers see no reset, only silence.
        #[serde(default)]
        silent: bool,
        /// The disk is lost.
        #[serde(default)]
        wipe: bool,
    },
    /// It says that it goes, and goes; it starts again when the fault is over.
    Leave {
        /// Who.
        #[serde(default)]
        who: Who,
    },
    /// The process stands still (SIGSTOP); its clock runs on.
    Pause {
        /// Whose.
        #[serde(default)]
        who: Who,
    },
    /// The machine sleeps, and knows it when it wakes.
    Suspend {
        /// Whose.
        #[serde(default)]
        who: Who,
    },
    /// An entry is killed and starts at the end of the fault, knowing nothing.
    EntryRestart {},
    /// The network falls apart.
    Partition {
        /// How.
        shape: Shape,
    },
    /// Nothing that they send arrives; they hear everybody.
    OneWay {
        /// Who.
        #[serde(default)]
        who: Who,
    },
    /// This share of all packets is lost, on top of what the network loses anyway.
    Loss {
        /// 0 to 0.9.
        rate: f64,
    },
    /// The clock jumps ahead, as when a virtual machine is moved.
    ClockJump {
        /// Whose.
        #[serde(default)]
        who: Who,
        /// How far.
        by: Span,
    },
    /// The clock is too fast by so many parts per million (or too slow), while the fault lasts.
    ClockDrift {
        /// Whose.
        #[serde(default)]
        who: Who,
        /// How much.
        ppm: i32,
    },
    /// Every message takes so long to be dealt with.
    SlowCpu {
        /// Whose.
        #[serde(default)]
        who: Who,
        /// How long.
        per_message: Span,
    },
    /// Nothing can be written.
    DiskFull {
        /// Whose.
        #[serde(default)]
        who: Who,
    },
    /// A bit of the snapshot flips on the disk: the next start finds it.
    CorruptSnapshot {
        /// Whose.
        #[serde(default)]
        who: Who,
    },
    /// Another process starts with the same key, on a machine of its own.
    Clone {
        /// Whose.
        #[serde(default)]
        who: Who,
    },
    /// So many coordinators join that do not keep the rules.
    Byzantine {
        /// How many.
        count: u32,
        /// What they do.
        malice: Vec<Malice>,
    },
    /// One joins that invents others.
    Sybil {
        /// How many it invents a second.
        identities_per_second: f64,
    },
    /// So many workers join.
    FlashCrowd {
        /// How many.
        workers: u32,
        /// Within this time.
        within: Span,
    },
}

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Who {
    /// Among whom they are chosen.
    pub among: Among,
    /// How many; one, if neither is said.
    pub count: Option<u32>,
    /// Or which share.
    pub share: Option<f64>,
}

impl Default for Who {
    fn default() -> Self {
        Self { among: Among::Nodes, count: None, share: None }
    }
}

/// Among whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Among {
    /// Coordinators and workers.
    #[default]
    Nodes,
    /// Coordinators.
    Coordinators,
    /// Workers.
    Workers,
}

/// How the network falls apart. Entries stay with everybody, unless the shape says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// In two halves; the entries are in the first.
    Halves,
    /// Everybody hears only the two next to it.
    Ring,
    /// In two halves that have one coordinator in common.
    Bridge,
    /// One node alone.
    One,
    /// Coordinators cannot reach each other; everybody reaches the entries.
    Mesh,
}

/// What one does that keeps no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Malice {
    /// Says again what others said long ago.
    Replay,
    /// Says two different things in one place.
    Equivocate,
    /// Sends bytes that mean nothing.
    Garbage,
    /// Sends others' leases again, as if they were fresh.
    Refresh,
    /// Claims workers that are not with it.
    ClaimWorkers,
    /// Sends records of others with a bit changed.
    Forge,
}

impl Fault {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(share) = self.who().and_then(|who| who.share)
            && !(0.0..=1.0).contains(&share)
        {
            return Err(format!("a fault hits a share of {share}, and it must be from 0 to 1"));
        }
        match self {
            Self::Loss { rate } if !(0.0..=0.9).contains(rate) => {
                Err(format!("a fault loses {rate} of all packets, and it must be from 0 to 0.9"))
            }
            Self::Sybil { identities_per_second } if !(0.0..=100_000.0).contains(identities_per_second) => {
                Err("identities-per-second must be from 0 to 100000".into())
            }
            Self::ClockDrift { ppm, .. } if ppm.unsigned_abs() > 100_000 => {
                Err("ppm must be from -100000 to 100000".into())
            }
            Self::Byzantine { malice, .. } if malice.is_empty() => {
                Err("a byzantine node without malice is none".into())
            }
            _ => Ok(()),
        }
    }

    /// Whom it hits, where that is chosen.
    pub fn who(&self) -> Option<Who> {
        match self {
            Self::Crash { who, .. }
            | Self::Leave { who }
            | Self::Pause { who }
            | Self::Suspend { who }
            | Self::OneWay { who }
            | Self::ClockJump { who, .. }
            | Self::ClockDrift { who, .. }
            | Self::SlowCpu { who, .. }
            | Self::DiskFull { who }
            | Self::CorruptSnapshot { who }
            | Self::Clone { who } => Some(*who),
            _ => None,
        }
    }
}
