//! Which commit this program is of, as far as it can be told.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What whoever built it said (`HEDGEROW_COMMIT`), else that of the checkout that it was built in, else `unknown`. Asked when it
/// runs and not when it is built, so that a commit does not make everything be built anew.
pub(super) fn commit() -> &'static str {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(|| {
        let told = option_env!("HEDGEROW_COMMIT").map(str::to_owned);
        told.or_else(|| of_checkout(Path::new(env!("CARGO_MANIFEST_DIR")))).unwrap_or_else(|| "unknown".to_owned())
    })
}

/// Which program this is. A commit says that, as long as nothing was changed since; otherwise, when it was built says it.
pub(super) fn program() -> String {
    let built = || std::env::current_exe().ok()?.metadata().ok()?.modified().ok();
    match commit() {
        clean if clean != "unknown" && !clean.ends_with("-dirty") => clean.to_owned(),
        other => format!("{other} {:?}", built()),
    }
}

fn of_checkout(directory: &Path) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_checkout_nobody_knows() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(of_checkout(directory.path()), None);
        assert!(!commit().is_empty());
    }
}
