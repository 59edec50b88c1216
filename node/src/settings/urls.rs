//! Which URLs agents of the existing contract may have, where this node is their coordinator or passes requests on to them.

use std::str::FromStr;

use hedgerow_contract::url::{HostSuffix, UrlPolicy, UrlPolicyUnclear};
use hedgerow_process::exit::Failure;

/// Yes or no, as a variable says it.
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(Self(true)),
            "false" | "no" | "off" | "0" => Ok(Self(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }
}

/// What all sources say together.
pub(super) fn policy(suffixes: Vec<HostSuffix>, allow_private: bool) -> Result<UrlPolicy, Failure> {
    UrlPolicy::of(suffixes, allow_private)
        .map_err(|error| Failure::usage(error).means(UrlPolicyUnclear::MEANS).advice(UrlPolicyUnclear::ADVICE))
}
