//! The bounds of the registry by the name that a scenario gives them, at whichever level.

use hedgerow_proto::limits::Limits;
use hedgerow_sim_model::scenario::LimitsName;

/// Those of this name.
pub fn named(name: LimitsName) -> Limits {
    match name {
        LimitsName::Production => Limits::PRODUCTION,
        LimitsName::Tiny => Limits::TINY,
    }
}
