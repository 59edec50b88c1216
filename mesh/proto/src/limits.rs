//! Every bound has a name and a reason.

use std::time::Duration;

/// The bounds of the registry and of what travels for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// One signed record, in bytes: fits a UDP datagram without fragments, and bounds what a stranger can make us keep.
    pub record_bytes_max: usize,
    /// Services in one record: more is a catalogue, not a node.
    pub services_per_node_max: usize,
    /// Multiaddrs in one record: a node has a few interfaces; a list of a thousand is an attack on those who dial them.
    pub multiaddrs_per_node_max: usize,
    /// Length of a multiaddr's text in bytes: a DNS name, a WebSocket path with a node id and a peer id fit.
    pub multiaddr_bytes_max: usize,
    /// Length of the location text in bytes: a place that a person reads.
    pub location_bytes_max: usize,
    /// Length of the software version's text in bytes.
    pub version_bytes_max: usize,
    /// Length of a GPU's name in bytes: what drivers say, shortened.
    pub gpu_name_bytes_max: usize,
    /// Length of an agent's own id in bytes: as much as the envelope has room for.
    pub guest_id_bytes_max: usize,
    /// Length of an agent's type in bytes: a word.
    pub guest_type_bytes_max: usize,
    /// Length of an agent's URL in bytes: a host name and a port.
    pub guest_url_bytes_max: usize,
    /// Length of an agent's capabilities as JSON in bytes: what is left of a record.
    pub guest_capabilities_bytes_max: usize,

    /// The shortest lease: below it, a lost packet or two would end a life.
    pub lease_ttl_min: Duration,
    /// The longest lease: what the largest federation stretches it to, and some room.
    pub lease_ttl_max: Duration,
    /// Leases renewed in the whole federation per second: what everybody must carry because of everybody else.
    pub lease_renewals_per_second_max: u32,
    /// How long a node's records stand when there is no sign of life of it: no tunnel, no lease, no attachment.
    pub lapse_after: Duration,
    /// How long after that a high-water mark outlives it. Whoever was away for longer starts anew.
    pub mark_kept: Duration,

    /// Coordinators in the registry: each costs every other one a lease.
    pub coordinators_max: usize,
    /// Workers in the registry: at two KiB each, with its home's attachment, 128 MiB.
    pub workers_max: usize,
    /// Workers that name one coordinator as their home: one coordinator's volunteers cannot fill everybody's memory.
    pub workers_per_sponsor_max: usize,
    /// Workers that name no coordinator known here: they have only been seen by way of tunnels.
    pub workers_without_sponsor_max: usize,
    /// Attachments that one coordinator states: one for each worker that it may hold.
    pub attachments_per_sponsor_max: usize,
    /// Guests for which one coordinator speaks: it vouches for each, and each is a record.
    pub guests_per_sponsor_max: usize,
    /// Records of kinds that this version does not know, for one writer: room for the future, not for a flood.
    pub unknown_per_writer_max: usize,
    /// Records beside those that nodes and leases are, in all: attachments, guests, what this version does not know, and their tombstones.
    /// Each sponsor's own bounds, times as many sponsors as there may be, are more than a machine holds. Beyond it
    /// each still has his share, and nobody has more.
    pub extra_records_max: usize,
    /// Nodes that came in directly from one source prefix (an IPv4 /24, an IPv6 /48): addresses are dearer than keys.
    pub nodes_per_prefix_max: usize,
    /// High-water marks for one sponsor; over it the oldest go. Keys are free, so what dead ones leave is bounded too.
    pub marks_per_sponsor_max: usize,
    /// High-water marks in all; over it the oldest go.
    pub marks_max: usize,

    /// One message of the synchronisation, in bytes: fits a frame of the tunnel.
    pub sync_message_bytes_max: usize,
    /// A snapshot of the registry, in bytes: every record that it may hold, with marks.
    pub snapshot_bytes_max: usize,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

impl Limits {
    /// What the binaries run with.
    pub const PRODUCTION: Self = Self {
        record_bytes_max: 1024,
        services_per_node_max: 32,
        multiaddrs_per_node_max: 8,
        multiaddr_bytes_max: 256,
        location_bytes_max: 64,
        version_bytes_max: 32,
        gpu_name_bytes_max: 48,
        guest_id_bytes_max: 64,
        guest_type_bytes_max: 32,
        guest_url_bytes_max: 256,
        guest_capabilities_bytes_max: 640,
        lease_ttl_min: MINUTE,
        lease_ttl_max: HOUR,
        lease_renewals_per_second_max: 5,
        lapse_after: Duration::from_secs(10 * 60),
        mark_kept: Duration::from_secs(24 * 60 * 60),
        coordinators_max: 4096,
        workers_max: 65536,
        workers_per_sponsor_max: 16384,
        workers_without_sponsor_max: 16384,
        attachments_per_sponsor_max: 16384,
        guests_per_sponsor_max: 1024,
        unknown_per_writer_max: 16,
        extra_records_max: 128 * 1024,
        nodes_per_prefix_max: 1024,
        marks_per_sponsor_max: 16384,
        marks_max: 65536,
        sync_message_bytes_max: 48 * 1024,
        snapshot_bytes_max: 512 * 1024 * 1024,
    };
    /// So small that a simulation reaches every bound.
    pub const TINY: Self = Self {
        record_bytes_max: 512,
        services_per_node_max: 3,
        multiaddrs_per_node_max: 2,
        multiaddr_bytes_max: 64,
        location_bytes_max: 16,
        version_bytes_max: 16,
        gpu_name_bytes_max: 16,
        guest_id_bytes_max: 16,
        guest_type_bytes_max: 8,
        guest_url_bytes_max: 64,
        guest_capabilities_bytes_max: 128,
        lease_ttl_min: MINUTE,
        lease_ttl_max: HOUR,
        lease_renewals_per_second_max: 5,
        lapse_after: Duration::from_secs(10 * 60),
        mark_kept: Duration::from_secs(24 * 60 * 60),
        coordinators_max: 4,
        workers_max: 8,
        workers_per_sponsor_max: 5,
        workers_without_sponsor_max: 4,
        attachments_per_sponsor_max: 5,
        guests_per_sponsor_max: 3,
        unknown_per_writer_max: 2,
        extra_records_max: 64,
        nodes_per_prefix_max: 6,
        marks_per_sponsor_max: 4,
        marks_max: 8,
        sync_message_bytes_max: 2048,
        snapshot_bytes_max: 64 * 1024,
    };

    /// The time to live of a lease in a federation of this many coordinators: renewed at a third of it, so that all
    /// of them together renew at most [`Limits::lease_renewals_per_second_max`] times a second.
    pub fn lease_ttl(&self, coordinators: usize) -> Duration {
        let renewals = u32::try_from(coordinators).unwrap_or(u32::MAX);
        let interval = Duration::from_secs(1) * renewals / self.lease_renewals_per_second_max.max(1);
        (interval * 3).clamp(self.lease_ttl_min, self.lease_ttl_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_federation_renews_no_more_than_its_limit() {
        let limits = Limits::PRODUCTION;
        for coordinators in [1, 3, 100, 101, 500, limits.coordinators_max] {
            let ttl = limits.lease_ttl(coordinators);
            let per_second = coordinators as f64 / (ttl.as_secs_f64() / 3.0);
            assert!(per_second <= 5.0 + 1e-9, "{coordinators} coordinators: {per_second}/s at {ttl:?}");
            assert!(ttl >= limits.lease_ttl_min);
        }
        assert_eq!(limits.lease_ttl(3), MINUTE);
    }
}
