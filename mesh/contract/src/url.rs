//! Which URLs of agents may become routes: the part that needs no network, for coordinators and entries alike, so that they
//! cannot judge differently. Whoever connects still resolves the host, asks [`is_public`] about every address, connects to just
//! that address, and probes `/health`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

mod public;

pub use public::is_public;

/// The longest URL that is looked at, in bytes: a host name, a port and a short path.
pub const URL_BYTES_MAX: usize = 256;

/// The operator's word on which URLs may be routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPolicy {
    /// Hosts must be under one of these.
    pub suffixes: Vec<HostSuffix>,
    /// Any host, also an address or `localhost`, and plain http: for trying things out on one's own network. Whoever
    /// registers can then have this process send requests to whatever it can reach.
    pub allow_private: bool,
}

impl Default for UrlPolicy {
    /// The two Cloudflare tunnel ones, over https.
    fn default() -> Self {
        let cloudflare = ["trycloudflare.com", "cfargotunnel.com"];
        let suffixes = cloudflare.map(|domain| HostSuffix { domain: domain.to_owned(), itself: false });
        Self { suffixes: suffixes.into(), allow_private: false }
    }
}

/// Two things said of which URLs may be routes that do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("--url-suffix is given together with --allow-private-urls")]
pub struct UrlPolicyUnclear;

impl UrlPolicyUnclear {
    /// What it means, for whoever gave them.
    pub const MEANS: &str = "the one allows certain hosts, and the other any, so it is not clear what is meant";
    /// What to do about it.
    pub const ADVICE: &str = "leave one of the two away: --allow-private-urls is for trying it out";
}

impl UrlPolicy {
    /// What an operator has said: nothing is the default.
    pub fn of(suffixes: Vec<HostSuffix>, allow_private: bool) -> Result<Self, UrlPolicyUnclear> {
        match (suffixes.is_empty(), allow_private) {
            (true, false) => Ok(Self::default()),
            (false, true) => Err(UrlPolicyUnclear),
            (true, true) | (false, false) => Ok(Self { suffixes, allow_private }),
        }
    }
}

/// The end of host names: `.example.org` is every name under it, `example.org` is the name itself too. ASCII, in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSuffix {
    domain: String,
    itself: bool,
}

/// A text that no host name ends with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no end of host names; write one like .example.org, or agent.example.org for just that host and those under it"
)]
pub struct HostSuffixError(String);

impl FromStr for HostSuffix {
    type Err = HostSuffixError;
    fn from_str(text: &str) -> Result<Self, HostSuffixError> {
        let (domain, itself) = match text.strip_prefix('.') {
            Some(domain) => (domain, false),
            None => (text, true),
        };
        let domain = domain.to_ascii_lowercase();
        match is_host_name(&domain) && !ends_in_number(&domain) {
            true => Ok(Self { domain, itself }),
            false => Err(HostSuffixError(text.to_owned())),
        }
    }
}

impl fmt::Display for HostSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.itself { "" } else { "." }, self.domain)
    }
}

impl HostSuffix {
    /// Whether a host name, in lower case, ends with it at a dot.
    fn covers(&self, host: &str) -> bool {
        match host.strip_suffix(self.domain.as_str()) {
            Some("") => self.itself,
            Some(front) => front.ends_with('.'),
            None => false,
        }
    }
}

/// How to speak to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TLS, with a certificate for the host.
    Https,
    /// In the clear: only where the policy allows private targets.
    Http,
}

impl Scheme {
    fn port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http => 80,
        }
    }
}

/// A URL that may be a route, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlTarget {
    /// How to speak to it.
    pub scheme: Scheme,
    /// The host in lower case, without a dot at its end; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What goes in front of the path of a request: empty, or it begins with `/` and does not end with it.
    pub path_prefix: String,
}

impl UrlTarget {
    /// What requests to it have as `Host`: with the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.scheme.port() { host } else { format!("{host}:{}", self.port) }
    }
}

/// Why a URL is no route. The texts continue a sentence about an agent, and anybody may read them: they repeat nothing of the URL,
/// and name none of the suffixes that an operator has allowed, each of which can be one volunteer's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum NotRoutable {
    /// There is none: agents without a tunnel send an empty one.
    #[error("it has no URL")]
    None,
    /// It is too long to be one.
    #[error("its URL is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// It is no URL.
    #[error("its URL cannot be read as one: {0}")]
    Form(&'static str),
    /// Plain http, or something else.
    #[error("its URL is not https")]
    NotHttps,
    /// A user name, a query or a fragment.
    #[error("its URL has {0}, which has no place in it")]
    Extra(&'static str),
    /// An address in the place of a name.
    #[error("its URL's host is an address, which is under none of the suffixes that can be allowed")]
    Address,
    /// A host that the policy does not have.
    #[error(
        "its URL's host is under none of the suffixes that are allowed here (--url-suffix; if nothing is said, .trycloudflare.com \
         and .cfargotunnel.com)"
    )]
    Suffix,
}

/// Checks what an agent gave as its URL.
pub fn check(tunnel_url: &str, policy: &UrlPolicy) -> Result<UrlTarget, NotRoutable> {
    let url = tunnel_url.trim();
    if url.is_empty() {
        return Err(NotRoutable::None);
    }
    if url.len() > URL_BYTES_MAX {
        return Err(NotRoutable::TooLong);
    }
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.contains('\\') {
        return Err(NotRoutable::Form("it holds characters that a URL cannot"));
    }
    let (scheme, rest) = scheme(url, policy)?;
    for (mark, what) in [('#', "a fragment"), ('?', "a query")] {
        if rest.contains(mark) {
            return Err(NotRoutable::Extra(what));
        }
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(NotRoutable::Extra("a user name"));
    }
    let (host, port) = host_and_port(authority, scheme)?;
    let is_name = is_host_name(&host) && !ends_in_number(&host);
    if !policy.allow_private {
        if !is_name {
            return Err(NotRoutable::Address);
        }
        if !policy.suffixes.iter().any(|suffix| suffix.covers(&host)) {
            return Err(NotRoutable::Suffix);
        }
    }
    Ok(UrlTarget { scheme, host, port, path_prefix: path_prefix(path)? })
}

fn scheme<'a>(url: &'a str, policy: &UrlPolicy) -> Result<(Scheme, &'a str), NotRoutable> {
    let (scheme, rest) = url.split_once("://").ok_or(NotRoutable::Form("it has no scheme such as https://"))?;
    match scheme.to_ascii_lowercase().as_str() {
        "https" => Ok((Scheme::Https, rest)),
        "http" if policy.allow_private => Ok((Scheme::Http, rest)),
        // What agents without a tunnel send: that there is no host says more than that it is not https.
        "http" if rest.starts_with(':') || rest.is_empty() => Err(NotRoutable::Form("it has no host")),
        _ => Err(NotRoutable::NotHttps),
    }
}

/// The host in its plain form, and the port: the scheme's own if there is none.
fn host_and_port(authority: &str, scheme: Scheme) -> Result<(String, u16), NotRoutable> {
    // Behind a ']' a colon is the port's; without one the only colon is.
    let bracket_ends = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[bracket_ends..].rfind(':') {
        Some(at) => (&authority[..bracket_ends + at], Some(&authority[bracket_ends + at + 1..])),
        None => (authority, None),
    };
    let port = match port {
        None | Some("") => scheme.port(),
        Some(digits) => {
            let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
            let port = digits.parse().ok().filter(|port| all_digits && *port != 0);
            port.ok_or(NotRoutable::Form("its port is none"))?
        }
    };
    if host.is_empty() {
        return Err(NotRoutable::Form("it has no host"));
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| NotRoutable::Form("its host is no IPv6 address"))?;
        return Ok((address.to_string(), port));
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if !is_host_name(&host) {
        return Err(NotRoutable::Form("its host is no host name"));
    }
    // `127.1` and `0x7f000001` are addresses to some resolvers and names to others: only what is plainly one is taken.
    if ends_in_number(&host) && host.parse::<Ipv4Addr>().is_err() {
        return Err(NotRoutable::Form("its host is no IPv4 address"));
    }
    Ok((host, port))
}

fn path_prefix(path: &str) -> Result<String, NotRoutable> {
    let prefix = path.trim_end_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte);
    // No escapes: what they stand for depends on who reads them.
    if !prefix.bytes().all(plain) || prefix.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(NotRoutable::Form("its path is more than names and slashes"));
    }
    Ok(prefix.to_owned())
}

/// Labels of letters, digits, `-` and `_`, with dots between.
fn is_host_name(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    host.len() <= 253 && host.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(plain))
}

/// Whether a host is an IPv4 address in one of the forms that resolvers take (WHATWG URL, "ends in a number checker").
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hexadecimal || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
