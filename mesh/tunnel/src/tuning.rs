//! Every number of the tunnel, with its reason.

use std::time::Duration;

/// How soon an entry is tried again.
pub use hedgerow_proto::backoff::{BACKOFF_MAX, BACKOFF_MIN};
/// How liveness is judged.
pub use hedgerow_proto::liveness::{
    IDLE_TIMEOUT, PING_INTERVAL, PING_INTERVAL_LANE, PONG_TIMEOUT, SUSPECT_AFTER, SUSPECT_IDLE_AFTER, WATCHDOG_INTERVAL,
};

/// How long a handshake may take from the first packet to Welcome.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that an entry may have open at once on one connection: beyond it, opening waits.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// Bytes of one stream that may be on the way unread: 100 ms at 80 Mbit/s. It is also what a reader who has stopped
/// costs the entry.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// The same for all streams of a connection. A node cannot open streams, so what it can make an entry hold is bounded by the
/// requests that run; the bound stands well above what a few dozen stopped readers hold, so that they do not stop the others.
pub const CONNECTION_WINDOW_BYTES: u32 = 128 * 1024 * 1024;
/// Bytes of the sending side not yet acknowledged, for all streams of a connection.
pub const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Size asked for the buffers of a UDP socket: at 4 MB a seventh of the CPU per byte is saved (fewer losses at bursts).
pub const UDP_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Connections that one node holds to one entry at most, however many threads that has.
pub const LANES_MAX: u16 = 4;
/// Bytes that the node reads from a service at once.
pub const SPLICE_DOWN_BYTES: usize = 64 * 1024;
/// Bytes that the node reads from a stream at once, towards a service.
pub const SPLICE_UP_BYTES: usize = 32 * 1024;
/// Messages that may wait on a control stream; a peer that does not read them is cut off.
pub const CONTROL_QUEUE: usize = 64;
/// How long the streams that run may take to finish when a node leaves.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
