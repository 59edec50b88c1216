//! Flags, environment and file, put together into settings that are valid before anything is bound or dialled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hedgerow_contract::url::{HostSuffix, UrlPolicy};
use hedgerow_process::config::{self, ConfigError};
use hedgerow_process::exit::Failure;
use hedgerow_process::logging::LogFormat;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Candidacy, Roles};
use serde::de::{self, Deserialize, Deserializer};

use crate::cli::{self, JoinArgs, LanDiscoveryChoice, RoleChoice, Which, WorkerTypeChoice};
use crate::entry_url::EntryUrl;
use crate::service_spec::{ServiceSpec, ServiceSpecError};

mod mesh_listen;
mod timeouts;
mod urls;

pub use mesh_listen::{MeshAddress, MeshListen};
pub use timeouts::Span;
use timeouts::{Said, Timeouts};
use urls::Switch;

/// What the node runs with. Every part has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The entries to join; at least one.
    pub entries: Vec<EntryUrl>,
    /// When not empty: the only keys that an entry may have.
    pub entry_keys: Vec<NodeId>,
    /// Roots for https entries, in place of the web's.
    pub entry_ca: Option<PathBuf>,
    /// What the node is.
    pub roles: Roles,
    /// Whether that may change while it runs.
    pub candidacy: Candidacy,
    /// In order of name, each once.
    pub services: Vec<ServiceSpec>,
    /// Where the key is.
    pub data_dir: PathBuf,
    /// Where to serve on the LAN.
    pub listen: Option<SocketAddr>,
    /// Where other coordinators can dial it.
    pub mesh_listen: MeshListen,
    /// Whether others are looked for on the LAN.
    pub lan_discovery: LanDiscoveryChoice,
    /// What kind of work it is for, or that its hardware decides.
    pub worker_type: WorkerTypeChoice,
    /// A coordinator takes an agent of the existing contract for well while its last heartbeat is younger than this:
    /// models take minutes to load. Our own nodes are watched over their tunnels.
    pub heartbeat_timeout: Duration,
    /// When an agent of the existing contract has been silent for so long, its coordinator forgets it. Never shorter than
    /// the heartbeat timeout.
    pub worker_timeout: Duration,
    /// Which URLs agents of the existing contract may have.
    pub urls: UrlPolicy,
    /// Where the node is, in its operator's words.
    pub location: String,
    /// Where to say that it is ready.
    pub ready_file: Option<PathBuf>,
    /// What the log looks like.
    pub log_format: LogFormat,
    /// Variables of older agents that are set and have no meaning here.
    pub ignored_variables: Vec<&'static str>,
}

/// The configuration file. Its keys are the flags' names; services are tables.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct File {
    entry: OneOrMany<EntryUrl>,
    service: Vec<FileService>,
    role: Option<RoleChoice>,
    data_dir: Option<PathBuf>,
    listen: Option<Text<ListenAddress>>,
    mesh_listen: OneOrMany<MeshAddress>,
    lan_discovery: Option<LanDiscoveryChoice>,
    worker_type: Option<WorkerTypeChoice>,
    heartbeat_timeout: Option<Text<Span>>,
    worker_timeout: Option<Text<Span>>,
    url_suffix: OneOrMany<HostSuffix>,
    allow_private_urls: Option<bool>,
    location: Option<String>,
    entry_key: OneOrMany<NodeId>,
    entry_ca: Option<PathBuf>,
    ready_file: Option<PathBuf>,
    log_format: Option<LogFormat>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(try_from = "RawService")]
struct FileService(ServiceSpec);

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: String,
    url: String,
    capacity: Option<u32>,
    health: Option<String>,
}

impl TryFrom<RawService> for FileService {
    type Error = ServiceSpecError;
    fn try_from(raw: RawService) -> Result<Self, ServiceSpecError> {
        ServiceSpec::new(&raw.name, &raw.url, raw.capacity, raw.health.as_deref()).map(Self)
    }
}

/// A value written as text, of a type that reads itself from text.
#[derive(Debug)]
struct Text<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A text, or a list of them.
#[derive(Debug)]
struct OneOrMany<T>(Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: FromStr<Err: fmt::Display>> de::Visitor<'de> for Visitor<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map(|one| OneOrMany(vec![one])).map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
                let mut many = Vec::new();
                while let Some(Text(one)) = texts.next_element()? {
                    many.push(one);
                }
                Ok(OneOrMany(many))
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

#[derive(Debug)]
struct ListenAddress(SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        cli::listen_address(text).map(Self)
    }
}

/// The process's environment, or a test's.
pub struct Environment<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// The process's own.
    pub const PROCESS: Environment<'static> = Environment(&|name| std::env::var(name).ok());

    /// The first of these variables that is set and not empty, with its name.
    fn text<'n>(&self, names: &[&'n str]) -> Option<(&'n str, String)> {
        names.iter().find_map(|name| (self.0)(name).filter(|value| !value.is_empty()).map(|value| (*name, value)))
    }

    fn value<T: FromStr<Err: fmt::Display>>(&self, names: &[&str]) -> Result<Option<T>, Failure> {
        self.text(names).map(|(name, text)| parse_variable(name, &text)).transpose()
    }

    fn list<T: FromStr<Err: fmt::Display>>(&self, names: &[&str]) -> Result<Vec<T>, Failure> {
        let Some((name, text)) = self.text(names) else { return Ok(Vec::new()) };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| parse_variable(name, part)).collect()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(&[name]).map(|(_, text)| text.into())
    }
}

fn parse_variable<T: FromStr<Err: fmt::Display>>(name: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| {
        Failure::usage(format!("the environment variable {name} is wrong: {error}"))
            .means("nothing was started")
            .advice(format!("correct {name}, or unset it"))
    })
}

/// The words of a `ValueEnum`, read from a variable as clap reads them from a flag.
struct Word<T>(T);

impl<T: clap::ValueEnum> FromStr for Word<T> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        T::from_str(text, false).map(Self).map_err(|_| {
            let words: Vec<_> = T::value_variants()
                .iter()
                .filter_map(|v| v.to_possible_value().map(|v| v.get_name().to_owned()))
                .collect();
            format!("{text:?} is none of {}", words.join(", "))
        })
    }
}

/// What they said to older agents has no place here: a node's id is its key, and it always dials out.
const IGNORED_VARIABLES: [&str; 4] = ["WORKER_ID", "COORDINATOR_ID", "USE_TUNNEL", "TUNNEL_URL"];

impl Settings {
    /// Puts together what `join` runs with.
    pub fn resolve(args: JoinArgs, environment: &Environment<'_>) -> Result<Self, Failure> {
        let config = args.config.or_else(|| environment.path("HEDGEROW_CONFIG"));
        let file: File = config::load_or_default(config.as_deref())?;

        let entries = first_of([args.entries, environment.list(&["HEDGEROW_ENTRY", "COORDINATOR_URL"])?, file.entry.0]);
        let services = first_of([
            args.services,
            environment.list(&["HEDGEROW_SERVICES"])?,
            file.service.into_iter().map(|service| service.0).collect(),
        ]);
        let role = args
            .role
            .or(environment.value::<Word<RoleChoice>>(&["HEDGEROW_ROLE"])?.map(|word| word.0))
            .or(file.role)
            .unwrap_or_default();
        let listen = match args.listen {
            Some(address) => Some(address),
            None => listen_variables(environment)?.or(file.listen.map(|text| text.0.0)),
        };
        let services = in_order(services)?;
        let roles = roles(role, &services)?;
        let candidacy = match (role, roles) {
            // One that offers nothing has nothing else to be.
            (RoleChoice::Auto, Roles::Worker) => Candidacy::Elective,
            _ => Candidacy::Fixed,
        };
        let mesh_listen = MeshListen::of(
            first_of([args.mesh_listen, environment.list(&["HEDGEROW_MESH_LISTEN"])?, file.mesh_listen.0]),
            roles,
            candidacy,
        )?;
        let timeouts = Timeouts::of([
            Said { heartbeat: args.heartbeat_timeout, worker: args.worker_timeout },
            Said::by_variables(environment)?,
            Said {
                heartbeat: file.heartbeat_timeout.map(|text| text.0),
                worker: file.worker_timeout.map(|text| text.0),
            },
        ])?;
        let urls = urls::policy(
            first_of([args.url_suffix, environment.list(&["HEDGEROW_URL_SUFFIX"])?, file.url_suffix.0]),
            args.allow_private_urls
                || environment
                    .value::<Switch>(&["HEDGEROW_ALLOW_PRIVATE_URLS"])?
                    .map(|switch| switch.0)
                    .or(file.allow_private_urls)
                    .unwrap_or_default(),
        )?;
        Ok(Self {
            entries: at_least_one(unique(entries))?,
            entry_keys: first_of([args.entry_keys, environment.list(&["HEDGEROW_ENTRY_KEY"])?, file.entry_key.0]),
            entry_ca: args.entry_ca.or_else(|| environment.path("HEDGEROW_ENTRY_CA")).or(file.entry_ca),
            roles,
            candidacy,
            services,
            data_dir: args
                .data_dir
                .or_else(|| environment.path("HEDGEROW_DATA_DIR"))
                .or(file.data_dir)
                .map_or_else(|| default_data_dir(environment), Ok)?,
            listen,
            mesh_listen,
            lan_discovery: args
                .lan_discovery
                .or(environment.value::<Word<LanDiscoveryChoice>>(&["HEDGEROW_LAN_DISCOVERY"])?.map(|word| word.0))
                .or(file.lan_discovery)
                .unwrap_or_default(),
            worker_type: args
                .worker_type
                .or(environment
                    .value::<Word<WorkerTypeChoice>>(&["HEDGEROW_WORKER_TYPE", "WORKER_TYPE"])?
                    .map(|word| word.0))
                .or(file.worker_type)
                .unwrap_or_default(),
            heartbeat_timeout: timeouts.heartbeat,
            worker_timeout: timeouts.worker,
            urls,
            location: location(
                args.location
                    .or_else(|| environment.text(&["HEDGEROW_LOCATION", "LOCATION"]).map(|(_, text)| text))
                    .or(file.location)
                    .unwrap_or_default(),
            )?,
            ready_file: args.ready_file.or_else(|| environment.path("HEDGEROW_READY_FILE")).or(file.ready_file),
            log_format: args
                .log_format
                .or(environment.value::<Word<LogFormat>>(&["HEDGEROW_LOG_FORMAT"])?.map(|word| word.0))
                .or(file.log_format)
                .unwrap_or_default(),
            ignored_variables: IGNORED_VARIABLES
                .into_iter()
                .filter(|name| environment.text(&[name]).is_some())
                .collect(),
        })
    }
}

/// The data directory of the node that `status` and `leave` mean.
pub fn data_dir_of(which: Which, environment: &Environment<'_>) -> Result<PathBuf, Failure> {
    if let Some(directory) = which.data_dir.or_else(|| environment.path("HEDGEROW_DATA_DIR")) {
        return Ok(directory);
    }
    let config = which.config.or_else(|| environment.path("HEDGEROW_CONFIG"));
    let file: File = config::load_or_default(config.as_deref())?;
    file.data_dir.map_or_else(|| default_data_dir(environment), Ok)
}

/// Checks the text of a configuration file without reading the environment or the disk; `path` is for the errors.
pub fn check_file(text: &str, path: &Path) -> Result<File, ConfigError> {
    config::parse(text, path)
}

fn default_data_dir(environment: &Environment<'_>) -> Result<PathBuf, Failure> {
    // The XDG base directory specification: a relative path is not valid and counts as unset.
    if let Some(xdg) = environment.path("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
        return Ok(xdg.join("hedgerow"));
    }
    if let Some(home) = environment.path("HOME").filter(|path| path.is_absolute()) {
        return Ok(home.join(".local/share/hedgerow"));
    }
    Err(Failure::usage("there is no home directory to keep the node's key in: HOME and XDG_DATA_HOME are not set")
        .means("nothing was started")
        .advice("name a directory with --data-dir DIR"))
}

fn listen_variables(environment: &Environment<'_>) -> Result<Option<SocketAddr>, Failure> {
    if let Some(address) = environment.value::<ListenAddress>(&["HEDGEROW_LISTEN"])? {
        return Ok(Some(address.0));
    }
    // Older agents listen on PORT, on every address unless HOST says otherwise. A HOST alone opens nothing.
    let Some(port) = environment.value::<u16>(&["PORT"])? else { return Ok(None) };
    let host = match environment.text(&["HOST"]) {
        None => Ipv4Addr::UNSPECIFIED.into(),
        Some((_, name)) if name == "localhost" => Ipv4Addr::LOCALHOST.into(),
        Some((variable, address)) => parse_variable::<IpAddr>(variable, &address)?,
    };
    Ok(Some(SocketAddr::new(host, port)))
}

/// Lists are not mixed: the first source that names anything names everything.
fn first_of<T>(sources: [Vec<T>; 3]) -> Vec<T> {
    sources.into_iter().find(|list| !list.is_empty()).unwrap_or_default()
}

fn unique<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    list.into_iter().fold(Vec::new(), |mut seen, item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
        seen
    })
}

fn at_least_one(entries: Vec<EntryUrl>) -> Result<Vec<EntryUrl>, Failure> {
    if entries.is_empty() {
        return Err(Failure::usage("no entry is named")
            .means("the node would not know which federation to join")
            .advice("name one: hedgerow-node join https://ENTRY --service NAME=http://127.0.0.1:PORT"));
    }
    Ok(entries)
}

fn in_order(mut services: Vec<ServiceSpec>) -> Result<Vec<ServiceSpec>, Failure> {
    services.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = services.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Failure::usage(format!("the service {} is named twice", twice[0].name))
            .means("the node would not know which of the two to ask")
            .advice("give the second one another name"));
    }
    let max = Limits::PRODUCTION.services_per_node_max;
    if services.len() > max {
        return Err(Failure::usage(format!("{} services are named, and a node offers at most {max}", services.len()))
            .advice("spread them over several nodes, each with its own --data-dir"));
    }
    Ok(services)
}

fn roles(choice: RoleChoice, services: &[ServiceSpec]) -> Result<Roles, Failure> {
    let name_one = "name one: --service NAME=http://127.0.0.1:PORT";
    match (choice, services.is_empty()) {
        (RoleChoice::Auto, true) | (RoleChoice::Coordinator, true) => Ok(Roles::Coordinator),
        (RoleChoice::Auto, false) | (RoleChoice::Worker, false) => Ok(Roles::Worker),
        (RoleChoice::Both, false) => Ok(Roles::Both),
        (RoleChoice::Worker, true) => Err(Failure::usage("the role is worker, and no service is named")
            .means("it would have nothing to do")
            .advice(name_one)),
        (RoleChoice::Both, true) => Err(Failure::usage("the role is both, and no service is named")
            .means("it would have nothing to do as a worker")
            .advice(format!("{name_one}, or use --role coordinator"))),
        (RoleChoice::Coordinator, false) => Err(Failure::usage("the role is coordinator, and services are named")
            .means("a coordinator that is not a worker offers no services")
            .advice("use --role both, or leave --role out")),
    }
}

fn location(text: String) -> Result<String, Failure> {
    let max = Limits::PRODUCTION.location_bytes_max;
    let wrong = if text.len() > max {
        Some(format!("the location is {} bytes long, at most {max} are allowed", text.len()))
    } else if text.chars().any(char::is_control) {
        Some("the location has control characters in it".to_owned())
    } else {
        None
    };
    match wrong {
        Some(wrong) => Err(Failure::usage(wrong).advice("use a few words, such as: Vienna, Austria")),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests;
