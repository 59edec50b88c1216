//! What `hedgerow-contract` reads: bodies of agents, URLs, paths, catalogues; and the routes of `hedgerow-proto`.

use hedgerow_contract::request::{Heartbeat, Registration};
use hedgerow_contract::url::{UrlPolicy, check};
use hedgerow_contract::{Catalogue, WorkerId, endpoint};
use hedgerow_proto::route;

/// Whatever agents and clients may send. The first byte says what it is.
pub fn contract(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 8 {
        0 => drop(Registration::parse(bytes)),
        1 => drop(Registration::parse_edge(bytes)),
        2 => drop(Heartbeat::parse(bytes)),
        3 => url(&text),
        4 => drop(Catalogue::parse(&text)),
        5 => {
            let (method, path) = text.split_once(' ').unwrap_or(("GET", &text));
            drop(endpoint(method, path));
        }
        6 => drop(route::parse(&text).map(|route| route.is_ok())),
        _ => {
            if let Ok(id) = text.parse::<WorkerId>() {
                assert_eq!(id.to_string().parse::<WorkerId>().as_ref(), Ok(&id));
            }
        }
    }
}

/// Whatever a URL is made of, only what is allowed is asked.
fn url(text: &str) {
    const SUFFIX: &str = "agents.example";
    let policy = UrlPolicy::of(vec![format!(".{SUFFIX}").parse().expect("a suffix")], false).expect("a policy");
    if let Ok(target) = check(text, &policy) {
        let authority = target.authority().to_ascii_lowercase();
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, port)| {
            assert!(port.bytes().all(|digit| digit.is_ascii_digit()), "{authority:?}");
            host
        });
        let host = host.strip_suffix('.').unwrap_or(host);
        assert!(host.ends_with(&format!(".{SUFFIX}")), "{text:?} leads to {authority:?}");
        assert!(host.bytes().all(|b| b.is_ascii_graphic() && !b"/\\@?#".contains(&b)), "{authority:?}");
    }
}
