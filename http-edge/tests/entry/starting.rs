//! What a person sees who starts it wrongly, and what a script reads when it was right.

use std::os::unix::fs::PermissionsExt;

use crate::common::{Entry, fails};

#[tokio::test]
async fn wrong_flags_and_keys_are_named_and_exit_with_2() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let said = fails(at, &["--lissten", "127.0.0.1:0"], 2);
    assert!(said.contains("--listen"), "the flag that was meant: {said}");
    assert!(fails(at, &["--listen", "here"], 2).contains("127.0.0.1:8080"), "how one is written");
    assert!(fails(at, &["--listen", "0.0.0.0:0"], 2).contains("--plain-http"));
    assert!(fails(at, &["--tls-cert", "a"], 2).contains("--tls-key"));
    assert!(fails(at, &["--trusted-proxy", "10.1.2.3/8"], 2).contains("10.0.0.0/8"));
    std::fs::write(at.join("entry.toml"), "listen = \"127.0.0.1:0\"\nadmin-listn = \"127.0.0.1:0\"\n").unwrap();
    let said = fails(at, &["--config", "entry.toml"], 2);
    assert!(said.contains("entry.toml:2") && said.contains("did you mean `admin-listen`?"), "{said}");
    std::fs::write(at.join("entry.toml"), "body-max = \"many\"\n").unwrap();
    let said = fails(at, &["--config", "entry.toml"], 2);
    assert!(said.contains("entry.toml:1") && said.contains("64KiB"), "{said}");
    assert!(fails(at, &["--config", "missing.toml"], 2).contains("missing.toml"));
    let left: Vec<_> = std::fs::read_dir(at).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["entry.toml"], "who never starts leaves nothing behind");
}

#[tokio::test]
async fn a_port_that_somebody_has_is_an_error_even_if_that_is_another_entry() {
    let entry = Entry::start(&[]).await;
    let (http, tunnel, admin) = (entry.http.to_string(), entry.tunnel.to_string(), entry.admin.to_string());
    let free = "127.0.0.1:0";
    for (listen, tunnel_listen, admin_listen, flag) in [
        (&*http, free, free, "--listen"),
        (free, &*tunnel, free, "--tunnel-listen"),
        (free, free, &*admin, "--admin-listen"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ["--listen", listen, "--tunnel-listen", tunnel_listen, "--admin-listen", admin_listen];
        let said = fails(directory.path(), &arguments, 1);
        assert!(said.contains("another process has this port") && said.contains(flag), "{said}");
    }
    assert_eq!(entry.get("/health").await.status, 200);
}

#[tokio::test]
async fn the_key_is_made_once_and_kept_and_a_damaged_one_is_left_alone() {
    let entry = Entry::start(&[]).await;
    let mode = std::fs::metadata(entry.path("entry.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let id = entry.ready["node_id"].clone();
    let (directory, at) = entry.kill();
    let again = Entry::start_in(directory, at.each_ref().map(String::as_str), &[]).await;
    assert_eq!(again.ready["node_id"], id);

    let damaged = tempfile::tempdir().unwrap();
    let file = damaged.path().join("entry.key");
    std::fs::write(&file, "not a key").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let said = fails(damaged.path(), &["--listen", "127.0.0.1:0", "--key-file", "entry.key"], 1);
    assert!(said.contains("entry.key"), "{said}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "not a key");
}

#[tokio::test]
async fn the_ready_file_says_where_everything_is_and_goes_with_the_process() {
    let mut entry = Entry::start(&[]).await;
    assert_eq!(entry.ready["scheme"], "http");
    assert_eq!(entry.ready["pid"], entry.pid());
    assert!(entry.http.port() != 0 && entry.tunnel.port() != 0 && entry.admin.port() != 0);
    assert_eq!(entry.get("/mesh/bootstrap").await.json()["federation"], entry.ready["federation"]);
    entry.signal("TERM");
    assert!(entry.ended().await.success());
    assert!(!entry.path("ready.json").exists());
}

#[tokio::test]
async fn a_federation_of_several_entries_has_one_key() {
    let key = "ab".repeat(32);
    let flags = ["--federation-key", &*key];
    let (one, two) = tokio::join!(Entry::start(&flags), Entry::start(&flags));
    assert_eq!(one.ready["federation"], two.ready["federation"]);
    assert_ne!(one.ready["node_id"], two.ready["node_id"]);
    let bootstrap = one.get("/mesh/bootstrap").await.json();
    assert_eq!(bootstrap["federation"], one.ready["federation"]);
    assert_eq!(bootstrap["entry"]["tunnel"][0]["port"], one.tunnel.port());
    assert!(bootstrap["entry"]["tunnel"][0]["host"].is_null());
}
