//! The command line, as clap reads it. What it means together with environment and file is [`crate::settings`]' matter.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hedgerow_contract::url::HostSuffix;
use hedgerow_process::logging::LogFormat;
use hedgerow_proto::id::NodeId;
use serde::Deserialize;

use crate::entry_url::EntryUrl;
use crate::service_spec::ServiceSpec;
use crate::settings::{MeshAddress, Span};

/// Offers services of this machine through the public entries of a federation. The node dials out: no port needs to be
/// open, and only the services that you name can be reached.
#[derive(Debug, Parser)]
#[command(name = "hedgerow-node", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join a federation and serve until stopped (Ctrl-C drains; a second one stops at once)
    Join(Box<JoinArgs>),
    /// Show what the running node is doing
    Status(StatusArgs),
    /// Ask the running node to leave: it says so to the federation, finishes what it has, and ends
    Leave(LeaveArgs),
}

/// The settings that `join` takes. Flags override the environment, which overrides the file.
#[derive(Debug, Default, Args)]
#[command(after_help = AFTER_HELP)]
pub struct JoinArgs {
    /// The entry of the federation, for example https://example.org; several may be given
    /// [env: HEDGEROW_ENTRY or COORDINATOR_URL, separated by commas]
    #[arg(value_name = "ENTRY")]
    pub entries: Vec<EntryUrl>,
    /// A service to offer: its public name, where it listens, how many requests it takes at once [default: 16], and a path
    /// that answers 2xx while it is well [default: taking a connection is enough]. May be given several times
    /// [env: HEDGEROW_SERVICES, separated by commas]
    #[arg(long = "service", value_name = "NAME=URL[;capacity=N][;health=/PATH]")]
    pub services: Vec<ServiceSpec>,
    /// What the node is in the federation: auto is a coordinator when no services are named, else a worker that becomes a
    /// coordinator as well while there are too few, and steps down when there are too many
    /// [env: HEDGEROW_ROLE] [default: auto]
    #[arg(long, value_name = "ROLE")]
    pub role: Option<RoleChoice>,
    /// Where the node keeps its key; one running node each
    /// [env: HEDGEROW_DATA_DIR] [default: $XDG_DATA_HOME/hedgerow or ~/.local/share/hedgerow]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Also serve this node's own services on this address, for this machine or its LAN; port 0 takes any. At a coordinator
    /// also all workers that coordinators reach, and agents of the older contract
    /// [env: HEDGEROW_LISTEN, or PORT with HOST] [default: not at all]
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    pub listen: Option<SocketAddr>,
    /// Where a coordinator's libp2p listens, for example /ip4/0.0.0.0/udp/4001/quic-v1 (port 0 takes any); its addresses stand in
    /// its record, for all nodes to dial. off: nowhere; it is in the mesh all the same, by way of its entries. Coordinators only,
    /// and who may be elected. May be given several times
    /// [env: HEDGEROW_MESH_LISTEN, separated by commas] [default: any free port, over QUIC and TCP]
    #[arg(long, value_name = "MULTIADDR|off")]
    pub mesh_listen: Vec<MeshAddress>,
    /// Whether coordinators on one LAN find each other there by multicast DNS, and workers them: on, off, or auto: unless the entries
    /// are on this machine, or it has a public address. What is said on the LAN is the node's libp2p id and its addresses there
    /// [env: HEDGEROW_LAN_DISCOVERY] [default: auto]
    #[arg(long, value_name = "WHETHER")]
    pub lan_discovery: Option<LanDiscoveryChoice>,
    /// What kind of work the node is for. auto looks at the machine: gpu with a GPU that nvidia-smi knows, storage with 1 TiB of
    /// room for its data and at most 4 cores, else cpu [env: HEDGEROW_WORKER_TYPE or WORKER_TYPE] [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub worker_type: Option<WorkerTypeChoice>,
    /// A coordinator takes an older agent for well while its last heartbeat is younger than this
    /// [env: HEDGEROW_HEARTBEAT_TIMEOUT, or HEARTBEAT_TIMEOUT_SECONDS in seconds] [default: 5min]
    #[arg(long, value_name = "TIME")]
    pub heartbeat_timeout: Option<Span>,
    /// A coordinator forgets an older agent that has been silent for so long
    /// [env: HEDGEROW_WORKER_TIMEOUT, or WORKER_TIMEOUT_SECONDS in seconds] [default: 10min]
    #[arg(long, value_name = "TIME")]
    pub worker_timeout: Option<Span>,
    /// A coordinator answers for agents with a URL of their own at these hosts: all under `.NAME`, or `NAME` and all under it. May be
    /// given several times [env: HEDGEROW_URL_SUFFIX, separated by commas] [default: .trycloudflare.com and .cfargotunnel.com]
    #[arg(long, value_name = "SUFFIX")]
    pub url_suffix: Vec<HostSuffix>,
    /// Let agents have any URL, http too, at private and loopback addresses too: for trying it out. A stranger who can register
    /// could so have this coordinator ask whatever it can reach [env: HEDGEROW_ALLOW_PRIVATE_URLS, true or false]
    #[arg(long)]
    pub allow_private_urls: bool,
    /// Where the node is, in your own words, shown to others; up to 64 bytes [env: HEDGEROW_LOCATION or LOCATION]
    #[arg(long, value_name = "TEXT")]
    pub location: Option<String>,
    /// The key that an entry must have, 64 hexadecimal digits; needed for an entry over plain http at a public address. May
    /// be given several times [env: HEDGEROW_ENTRY_KEY, separated by commas]
    #[arg(long = "entry-key", value_name = "HEX")]
    pub entry_keys: Vec<NodeId>,
    /// Certificates in PEM that may vouch for an https entry, in place of the web's usual roots
    /// [env: HEDGEROW_ENTRY_CA]
    #[arg(long, value_name = "FILE")]
    pub entry_ca: Option<PathBuf>,
    /// A TOML file that says the same things under the same names [env: HEDGEROW_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write node id and addresses to this file as JSON once a tunnel is up; it is removed at the end
    /// [env: HEDGEROW_READY_FILE]
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// What a line of the log looks like; RUST_LOG filters [env: HEDGEROW_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

const AFTER_HELP: &str = "\
Flags override the environment, which overrides the file. An empty variable is an unset one.

Of the names that older agents know, COORDINATOR_URL, LOCATION, WORKER_TYPE, PORT with HOST, HEARTBEAT_TIMEOUT_SECONDS and \
WORKER_TIMEOUT_SECONDS are honoured. WORKER_ID, COORDINATOR_ID, USE_TUNNEL and TUNNEL_URL are not: a node's id is its key, and \
it always dials out.";

/// Which running node is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Which {
    /// The data directory of the running node
    /// [env: HEDGEROW_DATA_DIR] [default: $XDG_DATA_HOME/hedgerow or ~/.local/share/hedgerow]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The configuration file of the running node, if it names the data directory [env: HEDGEROW_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What `status` takes.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which node.
    #[command(flatten)]
    pub which: Which,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// What `leave` takes.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Which node.
    #[command(flatten)]
    pub which: Which,
}

/// What the operator wants the node to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleChoice {
    /// Coordinator when no services are named, else a worker that may be elected coordinator as well.
    #[default]
    Auto,
    /// Holds the registry, offers nothing.
    Coordinator,
    /// Offers services.
    Worker,
    /// Both at once.
    Both,
}

/// Whether the operator wants others on the LAN to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LanDiscoveryChoice {
    /// Where there may be any.
    #[default]
    Auto,
    /// On every network that this machine is on.
    On,
    /// No.
    Off,
}

/// What kind of work the operator wants the node to be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerTypeChoice {
    /// As its hardware suggests.
    #[default]
    Auto,
    /// Models that need a GPU.
    Gpu,
    /// Anything that a processor does.
    Cpu,
    /// Keeping things.
    Storage,
    /// Passing requests on. Never chosen without being asked for: hardware does not tell.
    Edge,
}

/// Reads the address of `--listen`.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not ADDRESS:PORT; write for example 127.0.0.1:8787 or 0.0.0.0:8787"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
