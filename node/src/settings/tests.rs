//! Settings from flags, variables and files.

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
    assert_eq!(at(&[], &[("HEDGEROW_LOCATION", ""), ("LOCATION", "")]), "file", "an empty variable is an unset one");
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
    assert!(resolve(&["https://e.example"], &[("HEDGEROW_ROLE", "boss")]).unwrap_err().contains("auto, coordinator"));
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

const ENTRY: &str = "https://e.example";

#[test]
fn variables_of_older_agents_that_mean_nothing_here_are_known() {
    let variables = [
        ("COORDINATOR_URL", "https://e.example/"),
        ("WORKER_ID", "w1"),
        ("WORKER_TYPE", "cpu"),
        ("COORDINATOR_ID", "c1"),
        ("USE_TUNNEL", ""),
        ("TUNNEL_URL", "http://:8000"),
    ];
    assert_eq!(resolve(&[], &variables).unwrap().ignored_variables, ["WORKER_ID", "COORDINATOR_ID", "TUNNEL_URL"]);
}

#[test]
fn an_empty_variable_of_older_agents_is_an_unset_one() {
    let names = [
        "COORDINATOR_URL",
        "WORKER_ID",
        "WORKER_TYPE",
        "USE_TUNNEL",
        "TUNNEL_URL",
        "LOCATION",
        "HOST",
        "PORT",
        "COORDINATOR_ID",
        "HEARTBEAT_TIMEOUT_SECONDS",
        "WORKER_TIMEOUT_SECONDS",
    ];
    let empty: Vec<_> = names.into_iter().map(|name| (name, "")).collect();
    assert_eq!(resolve(&[ENTRY], &empty), resolve(&[ENTRY], &[]));
    assert!(resolve(&[], &empty).unwrap_err().contains("no entry is named"));
}

#[test]
fn an_older_agents_environment_is_a_whole_configuration() {
    let variables = [
        ("COORDINATOR_URL", "https://e.example"),
        ("LOCATION", "Vienna"),
        ("HOST", "0.0.0.0"),
        ("PORT", "8000"),
        ("WORKER_TYPE", "gpu"),
        ("HEARTBEAT_TIMEOUT_SECONDS", "60"),
        ("WORKER_TIMEOUT_SECONDS", "120"),
    ];
    let flags = ["--location", "Vienna", "--listen", "0.0.0.0:8000", "--worker-type", "gpu"];
    let times = ["--heartbeat-timeout", "1min", "--worker-timeout", "2min"];
    assert_eq!(resolve(&[], &variables), resolve(&[&[ENTRY][..], &flags, &times].concat(), &[]));
    let settings = resolve(&[], &variables).unwrap();
    assert_eq!(settings.entries, [ENTRY.parse().unwrap()]);
    assert_eq!(settings.listen, Some("0.0.0.0:8000".parse().unwrap()));
    assert_eq!(settings.worker_type, WorkerTypeChoice::Gpu);
    assert_eq!((settings.heartbeat_timeout.as_secs(), settings.worker_timeout.as_secs()), (60, 120));
    let on_all = resolve(&[ENTRY], &[("PORT", "8000")]).unwrap();
    assert_eq!(on_all.listen, settings.listen, "older agents listen on every address");
    assert_eq!(resolve(&[ENTRY], &[("HOST", "0.0.0.0")]).unwrap().listen, None);
}

#[test]
fn whether_to_look_around_on_the_lan_comes_from_flag_variable_or_file() {
    let (_file, path) = file("lan-discovery = 'off'");
    let of = |arguments: &[&str], variables: &[(&str, &str)]| {
        resolve(&[&[ENTRY, "--config", &path], arguments].concat(), variables).map(|settings| settings.lan_discovery)
    };
    assert_eq!(resolve(&[ENTRY], &[]).unwrap().lan_discovery, LanDiscoveryChoice::Auto);
    assert_eq!(of(&[], &[]), Ok(LanDiscoveryChoice::Off));
    let variable = [("HEDGEROW_LAN_DISCOVERY", "on")];
    assert_eq!(of(&[], &variable), Ok(LanDiscoveryChoice::On));
    assert_eq!(of(&["--lan-discovery", "auto"], &variable), Ok(LanDiscoveryChoice::Auto));
    let (_file, path) = file("lan-discovry = 'off'");
    let error = resolve(&[ENTRY, "--config", &path], &[]).unwrap_err();
    assert!(error.contains("did you mean `lan-discovery`?"), "{error}");
}

#[test]
fn a_worker_type_comes_from_flag_variable_or_file() {
    let (_file, path) = file("worker-type = 'edge'");
    let of = |arguments: &[&str], variables: &[(&str, &str)]| {
        resolve(&[&[ENTRY, "--config", &path], arguments].concat(), variables).map(|settings| settings.worker_type)
    };
    assert_eq!(resolve(&[ENTRY], &[]).unwrap().worker_type, WorkerTypeChoice::Auto);
    assert_eq!(of(&[], &[]), Ok(WorkerTypeChoice::Edge));
    assert_eq!(of(&[], &[("WORKER_TYPE", "auto")]), Ok(WorkerTypeChoice::Auto));
    assert_eq!(of(&[], &[("WORKER_TYPE", "cpu"), ("HEDGEROW_WORKER_TYPE", "storage")]), Ok(WorkerTypeChoice::Storage));
    assert_eq!(of(&["--worker-type", "gpu"], &[("WORKER_TYPE", "cpu")]), Ok(WorkerTypeChoice::Gpu));

    let error = of(&[], &[("WORKER_TYPE", "quantum")]).unwrap_err();
    assert!(error.contains("WORKER_TYPE is wrong: \"quantum\" is none of auto, gpu, cpu, storage, edge"), "{error}");
    let error = of(&["--worker-type", "quantum"], &[]).unwrap_err();
    assert!(error.contains("auto, gpu, cpu, storage, edge"), "{error}");
    let (_file, path) = file("worker-type = 'quantum'");
    let error = resolve(&[ENTRY, "--config", &path], &[]).unwrap_err();
    assert!(error.contains(":1:") && error.contains("`auto`, `gpu`, `cpu`, `storage`, `edge`"), "{error}");
}

#[test]
fn how_long_agents_may_be_silent_is_the_contracts_unless_said_otherwise() {
    let (_file, path) = file("heartbeat-timeout = '10s'\nworker-timeout = '20s'");
    let of = |arguments: &[&str], variables: &[(&str, &str)]| {
        let settings = resolve(&[&[ENTRY], arguments].concat(), variables)?;
        Ok::<_, String>((settings.heartbeat_timeout.as_secs(), settings.worker_timeout.as_secs()))
    };
    let older = [("HEARTBEAT_TIMEOUT_SECONDS", "30"), ("WORKER_TIMEOUT_SECONDS", "40")];
    assert_eq!(of(&[], &[]), Ok((300, 600)));
    assert_eq!(of(&["--config", &path], &[]), Ok((10, 20)));
    assert_eq!(of(&["--config", &path], &older), Ok((30, 40)));
    let both = [older[0], older[1], ("HEDGEROW_HEARTBEAT_TIMEOUT", "35s")];
    assert_eq!(of(&["--config", &path], &both), Ok((35, 40)), "each is taken from the first source that says it");
    assert_eq!(of(&["--heartbeat-timeout", "5min", "--worker-timeout", "5min"], &older), Ok((300, 300)));

    let error = of(&["--worker-timeout", "4min"], &[]).unwrap_err();
    assert!(error.contains("the worker timeout of 4m is shorter than the heartbeat timeout of 5m"), "{error}");
    for wrong in ["0s", "999ms", "25h", "300", "soon", "-1s"] {
        assert!(of(&[&format!("--heartbeat-timeout={wrong}")], &[]).is_err(), "{wrong}");
        assert!(of(&[], &[("HEDGEROW_WORKER_TIMEOUT", wrong)]).unwrap_err().contains("HEDGEROW_WORKER_TIMEOUT"));
    }
    for wrong in ["0", "90000", "5m", "1.5", "-1", "99999999999999999999"] {
        let error = of(&[], &[("WORKER_TIMEOUT_SECONDS", wrong)]).unwrap_err();
        assert!(error.contains("WORKER_TIMEOUT_SECONDS is wrong"), "{error}");
    }
}

#[test]
fn where_coordinators_dial_is_some_addresses_or_off_or_left_to_the_node() {
    let (udp, tcp) = ("/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001");
    let at = |addresses: &[&str]| MeshListen::At(addresses.iter().map(|address| address.parse().unwrap()).collect());
    let of = |arguments: &[&str], variables: &[(&str, &str)]| {
        resolve(&[&[ENTRY], arguments].concat(), variables).map(|settings| settings.mesh_listen)
    };
    assert_eq!(of(&[], &[]), Ok(MeshListen::Default));
    assert_eq!(of(&["--mesh-listen", udp, "--mesh-listen", tcp, "--mesh-listen", udp], &[]), Ok(at(&[udp, tcp])));
    let variable = format!("{udp}, {tcp}");
    assert_eq!(of(&[], &[("HEDGEROW_MESH_LISTEN", &variable)]), Ok(at(&[udp, tcp])));
    assert_eq!(of(&["--mesh-listen", "off"], &[("HEDGEROW_MESH_LISTEN", &variable)]), Ok(MeshListen::Off));
    for (text, expected) in [
        (format!("mesh-listen = '{udp}'"), at(&[udp])),
        (format!("mesh-listen = ['{udp}', '{tcp}']"), at(&[udp, tcp])),
        ("mesh-listen = 'off'".to_owned(), MeshListen::Off),
    ] {
        let (_file, path) = file(&text);
        assert_eq!(of(&["--config", &path], &[]), Ok(expected));
    }

    assert!(of(&["--mesh-listen", "off", "--mesh-listen", udp], &[]).unwrap_err().contains("names an address as well"));
    assert!(of(&["--mesh-listen", "4001"], &[]).unwrap_err().contains("not a multiaddr"));
    let many: Vec<_> = (1..=9).map(|port| format!("--mesh-listen=/ip4/0.0.0.0/tcp/{port}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(of(&many, &[]).unwrap_err().contains("names 9 addresses, and a node has at most 8"));
    let worker = ["--service", "a=http://127.0.0.1:1", "--mesh-listen"];
    let for_good = [&["--role", "worker"], &worker[..], &[udp]].concat();
    assert!(of(&for_good, &[]).unwrap_err().contains("this node is a worker"));
    assert_eq!(of(&[&worker[..], &[udp]].concat(), &[]), Ok(at(&[udp])), "it may be elected");
    assert_eq!(of(&[&worker[..], &["off"]].concat(), &[]), Ok(MeshListen::Off));
}

#[test]
fn agents_may_be_at_cloudflare_tunnels_unless_something_else_is_said() {
    use hedgerow_contract::url::check;
    let allowed = |arguments: &[&str], variables: &[(&str, &str)], url: &str| {
        let all: Vec<&str> = ["https://example.org"].iter().chain(arguments).copied().collect();
        check(url, &resolve(&all, variables).unwrap().urls).is_ok()
    };
    let (tunnel, other, private) = ("https://a.trycloudflare.com", "https://a.example.org", "http://127.0.0.1:8000");
    assert!(allowed(&[], &[], tunnel) && !allowed(&[], &[], other) && !allowed(&[], &[], private));
    let own = ["--url-suffix", ".example.org", "--url-suffix", "one.example.net"];
    assert!(!allowed(&own, &[], tunnel) && allowed(&own, &[], other) && allowed(&own, &[], "https://one.example.net"));
    assert!(allowed(&["--allow-private-urls"], &[], private) && allowed(&["--allow-private-urls"], &[], other));

    let by_variable = [("HEDGEROW_URL_SUFFIX", ".a.example, .example.org")];
    assert!(allowed(&[], &by_variable, other) && !allowed(&[], &by_variable, tunnel));
    assert!(allowed(&[], &[("HEDGEROW_ALLOW_PRIVATE_URLS", "true")], private));
    assert!(!allowed(&[], &[("HEDGEROW_ALLOW_PRIVATE_URLS", "0")], private));
    let (_file, path) = file("url-suffix = ['.example.org']");
    assert!(allowed(&["--config", &path], &[], other) && !allowed(&["--config", &path], &[], tunnel));
    let (_file, path) = file("allow-private-urls = true");
    assert!(allowed(&["--config", &path], &[], private));
    assert!(!allowed(&["--config", &path], &[("HEDGEROW_ALLOW_PRIVATE_URLS", "false")], private));

    let unclear = ["https://example.org", "--allow-private-urls", "--url-suffix", ".a.example"];
    assert!(resolve(&unclear, &[]).unwrap_err().contains("--url-suffix"));
    assert!(resolve(&["https://example.org"], &[("HEDGEROW_ALLOW_PRIVATE_URLS", "perhaps")]).is_err());
    assert!(resolve(&["https://example.org", "--url-suffix", "https://a.example"], &[]).is_err());
}
