//! What a person gets to read who gets it wrong.

use crate::process::{Home, text};

const NOBODY: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn a_wrong_flag_is_a_usage_error_that_names_it() {
    let home = Home::new();
    assert!(home.fails(2, &["join", NOBODY, "--sevice", "x"]).await.contains("--service"));
    assert!(home.fails(2, &["join", "example.org"]).await.contains("https://example.org"));
    assert!(home.fails(2, &["join"]).await.contains("no entry is named"));
    assert!(home.fails(2, &["join", NOBODY, "--role", "worker"]).await.contains("--service NAME="));
    assert!(home.fails(2, &["join", NOBODY, "--service", "a=https://b"]).await.contains("not supported yet"));
    assert!(home.fails(2, &["join", NOBODY, "--service", "a=http://b/path"]).await.contains("/service/NAME/"));
    assert!(home.fails(2, &["join", NOBODY, "--listen", "8080"]).await.contains("ADDRESS:PORT"));
    assert!(home.fails(2, &["join", NOBODY, "--worker-type", "big"]).await.contains("auto, gpu, cpu, storage, edge"));
    assert!(!home.data_dir().exists(), "nothing was made before the settings were valid");
}

#[tokio::test]
async fn an_unknown_key_of_the_file_is_named_with_its_line_and_what_was_meant() {
    let home = Home::new();
    let file = home.write("node.toml", "entry = 'http://127.0.0.1:1'\n\n[[service]]\nname = 'a'\nulr = 'http://b'\n");
    let said = home.fails(2, &["join", "--config", &text(&file)]).await;
    assert!(said.contains("node.toml:5: unknown key `ulr`; did you mean `url`?"), "{said}");
}

#[tokio::test]
async fn a_variable_that_is_wrong_is_named() {
    let home = Home::new();
    let output = home.command(&["join", NOBODY]).env("HEDGEROW_SERVICES", "a=b").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("HEDGEROW_SERVICES"));
    let output = home.command(&["join", NOBODY]).env("RUST_LOG", "hedgerow=loud").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn a_data_directory_in_use_is_said_and_the_one_who_uses_it_goes_on() {
    let home = Home::new();
    let mut first = home.start(&["join", NOBODY]);
    first.says(&["cannot reach the entry"]).await;
    let said = home.fails(1, &["join", NOBODY]).await;
    assert!(said.contains("is in use by process") && said.contains("--data-dir"), "{said}");
    assert_eq!(home.status().await.role, "coordinator");
}

#[tokio::test]
async fn a_damaged_key_is_said_and_left_as_it_is() {
    let home = Home::new();
    std::fs::create_dir_all(home.data_dir()).unwrap();
    let key = home.data_dir().join("identity.key");
    std::fs::write(&key, "not a key").unwrap();
    let said = home.fails(1, &["join", NOBODY]).await;
    assert!(said.contains("identity.key"), "{said}");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "not a key");
}

#[tokio::test]
async fn a_port_in_use_is_said_before_anything_is_joined() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = home.fails(1, &["join", NOBODY, "--listen", &address]).await;
    assert!(said.contains(&address) && said.contains("another port"), "{said}");
}

#[tokio::test]
async fn a_ready_file_that_cannot_be_written_is_said_at_the_start() {
    let home = Home::new();
    let path = text(&home.path("missing/ready.json"));
    let said = home.fails(1, &["join", NOBODY, "--ready-file", &path]).await;
    assert!(said.contains("ready.json"), "{said}");
}

#[tokio::test]
async fn status_and_leave_without_a_node_say_so() {
    let home = Home::new();
    for command in ["status", "leave"] {
        let said = home.fails(1, &[command]).await;
        assert!(said.contains("no node is running") && said.contains("hedgerow-node join"), "{said}");
    }
}

#[tokio::test]
async fn a_killed_node_leaves_nothing_that_stops_the_next_one() {
    let home = Home::new();
    let mut first = home.start(&["join", NOBODY]);
    first.says(&["cannot reach the entry"]).await;
    let before = home.status().await;
    first.signal("KILL");
    first.ends().await;
    assert!(home.fails(1, &["status"]).await.contains("no node is running"));
    let mut second = home.start(&["join", NOBODY]);
    second.says(&["cannot reach the entry"]).await;
    assert_eq!(home.status().await.node_id, before.node_id);
}
