//! What is built and tried by a cargo of its own, since its features or its patches must not get into this build.

use std::path::Path;
use std::process::Stdio;

use hedgerow_sim::binaries::cargo;

/// Runs cargo for a package of this folder, with this build's profile and target folder. What it says is shown if it fails, and
/// given back if it does not.
pub(crate) fn succeeds(subcommand: &str, package: &str, arguments: &[&str]) -> String {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(package).join("Cargo.toml");
    let directory = Path::new(env!("CARGO_BIN_EXE_hedgerow-sim")).parent().expect("an executable is in a folder");
    let mut command = cargo(subcommand, &manifest, directory).expect("a folder of cargo's");
    let output = command.arg("--locked").args(arguments).stdin(Stdio::null()).output().expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {subcommand} in {package} failed ({}):\n{said}\n{errors}", output.status);
    said
}
