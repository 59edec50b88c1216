//! The scenarios that come with Hedgerow (`simulations/lab`), built in.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipped {
    /// What it is called: its file's name without the ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal)*) => {
        &[$(Shipped { name: $name, text: include_str!(concat!("../../lab/", $name, ".toml")) }),*]
    };
}

/// All of them, those that take long at the end.
pub const SHIPPED: &[Shipped] = shipped! {
    "smoke"
    "nats"
    "no-udp"
    "six"
    "lan"
    "lan-off"
    "coordinator-killed"
    "paused"
    "cut"
    "black-hole"
    "rebinding"
    "entry-restart"
    "gossip-dead"
    "entry-gone"
    "gossip"
    "parted"
    "punched"
    "entry-gone-long"
    "idle-cost"
};

/// The one of this name.
pub fn named(name: &str) -> Option<Shipped> {
    SHIPPED.iter().copied().find(|shipped| shipped.name == name)
}

#[cfg(test)]
mod tests {
    use super::super::scenario::Scenario;
    use super::*;

    #[test]
    fn each_can_be_played_and_says_what_it_shows() {
        for shipped in SHIPPED {
            let scenario = Scenario::parse(shipped.name, shipped.text).unwrap();
            assert!(scenario.about.len() > 40, "{} does not say what it shows", shipped.name);
        }
    }
}
