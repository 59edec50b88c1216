//! Mistakes made on purpose, to see whether the simulation finds them. There only with the feature `mutations`, which nothing but
//! the simulation's own test of itself turns on; without it [`is_active`] is a constant, and nothing of this is in a program.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// What its writer said before it left is taken again.
    ResurrectingTombstone,
    /// Whoever passes a lease on states that it is fresh.
    ThirdPartyRenewsLeases,
    /// Of two versions the older one stands.
    OlderVersionWins,
    /// A request is sent again although the client has seen the answer begin.
    RetryAfterFirstByte,
    /// A synchronisation leaves one subtree in sixteen out.
    DigestSkipsBucket,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ResurrectingTombstone,
        Self::ThirdPartyRenewsLeases,
        Self::OlderVersionWins,
        Self::RetryAfterFirstByte,
        Self::DigestSkipsBucket,
    ];

    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ResurrectingTombstone => "resurrecting-tombstone",
            Self::ThirdPartyRenewsLeases => "third-party-renews-leases",
            Self::OlderVersionWins => "older-version-wins",
            Self::RetryAfterFirstByte => "retry-after-first-byte",
            Self::DigestSkipsBucket => "digest-skips-bucket",
        }
    }
}

#[cfg(feature = "mutations")]
mod active {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// This thread makes this mistake from now on, or none.
    pub fn activate(mutation: Option<Mutation>) {
        ACTIVE.set(mutation);
    }

    pub(crate) fn is_active(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }
}

#[cfg(feature = "mutations")]
pub use active::activate;
#[cfg(feature = "mutations")]
pub(crate) use active::is_active;

/// Whether this mistake is made.
#[cfg(not(feature = "mutations"))]
pub(crate) const fn is_active(_: Mutation) -> bool {
    false
}
