//! What was said, put together and checked: settings that are valid before anything is bound.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hedgerow_contract::Catalogue;
use hedgerow_contract::url::{HostSuffix, UrlPolicy, UrlPolicyUnclear};
use hedgerow_http::{AllowOrigin, Cors};
use hedgerow_process::config;
use hedgerow_process::exit::Failure;
use hedgerow_process::logging::LogFormat;
use hedgerow_proto::id::{NodeId, ServiceName};

use crate::cidr::Cidr;
use crate::cli::{Cli, Options};
use crate::values::{HostPort, Origin, PublicUrl};

/// What the entry runs with. Every part has been checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// At least one.
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) tunnel_listen: SocketAddr,
    pub(crate) admin_listen: Option<SocketAddr>,
    pub(crate) key_file: PathBuf,
    pub(crate) tls: Option<TlsFiles>,
    /// At least one.
    pub(crate) threads: usize,
    pub(crate) public_url: Option<PublicUrl>,
    pub(crate) tunnel_public: Option<HostPort>,
    pub(crate) tunnel_tcp_public: Option<HostPort>,
    pub(crate) trusted_proxies: Vec<Cidr>,
    pub(crate) cors: Cors,
    pub(crate) federation_key: Option<NodeId>,
    pub(crate) urls: UrlPolicy,
    pub(crate) body_bytes_max: Option<u64>,
    pub(crate) header_bytes_max: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) connections_max: usize,
    pub(crate) drain_timeout: Duration,
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) log_format: LogFormat,
    pub(crate) aliases: BTreeMap<ServiceName, ServiceName>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Beyond this many a thread's own sockets and pools cost more than they give.
const THREADS_MAX: usize = 256;
/// hyper needs room for one packet's worth of head.
const HEADER_BYTES_MIN: u64 = 8192;
/// More than this is no head of a request: servers in the field stop at 8 to 64 KiB.
const HEADER_BYTES_MAX: u64 = 1024 * 1024;
const HEADER_BYTES: u64 = 32 * 1024;
/// As hyper's own default: a slow line sends a head in a second.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 16384;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

impl Settings {
    /// From the command line and the file that it names.
    pub(crate) fn resolve(cli: Cli) -> Result<Self, Failure> {
        let file: Options = config::load_or_default(cli.config.as_deref())?;
        Self::check(cli.options.or(file))
    }

    pub(crate) fn check(options: Options) -> Result<Self, Failure> {
        let listen = match &*options.listen {
            [] => vec![LISTEN],
            given => given.iter().map(|address| address.0).collect(),
        };
        let admin_listen = options.admin_listen.map(|address| address.0);
        let tls = tls_files(options.tls_cert, options.tls_key)?;
        safe_in_the_clear(&listen, tls.is_some(), options.plain_http)?;
        no_address_twice(&listen, admin_listen)?;
        let header_bytes_max = options.header_max.map_or(HEADER_BYTES, |size| size.0);
        if !(HEADER_BYTES_MIN..=HEADER_BYTES_MAX).contains(&header_bytes_max) {
            return Err(out_of_range("--header-max", header_bytes_max, "8KiB to 1MiB"));
        }
        let threads = match options.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
        };
        if !(1..=THREADS_MAX).contains(&threads) {
            return Err(out_of_range("--threads", threads, "1 to 256"));
        }
        let connections_max = options.connections_max.unwrap_or(CONNECTIONS_MAX);
        if connections_max < threads {
            return Err(out_of_range("--connections-max", connections_max, "one for each thread, at least"));
        }
        Ok(Self {
            tunnel_listen: options.tunnel_listen.map_or_else(|| beside(&listen), |address| address.0),
            listen,
            admin_listen,
            key_file: options.key_file.unwrap_or_else(|| "hedgerow-entry.key".into()),
            tls,
            threads,
            public_url: options.public_url,
            tunnel_public: options.tunnel_public,
            tunnel_tcp_public: options.tunnel_tcp_public,
            trusted_proxies: options.trusted_proxy,
            cors: cors(&options.cors_origin),
            federation_key: options.federation_key,
            urls: urls(options.url_suffix, options.allow_private_urls)?,
            body_bytes_max: options.body_max.map(|size| size.0),
            header_bytes_max: header_bytes_max as usize,
            header_timeout: options.header_timeout.map_or(HEADER_TIMEOUT, |span| span.0),
            connections_max,
            drain_timeout: options.drain_timeout.map_or(DRAIN_TIMEOUT, |span| span.0),
            ready_file: options.ready_file,
            log_format: options.log_format.unwrap_or_default(),
            aliases: options.aliases.unwrap_or_else(default_aliases),
        })
    }
}

/// Where tunnels come in when nothing is said: at the first address for clients, or at the one that hears everybody there.
fn beside(listen: &[SocketAddr]) -> SocketAddr {
    let everybody = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), listen[0].port());
    if listen.contains(&everybody) { everybody } else { listen[0] }
}

fn out_of_range(flag: &str, value: impl std::fmt::Display, range: &str) -> Failure {
    Failure::usage(format!("{flag} is {value}")).means("nothing was started").advice(format!("give {range}"))
}

fn tls_files(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, Failure> {
    let missing = |given: &str, missing: &str| {
        Failure::usage(format!("{given} is given without {missing}"))
            .means("https needs both: the certificate chain, and the private key that belongs to it")
            .advice(format!("give {missing} too"))
    };
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing("--tls-cert", "--tls-key")),
        (None, Some(_)) => Err(missing("--tls-key", "--tls-cert")),
    }
}

fn safe_in_the_clear(listen: &[SocketAddr], tls: bool, plain_http: bool) -> Result<(), Failure> {
    if tls && plain_http {
        return Err(Failure::usage("--plain-http is given together with a certificate")
            .means("it is not clear whether this entry should serve http or https")
            .advice("leave one of the two away; for both, run two entries with the same --federation-key"));
    }
    let open = listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
    match open {
        Some(address) if !tls && !plain_http => {
            Err(Failure::usage(format!("{address} would be served in the clear, since no certificate is given"))
                .means("anybody on the way could read and change requests and answers, so nothing was started")
                .advice(
                    "give --tls-cert and --tls-key; or --plain-http, if a proxy in front of this entry does the TLS",
                ))
        }
        _ => Ok(()),
    }
}

fn no_address_twice(listen: &[SocketAddr], admin: Option<SocketAddr>) -> Result<(), Failure> {
    let all: Vec<_> = listen.iter().chain(&admin).filter(|address| address.port() != 0).collect();
    let twice = all.iter().enumerate().find(|(index, address)| all[..*index].contains(address));
    match twice {
        Some((_, address)) => Err(Failure::usage(format!("{address} is given twice"))
            .means("one address can have one listener")
            .advice("give every --listen and --admin-listen an address or port of its own")),
        None => Ok(()),
    }
}

fn cors(origins: &[Origin]) -> Cors {
    let one = |origin: &Origin| match origin {
        Origin::Any => None,
        Origin::One(origin) => Some(origin.clone()),
    };
    // One `*` among them is everybody; so is nothing said.
    let listed = origins.iter().map(one).collect::<Option<Vec<_>>>().filter(|list| !list.is_empty());
    Cors { allow_origin: listed.map_or(AllowOrigin::Any, AllowOrigin::These) }
}

fn urls(suffixes: Vec<HostSuffix>, allow_private: bool) -> Result<UrlPolicy, Failure> {
    UrlPolicy::of(suffixes, allow_private)
        .map_err(|error| Failure::usage(error).means(UrlPolicyUnclear::MEANS).advice(UrlPolicyUnclear::ADVICE))
}

fn default_aliases() -> BTreeMap<ServiceName, ServiceName> {
    Catalogue::built_in().aliases().clone()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use hedgerow_contract::url::check as check_url;

    use super::*;

    fn settings(arguments: &[&str]) -> Result<Settings, Failure> {
        let all = std::iter::once("hedgerow-entry").chain(arguments.iter().copied());
        Settings::check(Cli::try_parse_from(all).expect("flags").options)
    }

    fn refused(arguments: &[&str]) -> String {
        let failure = settings(arguments).err().unwrap_or_else(|| panic!("{arguments:?} should be refused"));
        assert_eq!(failure.code(), 2, "{failure}");
        failure.to_string()
    }

    #[test]
    fn nothing_said_is_an_entry_to_try_out_on_this_machine() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.listen, [LISTEN]);
        assert_eq!(settings.tunnel_listen, LISTEN);
        assert!(settings.tls.is_none() && settings.threads >= 1);
        assert_eq!(settings.cors.allow_origin, AllowOrigin::Any);
        assert_eq!(settings.aliases.get("llm").map(ServiceName::as_str), Some("llm-inference"));
    }

    #[test]
    fn tunnels_come_in_beside_the_clients() {
        let at = |listen| settings(&["--plain-http", "--listen", listen]).unwrap().tunnel_listen.to_string();
        assert_eq!(at("192.0.2.1:443,192.0.2.2:80"), "192.0.2.1:443");
        assert_eq!(at("0.0.0.0:443,[::]:443"), "[::]:443", "which hears IPv4 too");
    }

    /// With every setting that is commented out put in force: these lines begin with `#` and no space.
    fn uncommented(text: &str) -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_alphabetic()) => setting.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_and_the_unit_say_what_this_code_understands() {
        let example = include_str!("../../deploy/config/entry.example.toml");
        let check = |text: &str| Settings::check(config::parse(text, "entry.example.toml".as_ref()).unwrap()).unwrap();
        assert!(check(example).tls.is_some());
        let all = check(&uncommented(example));
        assert!(check_url("https://a.agents.example.org", &all.urls).is_ok());
        assert!(all.federation_key.is_some() && all.log_format == LogFormat::Json, "the optional lines were found");
        let unit = include_str!("../../deploy/systemd/hedgerow-entry.service");
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let cli = Cli::try_parse_from(start.split_whitespace()).unwrap();
        assert_eq!(cli.config, Some("/etc/hedgerow/entry.toml".into()));
        let state = all.key_file.parent().unwrap().to_owned();
        let of_unit = unit.lines().find_map(|line| line.strip_prefix("StateDirectory=")).unwrap();
        assert_eq!(state, std::path::Path::new("/var/lib").join(of_unit), "the key is where the unit may write");
    }

    #[test]
    fn nobody_serves_in_the_clear_by_accident() {
        for open in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"] {
            assert!(refused(&["--listen", open]).contains("--plain-http"));
            assert!(settings(&["--listen", open, "--plain-http"]).is_ok());
            assert!(settings(&["--listen", open, "--tls-cert", "c", "--tls-key", "k"]).is_ok());
        }
        for near in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            assert!(settings(&["--listen", near]).is_ok(), "{near}");
        }
        assert!(refused(&["--plain-http", "--tls-cert", "c", "--tls-key", "k"]).contains("--plain-http"));
    }

    #[test]
    fn agents_may_be_at_cloudflare_tunnels_unless_something_else_is_said() {
        let allowed = |arguments: &[&str], url: &str| check_url(url, &settings(arguments).unwrap().urls).is_ok();
        let (tunnel, other, private) =
            ("https://a.trycloudflare.com", "https://a.example.org", "http://127.0.0.1:8000");
        assert!(allowed(&[], tunnel) && allowed(&[], "https://a.cfargotunnel.com"));
        assert!(!allowed(&[], other) && !allowed(&[], private));
        let own = ["--url-suffix", ".example.org", "--url-suffix", "one.example.net"];
        assert!(!allowed(&own, tunnel) && allowed(&own, other) && allowed(&own, "https://one.example.net"));
        assert!(allowed(&own, "https://two.one.example.net") && !allowed(&own, "https://example.org"));
        assert!(allowed(&["--allow-private-urls"], private) && allowed(&["--allow-private-urls"], other));
        assert!(refused(&["--allow-private-urls", "--url-suffix", ".a.example"]).contains("--url-suffix"));
    }

    #[test]
    fn half_a_certificate_is_said() {
        assert!(refused(&["--tls-cert", "c"]).contains("--tls-key"));
        assert!(refused(&["--tls-key", "k"]).contains("--tls-cert"));
    }

    #[test]
    fn numbers_out_of_range_are_said() {
        assert!(refused(&["--threads", "0"]).contains("--threads"));
        assert!(refused(&["--header-max", "100"]).contains("8KiB"));
        assert!(refused(&["--threads", "4", "--connections-max", "3"]).contains("--connections-max"));
        assert!(refused(&["--listen", "127.0.0.1:1,127.0.0.1:1"]).contains("twice"));
        assert!(settings(&["--listen", "127.0.0.1:0,127.0.0.1:0"]).is_ok(), "two free ports");
    }

    #[test]
    fn the_file_says_the_same_things_with_the_same_names() {
        let text = r#"
            listen = ["127.0.0.1:1", "127.0.0.1:2"]
            tunnel-listen = "127.0.0.1:3"
            plain-http = true
            trusted-proxy = "10.0.0.0/8"
            cors-origin = ["https://a.example"]
            url-suffix = [".agents.example", "one.example"]
            body-max = "2GiB"
            header-max = 16384
            header-timeout = "5s"
            log-format = "json"
            [aliases]
            old = "new"
        "#;
        let file: Options = config::parse(text, "entry.toml".as_ref()).unwrap();
        let flags = Cli::try_parse_from(["hedgerow-entry", "--listen", "127.0.0.1:9"]).unwrap().options;
        let settings = Settings::check(flags.or(file)).unwrap();
        assert_eq!(settings.listen, ["127.0.0.1:9".parse().unwrap()], "a flag overrides the file");
        assert_eq!(settings.tunnel_listen.port(), 3);
        assert_eq!((settings.body_bytes_max, settings.header_bytes_max), (Some(2 << 30), 16384));
        assert_eq!(settings.log_format, LogFormat::Json);
        assert!(check_url("https://a.agents.example", &settings.urls).is_ok());
        assert_eq!(settings.aliases.len(), 1);
        assert!(settings.trusted_proxies[0].contains("10.1.1.1".parse().unwrap()));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error = config::parse::<Options>("tunel-listen = \"127.0.0.1:3\"\n", "entry.toml".as_ref()).unwrap_err();
        assert!(error.to_string().contains("did you mean `tunnel-listen`?"), "{error}");
    }

    #[test]
    fn what_stands_in_deploy_is_read_by_the_code_that_reads_it_in_earnest() {
        const EXAMPLE: &str = include_str!("../../deploy/config/entry.example.toml");
        const UNIT: &str = include_str!("../../deploy/systemd/hedgerow-entry.service");
        // Lines that begin with `#` and no space are settings that are left at their defaults.
        let setting = |line: &str| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_alphabetic()) => setting.to_owned(),
            _ => line.to_owned(),
        };
        let all = EXAMPLE.lines().map(setting).collect::<Vec<_>>().join("\n");
        assert_ne!(all, EXAMPLE.trim_end(), "there are such lines");
        for text in [EXAMPLE, &all] {
            let options: Options = config::parse(text, std::path::Path::new("entry.example.toml")).unwrap();
            assert!(Settings::check(options).unwrap().tls.is_some());
        }
        let start = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let cli = <Cli as Parser>::try_parse_from(start.split_whitespace()).unwrap();
        assert_eq!(cli.config.as_deref(), Some(std::path::Path::new("/etc/hedgerow/entry.toml")));
    }
}
