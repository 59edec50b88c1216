//! What can be done to a lab, as a value.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub(super) enum Fault {
    /// kill -9. The process starts again when the fault is over.
    Kill {
        /// Whose process.
        who: Who,
    },
    /// SIGSTOP, and SIGCONT when the fault is over.
    Pause {
        /// Whose process.
        who: Who,
    },
    /// Nothing passes the line.
    Cut {
        /// Whose line.
        who: Who,
    },
    /// One direction of the line passes nothing.
    OneWay {
        /// Whose line.
        who: Who,
        /// What does not arrive.
        loses: Way,
    },
    /// The connections that there are pass nothing in one direction. New ones are as always.
    BlackHole {
        /// Through whose router.
        who: Who,
        /// What does not arrive.
        loses: Way,
    },
    /// The router forgets its mappings and gives new ones other ports.
    Rebind {
        /// Whose router.
        who: Who,
    },
    /// Nothing passes the line but tunnels to the entry over QUIC: to other coordinators there is no way, neither a direct one nor
    /// one through the entry.
    OnlyTunnels {
        /// Whose line.
        who: Who,
    },
    /// These, and all others, do not hear of each other.
    Apart {
        /// One of the two parts.
        who: Vec<Who>,
    },
}

/// Seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Way {
    /// What it sends.
    Sent,
    /// What it would receive.
    Received,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sent => "sent",
            Self::Received => "received",
        })
    }
}

/// Whom a fault hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// A node, all of a group, or the entry.
    Named(String),
    /// The coordinator at which this worker is at home, when the fault begins.
    HomeOf(String),
}

/// What stands before a worker's name to mean its home.
const HOME_OF: &str = "the home of ";

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.strip_prefix(HOME_OF) {
            Some(worker) => Self::HomeOf(worker.to_owned()),
            None => Self::Named(text),
        })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::HomeOf(worker) => write!(f, "{HOME_OF}{worker}"),
        }
    }
}

impl Fault {
    /// Whom it hits.
    pub(super) fn who(&self) -> Vec<&Who> {
        match self {
            Self::Kill { who }
            | Self::Pause { who }
            | Self::Cut { who }
            | Self::OnlyTunnels { who }
            | Self::OneWay { who, .. }
            | Self::BlackHole { who, .. }
            | Self::Rebind { who } => vec![who],
            Self::Apart { who } => who.iter().collect(),
        }
    }

    /// Whether it is done at a router.
    pub(super) fn needs_a_router(&self) -> bool {
        matches!(self, Self::BlackHole { .. } | Self::Rebind { .. })
    }

    /// Whether the entry can be hit by it: it has a process and a line, and no router, and is no end of a tunnel's way
    /// that could be spared.
    pub(super) fn can_hit_the_entry(&self) -> bool {
        !self.needs_a_router() && !matches!(self, Self::OnlyTunnels { .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { who } => write!(f, "kill -9 to {who}"),
            Self::Pause { who } => write!(f, "SIGSTOP to {who}"),
            Self::Cut { who } => write!(f, "the line of {who} is cut"),
            Self::OneWay { who, loses } => write!(f, "nothing {loses} by {who} arrives"),
            Self::OnlyTunnels { who } => write!(f, "nothing passes the line of {who} but tunnels"),
            Self::BlackHole { who, loses } => write!(f, "nothing {loses} by {who} on its present connections arrives"),
            Self::Rebind { who } => write!(f, "the router of {who} forgets its mappings, and gives other ports"),
            Self::Apart { who } => {
                let names: Vec<String> = who.iter().map(Who::to_string).collect();
                write!(f, "{} and all others are parted", names.join(", "))
            }
        }
    }
}
