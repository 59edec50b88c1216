//! What stands in `deploy/` for the node is read by the code that reads it in earnest.

use std::path::Path;

use clap::Parser;
use hedgerow_node::cli::{Cli, Command};
use hedgerow_node::settings::check_file;

const EXAMPLE: &str = include_str!("../../../deploy/config/node.example.toml");
const UNIT: &str = include_str!("../../../deploy/systemd/hedgerow-node.service");

/// With every setting that is commented out put in force: these lines begin with `#` and no space.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_alphabetic()) => setting.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_configuration_is_valid_with_and_without_its_optional_lines() {
    let path = Path::new("node.example.toml");
    check_file(EXAMPLE, path).unwrap();
    let all = uncommented(EXAMPLE);
    check_file(&all, path).unwrap();
    for optional in
        ["listen = ", "mesh-listen = ", "lan-discovery = ", "worker-type = ", "heartbeat-timeout = ", "url-suffix = "]
    {
        assert_eq!(all.lines().filter(|line| line.starts_with(optional)).count(), 1, "{optional} was found");
    }
}

#[test]
fn the_unit_starts_the_node_with_flags_that_exist() {
    let start = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let Command::Join(join) = Cli::try_parse_from(start.split_whitespace()).unwrap().command else {
        panic!("the unit does not join");
    };
    assert_eq!(join.config.as_deref(), Some(Path::new("/etc/hedgerow/node.toml")));
    assert!(UNIT.contains("Environment=HEDGEROW_DATA_DIR=%S/hedgerow-node\nStateDirectory=hedgerow-node\n"));
}
