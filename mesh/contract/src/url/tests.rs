//! URLs that may be routes and URLs that may not.

use proptest::prelude::*;

use super::*;

fn checked(url: &str) -> Result<UrlTarget, NotRoutable> {
    check(url, &UrlPolicy::default())
}

fn anything(url: &str) -> Result<UrlTarget, NotRoutable> {
    check(url, &UrlPolicy { allow_private: true, ..UrlPolicy::default() })
}

fn https(host: &str, port: u16, path_prefix: &str) -> UrlTarget {
    UrlTarget { scheme: Scheme::Https, host: host.into(), port, path_prefix: path_prefix.into() }
}

#[test]
fn a_tunnel_of_the_two_that_are_allowed_is_a_route() {
    let host = "quick-brown-fox.trycloudflare.com";
    assert_eq!(checked("https://quick-brown-fox.trycloudflare.com"), Ok(https(host, 443, "")));
    assert_eq!(checked(" HTTPS://Quick-Brown-Fox.TryCloudflare.com.:8443/a/b// "), Ok(https(host, 8443, "/a/b")));
    assert_eq!(checked("https://0a1b.cfargotunnel.com/"), Ok(https("0a1b.cfargotunnel.com", 443, "")));
}

#[test]
fn a_host_is_written_with_its_port_only_where_it_is_not_the_schemes_own() {
    for (url, authority) in [
        ("https://Abc.Example", "abc.example"),
        ("https://abc.example:443/", "abc.example"),
        ("https://abc.example:80/", "abc.example:80"),
        ("https://abc.example:8443/a", "abc.example:8443"),
        ("http://10.0.0.1", "10.0.0.1"),
        ("http://localhost:443", "localhost:443"),
        ("http://[::1]", "[::1]"),
        ("http://[::1]:8000", "[::1]:8000"),
    ] {
        assert_eq!(anything(url).unwrap().authority(), authority, "{url}");
    }
}

#[test]
fn what_agents_without_a_tunnel_send_is_registered_and_no_route() {
    assert_eq!(checked(""), Err(NotRoutable::None));
    assert_eq!(checked("http://:8000"), Err(NotRoutable::Form("it has no host")));
    assert_eq!(checked("http://a.trycloudflare.com"), Err(NotRoutable::NotHttps));
    assert_eq!(checked("http://192.168.1.17:8000"), Err(NotRoutable::NotHttps));
    assert!(matches!(checked("localhost:8000"), Err(NotRoutable::Form(_))));
    assert!(matches!(checked("None"), Err(NotRoutable::Form(_))));
}

#[test]
fn a_suffix_ends_a_name_at_a_dot_only() {
    for host in [
        "eviltrycloudflare.com",
        "trycloudflare.com",
        "a.trycloudflare.com.evil.example",
        "trycloudflare.com.evil.example",
        "a.trycloudflare.co",
        "example.org",
        "localhost",
    ] {
        let error = checked(&format!("https://{host}/")).unwrap_err();
        assert_eq!(error, NotRoutable::Suffix, "{host}");
    }
}

#[test]
fn what_anybody_may_read_names_no_host_neither_the_agents_nor_one_that_is_allowed() {
    let policy = UrlPolicy { suffixes: vec!["volunteer-1.example".parse().unwrap()], allow_private: false };
    for url in [
        "",
        "http://:8000",
        "volunteer-2.example",
        "https://volunteer-2.example:0",
        "https://volunteer-2@volunteer-1.example",
        "http://volunteer-1.example",
        "https://volunteer-2.example",
        "https://192.0.2.1",
    ] {
        let text = check(url, &policy).unwrap_err().to_string();
        assert!(!text.contains("volunteer") && !text.contains("192.0"), "{url}: {text}");
    }
}

#[test]
fn what_an_operator_says_of_urls_is_one_thing_or_the_other() {
    let suffixes = || vec![".example.org".parse().unwrap()];
    assert_eq!(UrlPolicy::of(vec![], false), Ok(UrlPolicy::default()));
    assert_eq!(UrlPolicy::of(suffixes(), false), Ok(UrlPolicy { suffixes: suffixes(), allow_private: false }));
    assert_eq!(UrlPolicy::of(vec![], true), Ok(UrlPolicy { suffixes: vec![], allow_private: true }));
    assert_eq!(UrlPolicy::of(suffixes(), true), Err(UrlPolicyUnclear));
}

#[test]
fn tricks_with_the_form_are_refused() {
    for url in [
        "https://a.trycloudflare.com@169.254.169.254/",
        "https://user:pass@a.trycloudflare.com/",
        "https://169.254.169.254\\@a.trycloudflare.com/",
        "https://169.254.169.254#.trycloudflare.com",
        "https://a.trycloudflare.com/?x",
        "https://169.254.169.254?.trycloudflare.com",
        "https://a.trycloudflare.com:0/",
        "https://a.trycloudflare.com:+443/",
        "https://a.trycloudflare.com:99999/",
        "https://a:b.trycloudflare.com/",
        "https://.trycloudflare.com/",
        "https://a..trycloudflare.com/",
        "https://a b.trycloudflare.com/",
        "https://a\r\nb.trycloudflare.com/",
        "https://ä.trycloudflare.com/",
        "https://a%2e.trycloudflare.com/",
        "https:a.trycloudflare.com",
        "https://a.trycloudflare.com/../x",
        "https://a.trycloudflare.com/%2e%2e/x",
        "https://[::1].trycloudflare.com/",
        "ftp://a.trycloudflare.com/",
    ] {
        assert!(checked(url).is_err(), "{url:?}");
    }
    // Nor where any host is allowed.
    for url in [
        "abc.example",
        "ftp://abc.example",
        "https://",
        "https:///x",
        "https://a..b",
        "https://abc.example..",
        "https://abc.example:0",
        "https://abc.example:70000",
        "https://abc.example:+1",
        "https://a b",
        "https://ä.example",
        "https://%31.example",
        "https://[fe80::1%25eth0]",
        "https://[::1",
        "https://::1",
        "https://abc.example/%2e%2e",
        "https://u:p@abc.example",
        "https://abc.example/?q",
        "https://abc.example#f",
        "/",
        "*",
    ] {
        assert!(anything(url).is_err(), "{url:?}");
    }
    assert_eq!(checked(&format!("https://{}.trycloudflare.com", "a".repeat(256))), Err(NotRoutable::TooLong));
}

#[test]
fn an_address_is_no_name_in_whatever_form() {
    for host in ["127.0.0.1", "169.254.169.254", "8.8.8.8", "[::1]", "[::ffff:127.0.0.1]", "[2606:4700::1111]"] {
        assert_eq!(checked(&format!("https://{host}/")), Err(NotRoutable::Address), "{host}");
    }
    for host in ["127.1", "0", "2130706433", "0x7f000001", "0x7f.1", "a.0x7f", "1.2.3.4.5", "0177.0.0.1"] {
        let url = format!("https://{host}/");
        assert!(checked(&url).is_err(), "{host}");
        assert!(anything(&url).is_err(), "{host}");
    }
}

#[test]
fn where_private_targets_are_allowed_any_host_is_and_plain_http_too() {
    let http = |host: &str, port| UrlTarget { scheme: Scheme::Http, ..https(host, port, "") };
    assert_eq!(anything("http://127.0.0.1:8000/"), Ok(http("127.0.0.1", 8000)));
    assert_eq!(anything("http://localhost"), Ok(http("localhost", 80)));
    assert_eq!(anything("http://[::1]:80"), Ok(http("::1", 80)));
    assert_eq!(anything("https://localhost:8443/base"), Ok(https("localhost", 8443, "/base")));
    assert_eq!(anything("https://any.example/x"), Ok(https("any.example", 443, "/x")));
    assert_eq!(anything("http://:8000"), Err(NotRoutable::Form("it has no host")));
    assert!(anything("http://u@localhost").is_err());
}

#[test]
fn the_operator_names_other_suffixes_and_single_hosts() {
    let suffixes = [".Example.org", "agent.example.net"].map(|suffix| suffix.parse().unwrap());
    let policy = UrlPolicy { suffixes: suffixes.into(), allow_private: false };
    for good in ["a.example.org", "a.b.example.org", "agent.example.net", "x.agent.example.net"] {
        assert!(check(&format!("https://{good}"), &policy).is_ok(), "{good}");
    }
    for bad in ["example.org", "b.example.net", "xagent.example.net", "a.trycloudflare.com"] {
        assert!(check(&format!("https://{bad}"), &policy).is_err(), "{bad}");
    }
    let none = UrlPolicy { suffixes: vec![], allow_private: false };
    assert_eq!(check("https://a.example.org", &none), Err(NotRoutable::Suffix));
}

#[test]
fn an_address_is_under_no_suffix_and_is_none() {
    for bad in [
        "",
        ".",
        "..",
        "..com",
        "a b",
        "*.example.org",
        "a/b",
        "https://a.example",
        "10",
        "a.7",
        "10.0.0.1",
        ".0.0.1",
        ".0.0.1.",
        "::1",
        "[::1]",
        "0x7f000001",
    ] {
        assert!(bad.parse::<HostSuffix>().is_err(), "{bad:?}");
    }
    for (written, shown) in [(".Example.ORG", ".example.org"), ("One.example", "one.example")] {
        assert_eq!(written.parse::<HostSuffix>().unwrap().to_string(), shown);
    }
}

#[test]
fn a_reason_repeats_nothing_of_the_url() {
    for url in [
        "https://203.0.113.77:4711",
        "https://[2001:db8::4711]",
        "https://volunteer-4711.example",
        "http://volunteer-4711.trycloudflare.com",
        "https://volunteer-4711@a.trycloudflare.com",
        "https://a.trycloudflare.com/?volunteer-4711",
        "https://volunteer-4711..trycloudflare.com",
        "https://a.trycloudflare.com:47110000",
        "volunteer-4711",
    ] {
        let reason = checked(url).unwrap_err().to_string();
        assert!(!reason.contains("4711") && !reason.contains("203.0"), "{url}: {reason}");
    }
}

proptest! {
    #[test]
    fn whatever_is_checked_no_panic_and_only_names_under_a_suffix_pass(
        url in "(https?://)?[\\[\\]a-z0-9.:@/?#%\\\\-]{0,24}(\\.trycloudflare\\.com)?[:/a-z0-9@.]{0,8}",
    ) {
        let _ = anything(&url);
        if let Ok(target) = checked(&url) {
            prop_assert!(target.host.ends_with(".trycloudflare.com") || target.host.ends_with(".cfargotunnel.com"));
            prop_assert!(target.port != 0 && !target.path_prefix.ends_with('/'));
        }
    }

    #[test]
    fn no_text_panics(url in "\\PC{0,32}") {
        let _ = (checked(&url), anything(&url), url.parse::<HostSuffix>());
    }
}
