//! The node that volunteers run: dials out to the entries of a federation and offers local services through them.
//!
//! ```text
//! cli, settings ──▶ run ──▶ entries ──▶ bootstrap        one tunnel for each entry of each domain, kept up
//!                    │         └──────▶ hedgerow_tunnel   requests come back down it
//!                    ├────▶ remembered                    which federation they were of, when none answers
//!                    ├────▶ hardware                      what this machine has; goes into the signed record
//!                    ├────▶ services ──▶ slots            a slot and a connection for each request
//!                    ├────▶ probe                         which services are up; goes into the signed record
//!                    ├────▶ lan                           the same routes on a port of this machine
//!                    │       └────▶ elsewhere             at a coordinator: workers of other coordinators, and agents
//!                    └────▶ control ◀── status, leave     a socket in the data directory, for the same binary
//! ```
//!
//! The node never parses the HTTP that it carries: it copies bytes between a stream of the tunnel and a connection to the
//! service. It connects to nothing but the services that its operator named, the entries that he chose, and the coordinators that
//! those tell of. A coordinator with a port of its own asks agents there too: only at URLs that its operator allows (hedgerow_urls).

pub mod bootstrap;
pub mod cli;
pub mod contract;
pub mod control;
pub mod elsewhere;
pub mod entries;
pub mod entry_url;
pub mod hardware;
pub mod identity;
pub mod lan;
pub mod membership;
pub mod mesh;
pub mod node;
pub mod platform;
pub mod probe;
pub mod registry_view;
pub mod remembered;
pub mod run;
pub mod service_spec;
pub mod services;
pub mod settings;
pub mod status;
