//! Values of flags, of variables and of the configuration file: each reads itself from the same text in all three places.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderValue, Uri};
use serde::de::{self, Deserialize, Deserializer};

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) SocketAddr);

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!(
                "{text:?} is no address and port of this machine; write one like 127.0.0.1:8080, [::1]:8080, or \
                 0.0.0.0:8080 for all addresses"
            )
        })
    }
}

/// A length of time, such as `30s` or `1500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(Duration::ZERO) => Err("it must be longer than nothing".into()),
            Ok(duration) => Ok(Self(duration)),
            Err(_) => Err(format!("{text:?} is no length of time; write one like 30s, 1500ms or 2min")),
        }
    }
}

/// A number of bytes, such as `65536`, `64KiB` or `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => Some(1_u64),
            "kib" | "k" => Some(1 << 10),
            "mib" | "m" => Some(1 << 20),
            "gib" | "g" => Some(1 << 30),
            _ => None,
        };
        number
            .parse::<u64>()
            .ok()
            .zip(unit)
            .and_then(|(number, unit)| number.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no number of bytes; write one like 65536, 64KiB or 2GiB"))
    }
}

/// A place where the outside world reaches a port of ours: a host name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no HOST:PORT; write one like tunnel.example.org:443");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let fits = match bracketed {
            Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= 253
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            }
        };
        if fits { Ok(Self { host: bracketed.unwrap_or(host).to_owned(), port }) } else { Err(wrong()) }
    }
}

/// The address under which the world knows this entry: scheme and authority, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicUrl(String);

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PublicUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address of an entry; write one like https://hedge.example.org");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https")).ok_or_else(wrong)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.path() != "/" || uri.query().is_some() {
            return Err(format!("{text:?} has a path; an entry has its domain for itself: {scheme}://{authority}"));
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

/// An origin whose pages may read answers: `*`, or as a browser writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Any,
    One(HeaderValue),
}

impl FromStr for Origin {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wrong = || format!("{text:?} is no origin; write * or one like https://app.example.org");
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(wrong)?;
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)) {
            return Err(wrong());
        }
        HeaderValue::try_from(text).map(Self::One).map_err(|_| wrong())
    }
}

/// For serde: a value written as text.
pub(crate) fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(de::Error::custom)
}

/// For serde: a text, or a list of them.
pub(crate) fn texts<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<'de, T: FromStr<Err: fmt::Display>> de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of strings")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            text.parse().map(|one| vec![one]).map_err(E::custom)
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element::<String>()? {
                all.push(item.parse().map_err(de::Error::custom)?);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

/// For serde: a number of bytes, as a number or as text.
pub(crate) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Size>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum NumberOrText {
        Number(u64),
        Text(String),
    }
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(bytes) => Ok(Some(Size(bytes))),
        NumberOrText::Text(text) => text.parse().map(Some).map_err(de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("65536", 65536), ("64KiB", 65536), ("2 MiB", 2 << 20), ("1g", 1 << 30)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "KiB", "1.5MiB", "-1", "99999999999GiB", "1 TB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn places_are_a_host_and_a_port() {
        let place = |host: &str, port| Ok(HostPort { host: host.to_owned(), port });
        assert_eq!("t.example.org:443".parse(), place("t.example.org", 443));
        assert_eq!("[2001:db8::1]:443".parse(), place("2001:db8::1", 443));
        for bad in ["", "host", "host:", "host:0", "host:70000", "2001:db8::1:443", "ho st:1", ":443", "[x]:1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_has_its_domain_for_itself() {
        assert_eq!("https://a.example/".parse::<PublicUrl>().unwrap().to_string(), "https://a.example");
        for bad in ["a.example", "ftp://a.example", "https://a.example/x", "https://u:p@a.example", "https://a/?q"] {
            assert!(bad.parse::<PublicUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_are_as_a_browser_writes_them() {
        assert_eq!("*".parse(), Ok(Origin::Any));
        assert!("https://a.example:8443".parse::<Origin>().is_ok());
        for bad in ["a.example", "https://a.example/", "https://", "null"] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_have_units_and_are_longer_than_nothing() {
        assert_eq!("1500ms".parse(), Ok(Span(Duration::from_millis(1500))));
        for bad in ["", "30", "0s", "soon"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
