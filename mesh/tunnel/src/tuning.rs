//! Every number of the tunnel, with its reason.

use std::time::Duration;

/// How soon an entry is tried again.
pub use hedgerow_proto::backoff::{BACKOFF_MAX, BACKOFF_MIN};
/// How liveness is judged.
pub use hedgerow_proto::liveness::{
    IDLE_TIMEOUT, PING_INTERVAL, PING_INTERVAL_HOME, PING_INTERVAL_LANE, PONG_TIMEOUT, SUSPECT_AFTER,
    SUSPECT_IDLE_AFTER, WATCHDOG_INTERVAL,
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
/// Bytes of one stream that wait to go out over TCP: a writer is woken when they have gone to the socket and not when they have
/// arrived, so this bounds no throughput. With all streams of a connection full it is 32 MiB.
pub const TCP_STREAM_SEND_BYTES: usize = 32 * 1024;
/// Bytes that the kernel takes for a TCP connection beyond what is on the way: what is behind them, a PING too, waits for them.
pub const TCP_UNSENT_BYTES: u32 = 128 * 1024;
/// How often the round trip over TCP is measured: a twentieth of a second's CPU in a day, 0.3 kbit/s each way, and three of them
/// within [`IDLE_TIMEOUT`], so that a path that is dead is noticed also where nothing else is said.
pub const TCP_PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the last words over TCP, which say why a connection is closed, may take to be read.
pub const TCP_LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a reset stream is remembered: what the other end had sent before it knew is still to come, and is no fault of its. On a
/// line that takes longer than this nothing else works either.
pub const TCP_RESET_MEMORY: Duration = Duration::from_secs(5);
/// How many are remembered: 800 requests that are given up in each second. 2 MiB.
pub const TCP_RESETS_REMEMBERED_MAX: usize = 4096;
/// Frames for streams that are not remembered, or that break the rules, in the life of a connection: each has an answer waiting to go
/// out, some 500 bytes, and whoever sends them may read none.
pub const TCP_STRAY_FRAMES_MAX: usize = 4096;
/// How long QUIC is tried alone before TCP is tried beside it: three round trips around the world, and the second repeat of a lost
/// first packet (RFC 9002 §6.2.2 repeats after 1 s).
pub const QUIC_HEAD_START: Duration = Duration::from_millis(1500);
/// The same where the last tunnel came up over TCP alone: it will mostly be so again, and QUIC needs a round trip less anyway.
pub const QUIC_HEAD_START_AFTER_TCP: Duration = Duration::from_millis(250);
/// How soon QUIC is tried again while a tunnel goes over TCP: it may be that the network has just come up.
pub const QUIC_AGAIN_MIN: Duration = Duration::from_secs(5);
/// The longest pause between two such attempts, to which the pauses double: a firewall's mind changes with the network, and then
/// the tunnel breaks anyway.
pub const QUIC_AGAIN_MAX: Duration = Duration::from_secs(600);
/// How long requests may run on when their connection has been left for a better one.
pub const MOVE_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that is left for one over another transport stays for so long, though nothing runs on it: its end must not reach the node
/// before the word that the other one is up.
pub const MOVE_LINGER: Duration = Duration::from_secs(3);
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
