//! Every bound has a name and a reason.

/// The bounds of the registry and of what travels for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// One signed record, in bytes: fits a UDP datagram without fragments, and bounds what a stranger can make us keep.
    pub record_bytes_max: usize,
    /// Services in one record: more is a catalogue, not a node.
    pub services_per_node_max: usize,
    /// Multiaddrs in one record: a node has a few interfaces; a list of a thousand is an attack on those who dial them.
    pub multiaddrs_per_node_max: usize,
    /// Length of the location text in bytes: a place that a person reads.
    pub location_bytes_max: usize,
    /// Coordinators in the registry: each costs every other one a lease.
    pub coordinators_max: usize,
    /// Workers in the registry: at a KiB each, 64 MiB.
    pub workers_max: usize,
}

impl Limits {
    /// What the binaries run with.
    pub const PRODUCTION: Self = Self {
        record_bytes_max: 1024,
        services_per_node_max: 32,
        multiaddrs_per_node_max: 8,
        location_bytes_max: 64,
        coordinators_max: 4096,
        workers_max: 65536,
    };
    /// So small that a simulation reaches every bound.
    pub const TINY: Self = Self {
        record_bytes_max: 512,
        services_per_node_max: 3,
        multiaddrs_per_node_max: 2,
        location_bytes_max: 16,
        coordinators_max: 4,
        workers_max: 8,
    };
}
