//! What can be said to the entry. One type for all three ways of saying it, so that they cannot drift apart: flags,
//! `HEDGEROW_ENTRY_*` variables, and the keys of the configuration file, all with the same names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser};
use hedgerow_contract::url::HostSuffix;
use hedgerow_process::logging::LogFormat;
use hedgerow_proto::id::{NodeId, ServiceName};
use serde::Deserialize;

use crate::cidr::Cidr;
use crate::values::{self, Address, HostPort, Origin, PublicUrl, Size, Span};

/// The public HTTP entry of a hedgerow federation: volunteers' nodes dial in, requests go down their tunnels.
#[derive(Debug, Parser)]
#[command(name = "hedgerow-entry", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// TOML file with the same names as the flags (`tunnel-listen = "0.0.0.0:443"`). Flags and variables override it
    #[arg(long, value_name = "FILE", env = "HEDGEROW_ENTRY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: Options,
}

const EXAMPLES: &str = "\
Every flag can also be set as a variable (--tunnel-listen as HEDGEROW_ENTRY_TUNNEL_LISTEN) and in the --config file.

Examples:
  hedgerow-entry --listen 127.0.0.1:8080
      for trying it out on this machine; nodes join http://127.0.0.1:8080
  hedgerow-entry --listen 0.0.0.0:443 --tls-cert fullchain.pem --tls-key privkey.pem --key-file entry.key
      a public entry; nodes join https://<domain>, and their tunnels come to UDP port 443, or to TCP port 443 where no UDP
      comes through";

/// All that can be set; what is not set is empty.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Options {
    /// Where to serve HTTP; may be repeated. Port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "HEDGEROW_ENTRY_LISTEN", value_delimiter = ',')]
    #[serde(deserialize_with = "values::texts")]
    pub(crate) listen: Vec<Address>,
    /// Where nodes' tunnels come in (QUIC over UDP; over TCP they come to --listen) [default: the address of the first --listen]
    #[arg(long, value_name = "ADDR", env = "HEDGEROW_ENTRY_TUNNEL_LISTEN")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) tunnel_listen: Option<Address>,
    /// Where to serve /healthz, /readyz, /metrics and /mesh/why, for the operator alone [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "HEDGEROW_ENTRY_ADMIN_LISTEN")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) admin_listen: Option<Address>,
    /// The entry's secret key, made on first use. Keep it: it is how nodes know this entry again [default: hedgerow-entry.key]
    #[arg(long, value_name = "FILE", env = "HEDGEROW_ENTRY_KEY_FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Certificate chain in PEM for https; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE", env = "HEDGEROW_ENTRY_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key in PEM of the certificate
    #[arg(long, value_name = "FILE", env = "HEDGEROW_ENTRY_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Serve in the clear on addresses that others can reach: only behind a proxy that does the TLS
    #[arg(long, env = "HEDGEROW_ENTRY_PLAIN_HTTP", value_parser = FalseyValueParser::new())]
    pub(crate) plain_http: bool,
    /// Threads that serve, each with its own sockets [default: one for each core]
    #[arg(long, value_name = "N", env = "HEDGEROW_ENTRY_THREADS")]
    pub(crate) threads: Option<usize>,
    /// The URL under which clients know this entry, for texts that tell them what to call
    #[arg(long, value_name = "URL", env = "HEDGEROW_ENTRY_PUBLIC_URL")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) public_url: Option<PublicUrl>,
    /// Where nodes reach --tunnel-listen from outside [default: where they reached us by HTTP, at its port]
    #[arg(long, value_name = "HOST:PORT", env = "HEDGEROW_ENTRY_TUNNEL_PUBLIC")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) tunnel_public: Option<HostPort>,
    /// Where nodes without UDP reach a --listen address by TCP, past any proxy that ends TLS [default: where they reached us by HTTP,
    /// unless that was a --trusted-proxy]
    #[arg(long, value_name = "HOST:PORT", env = "HEDGEROW_ENTRY_TUNNEL_TCP_PUBLIC")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) tunnel_tcp_public: Option<HostPort>,
    /// Proxies whose X-Forwarded-* and Forwarded headers are believed; may be repeated
    #[arg(long, value_name = "CIDR", env = "HEDGEROW_ENTRY_TRUSTED_PROXY", value_delimiter = ',')]
    #[serde(deserialize_with = "values::texts")]
    pub(crate) trusted_proxy: Vec<Cidr>,
    /// Origins whose web pages may read answers; may be repeated [default: *]
    #[arg(long, value_name = "ORIGIN", env = "HEDGEROW_ENTRY_CORS_ORIGIN", value_delimiter = ',')]
    #[serde(deserialize_with = "values::texts")]
    pub(crate) cors_origin: Vec<Origin>,
    /// Public key of the federation, for several entries of one federation [default: this entry's own]
    #[arg(long, value_name = "HEX", env = "HEDGEROW_ENTRY_FEDERATION_KEY")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) federation_key: Option<NodeId>,
    /// Hosts at which agents with a URL of their own may be: all under `.NAME`, or `NAME` and all under it; may be repeated
    /// [default: .trycloudflare.com and .cfargotunnel.com]
    #[arg(long, value_name = "SUFFIX", env = "HEDGEROW_ENTRY_URL_SUFFIX", value_delimiter = ',')]
    #[serde(deserialize_with = "values::texts")]
    pub(crate) url_suffix: Vec<HostSuffix>,
    /// Let agents have any URL, http too, at private and loopback addresses too: for trying it out. In public, a stranger
    /// could so have this entry ask whatever it can reach
    #[arg(long, env = "HEDGEROW_ENTRY_ALLOW_PRIVATE_URLS", value_parser = FalseyValueParser::new())]
    pub(crate) allow_private_urls: bool,
    /// The longest request body; longer ones are answered 413 [default: no limit, bodies are streamed]
    #[arg(long, value_name = "BYTES", env = "HEDGEROW_ENTRY_BODY_MAX")]
    #[serde(deserialize_with = "values::size")]
    pub(crate) body_max: Option<Size>,
    /// The longest request head; longer ones are answered 431 [default: 32KiB]
    #[arg(long, value_name = "BYTES", env = "HEDGEROW_ENTRY_HEADER_MAX")]
    #[serde(deserialize_with = "values::size")]
    pub(crate) header_max: Option<Size>,
    /// How long a client may take to send a request's head, and how long an idle connection is kept [default: 30s]
    #[arg(long, value_name = "TIME", env = "HEDGEROW_ENTRY_HEADER_TIMEOUT")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) header_timeout: Option<Span>,
    /// Clients' connections at once; beyond it, new ones wait [default: 16384]
    #[arg(long, value_name = "N", env = "HEDGEROW_ENTRY_CONNECTIONS_MAX")]
    pub(crate) connections_max: Option<usize>,
    /// How long requests that run may take to finish when the entry is stopped [default: 10s]
    #[arg(long, value_name = "TIME", env = "HEDGEROW_ENTRY_DRAIN_TIMEOUT")]
    #[serde(deserialize_with = "values::text")]
    pub(crate) drain_timeout: Option<Span>,
    /// Gets the bound addresses, the entry's id and the federation's as JSON, once the entry listens
    #[arg(long, value_name = "FILE", env = "HEDGEROW_ENTRY_READY_FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// What the log on standard error looks like; RUST_LOG filters it [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "HEDGEROW_ENTRY_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Other names of services: in the file alone.
    #[arg(skip)]
    pub(crate) aliases: Option<BTreeMap<ServiceName, ServiceName>>,
}

impl Options {
    /// What is set here, else what is set there. Lists are not mixed.
    pub(crate) fn or(self, other: Self) -> Self {
        fn list<T>(a: Vec<T>, b: Vec<T>) -> Vec<T> {
            if a.is_empty() { b } else { a }
        }
        Self {
            listen: list(self.listen, other.listen),
            tunnel_listen: self.tunnel_listen.or(other.tunnel_listen),
            admin_listen: self.admin_listen.or(other.admin_listen),
            key_file: self.key_file.or(other.key_file),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            plain_http: self.plain_http || other.plain_http,
            threads: self.threads.or(other.threads),
            public_url: self.public_url.or(other.public_url),
            tunnel_public: self.tunnel_public.or(other.tunnel_public),
            tunnel_tcp_public: self.tunnel_tcp_public.or(other.tunnel_tcp_public),
            trusted_proxy: list(self.trusted_proxy, other.trusted_proxy),
            cors_origin: list(self.cors_origin, other.cors_origin),
            federation_key: self.federation_key.or(other.federation_key),
            url_suffix: list(self.url_suffix, other.url_suffix),
            allow_private_urls: self.allow_private_urls || other.allow_private_urls,
            body_max: self.body_max.or(other.body_max),
            header_max: self.header_max.or(other.header_max),
            header_timeout: self.header_timeout.or(other.header_timeout),
            connections_max: self.connections_max.or(other.connections_max),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
            ready_file: self.ready_file.or(other.ready_file),
            log_format: self.log_format.or(other.log_format),
            aliases: self.aliases.or(other.aliases),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_of_its_name() {
        for argument in Cli::command().get_arguments().filter(|argument| argument.get_env().is_some()) {
            let flag = argument.get_long().expect("a flag").to_uppercase().replace('-', "_");
            assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(&*format!("HEDGEROW_ENTRY_{flag}")));
        }
        let without = Cli::command().get_arguments().filter(|argument| argument.get_env().is_none()).count();
        assert_eq!(without, 0, "clap adds help and version only when it builds");
    }
}
