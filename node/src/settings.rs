//! Flags, environment and file, put together into settings that are valid before anything is bound or dialled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hedgerow_mesh::host::Multiaddr;
use hedgerow_process::config::{self, ConfigError};
use hedgerow_process::exit::Failure;
use hedgerow_process::logging::LogFormat;
use hedgerow_proto::id::NodeId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::Roles;
use serde::de::{self, Deserialize, Deserializer};

use crate::cli::{self, JoinArgs, RoleChoice, Which};
use crate::entry_url::EntryUrl;
use crate::service_spec::{ServiceSpec, ServiceSpecError};

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
    /// In order of name, each once.
    pub services: Vec<ServiceSpec>,
    /// Where the key is.
    pub data_dir: PathBuf,
    /// Where to serve on the LAN.
    pub listen: Option<SocketAddr>,
    /// Where other coordinators can dial it.
    pub mesh_listen: Option<Multiaddr>,
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
    mesh_listen: Option<Text<MeshListen>>,
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

#[derive(Debug)]
struct MeshListen(Multiaddr);

impl FromStr for MeshListen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        cli::multiaddr(text).map(Self)
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

const IGNORED_VARIABLES: [&str; 4] = ["WORKER_ID", "WORKER_TYPE", "USE_TUNNEL", "TUNNEL_URL"];

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
        let mesh_listen = args
            .mesh_listen
            .or(environment.value::<MeshListen>(&["HEDGEROW_MESH_LISTEN"])?.map(|address| address.0))
            .or(file.mesh_listen.map(|text| text.0.0));
        if mesh_listen.is_some() && !roles.coordinates() {
            return Err(Failure::usage("--mesh-listen is for coordinators, and this node is a worker")
                .means("nobody would dial it there")
                .advice("add --role both, or leave --mesh-listen out"));
        }
        Ok(Self {
            entries: at_least_one(unique(entries))?,
            entry_keys: first_of([args.entry_keys, environment.list(&["HEDGEROW_ENTRY_KEY"])?, file.entry_key.0]),
            entry_ca: args.entry_ca.or_else(|| environment.path("HEDGEROW_ENTRY_CA")).or(file.entry_ca),
            roles,
            services,
            data_dir: args
                .data_dir
                .or_else(|| environment.path("HEDGEROW_DATA_DIR"))
                .or(file.data_dir)
                .map_or_else(|| default_data_dir(environment), Ok)?,
            listen,
            mesh_listen,
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
mod tests {
    use super::*;
    use clap::Parser;

    fn resolve(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, String> {
        let arguments = ["hedgerow-node", "join"].iter().chain(arguments);
        let cli = cli::Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let cli::Command::Join(args) = cli.command else { panic!("not a join") };
        let environment = |name: &str| {
            let given = variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            given.or_else(|| (name == "HOME").then(|| "/home/me".to_owned()))
        };
        Settings::resolve(*args, &Environment(&environment)).map_err(|failure| failure.to_string())
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        (file, path)
    }

    #[test]
    fn the_shortest_command_line_is_enough() {
        let settings = resolve(&["https://example.org", "--service", "a=http://127.0.0.1:1"], &[]).unwrap();
        assert_eq!(settings.roles, Roles::Worker);
        assert_eq!(settings.data_dir, Path::new("/home/me/.local/share/hedgerow"));
        assert_eq!((settings.listen, settings.location.as_str()), (None, ""));
        assert_eq!(resolve(&["https://example.org"], &[]).unwrap().roles, Roles::Coordinator);
    }

    #[test]
    fn a_flag_overrides_a_variable_which_overrides_the_file() {
        let (_file, path) = file("entry = 'https://file.example'\nlocation = 'file'\nrole = 'coordinator'");
        let at = |arguments: &[&str], variables: &[(&str, &str)]| {
            let mut all = vec!["--config", path.as_str()];
            all.extend(arguments);
            resolve(&all, variables).unwrap().location
        };
        assert_eq!(at(&[], &[]), "file");
        assert_eq!(at(&[], &[("LOCATION", "old name")]), "old name");
        assert_eq!(at(&[], &[("LOCATION", "old name"), ("HEDGEROW_LOCATION", "variable")]), "variable");
        assert_eq!(at(&["--location", "flag"], &[("HEDGEROW_LOCATION", "variable")]), "flag");
        assert_eq!(
            at(&[], &[("HEDGEROW_LOCATION", ""), ("LOCATION", "")]),
            "file",
            "an empty variable is an unset one"
        );
    }

    #[test]
    fn the_file_says_the_same_as_the_flags() {
        let (_file, path) = file(
            "entry = ['https://a.example', 'http://127.0.0.1:1']\nlisten = '127.0.0.1:0'\nrole = 'both'\n\
             [[service]]\nname = 'b'\nurl = 'http://127.0.0.1:2'\ncapacity = 3\nhealth = '/h'\n\
             [[service]]\nname = 'a'\nurl = 'http://127.0.0.1:2'",
        );
        let from_file = resolve(&["--config", &path], &[]).unwrap();
        let from_flags = resolve(
            &[
                "https://a.example",
                "http://127.0.0.1:1",
                "--listen",
                "127.0.0.1:0",
                "--role",
                "both",
                "--service",
                "b=http://127.0.0.1:2;capacity=3;health=/h",
                "--service",
                "a=http://127.0.0.1:2",
            ],
            &[],
        );
        assert_eq!(from_file, from_flags.unwrap());
        let from_variables = resolve(
            &[],
            &[
                ("HEDGEROW_ENTRY", "https://a.example, http://127.0.0.1:1"),
                ("HOST", "localhost"),
                ("PORT", "0"),
                ("HEDGEROW_ROLE", "both"),
                ("HEDGEROW_SERVICES", "b=http://127.0.0.1:2;capacity=3;health=/h,a=http://127.0.0.1:2"),
            ],
        );
        assert_eq!(from_file, from_variables.unwrap());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_source() {
        let error = resolve(&[], &[("HEDGEROW_SERVICES", "x=https://a:1"), ("COORDINATOR_URL", "https://e.example")]);
        assert!(error.unwrap_err().contains("HEDGEROW_SERVICES"));
        assert!(resolve(&[], &[("COORDINATOR_URL", "example.org")]).unwrap_err().contains("COORDINATOR_URL"));
        assert!(
            resolve(&["https://e.example"], &[("HEDGEROW_ROLE", "boss")]).unwrap_err().contains("auto, coordinator")
        );
        assert!(resolve(&["https://e.example"], &[("PORT", "http")]).unwrap_err().contains("PORT"));
        let (_file, path) = file("entry = 'https://e.example'\n[[service]]\nname = 'x'\nurl = 'https://a:1'");
        let error = resolve(&["--config", &path], &[]).unwrap_err();
        assert!(error.contains(":2:") && error.contains("over https are not supported yet"), "{error}");
        let (_file, path) = file("[[service]]\nname = 'x'\nurl = 'http://a:1'\ncapasity = 1");
        let error = resolve(&["--config", &path], &[]).unwrap_err();
        assert!(error.contains("unknown key `capasity`; did you mean `capacity`?"), "{error}");
        let (_file, path) = file("entry = 5");
        assert!(resolve(&["--config", &path], &[]).unwrap_err().contains("a string or a list of strings"));
    }

    #[test]
    fn a_role_fits_its_services() {
        let entry = "https://e.example";
        assert!(resolve(&[], &[]).unwrap_err().contains("no entry is named"));
        assert!(resolve(&[entry, "--role", "worker"], &[]).unwrap_err().contains("--service NAME"));
        assert!(resolve(&[entry, "--role", "both"], &[]).unwrap_err().contains("--role coordinator"));
        let service = ["--service", "a=http://a:1"];
        let with = |role| resolve(&[entry, "--role", role, service[0], service[1]], &[]);
        assert!(with("coordinator").unwrap_err().contains("--role both"));
        assert_eq!(with("both").unwrap().roles, Roles::Both);
        assert!(
            resolve(&[entry, service[0], service[1], service[0], service[1]], &[]).unwrap_err().contains("named twice")
        );
        assert!(resolve(&[entry, "--location", &"x".repeat(65)], &[]).unwrap_err().contains("65 bytes"));
    }

    #[test]
    fn variables_of_older_agents_that_mean_nothing_here_are_known() {
        let variables = [("COORDINATOR_URL", "https://e.example/"), ("WORKER_ID", "w1"), ("USE_TUNNEL", "")];
        assert_eq!(resolve(&[], &variables).unwrap().ignored_variables, ["WORKER_ID"]);
    }
}
