//! The replica of the registry that a node keeps (its data directory, its own records, synchronisation), and the libp2p host by
//! which coordinators agree and workers reach their home.
//!
//! The rules are [`hedgerow_proto`]'s, which does no I/O; here are the disk, the clock, the randomness and the streams.
//! No HTTP.

pub mod clock;
pub mod data_dir;
pub mod host;
pub mod replica;
