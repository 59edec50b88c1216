//! What is to be run: the binaries beside this one, built first if they are missing or older than their sources.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

/// Where the binaries are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `hedgerow-entry`.
    pub entry: PathBuf,
    /// `hedgerow-node`.
    pub node: PathBuf,
    /// `hedgerow-sim` itself, which is also the services and the guard.
    pub sim: PathBuf,
}

impl Binaries {
    /// Those beside this executable, fresh.
    pub fn beside_this_one() -> Result<Self> {
        Self::beside(&std::env::current_exe().context("cannot tell which executable this is")?)
    }

    /// Those beside the given `hedgerow-sim`, built with its own profile if they need to be. Cargo's progress goes to standard error.
    pub fn beside(sim: &Path) -> Result<Self> {
        let directory = sim.parent().context("an executable without a directory")?;
        let found = Self {
            entry: directory.join("hedgerow-entry"),
            node: directory.join("hedgerow-node"),
            sim: sim.to_owned(),
        };
        if is_fresh(&found.entry) && is_fresh(&found.node) {
            return Ok(found);
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        if workspace.join("Cargo.toml").exists() {
            build(&workspace.join("Cargo.toml"), &["hedgerow-entry", "hedgerow-node"], directory)?;
        }
        for path in [&found.entry, &found.node] {
            if !path.exists() {
                bail!("{} is missing; `cargo build --workspace` makes it", path.display());
            }
        }
        Ok(found)
    }
}

/// `hedgerow-sim-full`, the full level of the simulation: beside this `hedgerow-sim`, or in the target folder of its own workspace,
/// and built first where there is a checkout. Cargo's progress goes to standard error.
pub fn full_level(sim: &Path) -> Result<PathBuf> {
    let directory = sim.parent().context("an executable without a directory")?;
    let beside = directory.join("hedgerow-sim-full");
    if is_fresh(&beside) {
        return Ok(beside);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("full");
    let own = directory.file_name().map(|profile| workspace.join("target").join(profile).join("hedgerow-sim-full"));
    if let Some(own) = own.filter(|own| is_fresh(own)) {
        return Ok(own);
    }
    let manifest = workspace.join("Cargo.toml");
    if manifest.exists() {
        // The profiles of both workspaces are the same, and so are most of the packages.
        build(&manifest, &["hedgerow-sim-full"], directory)?;
    }
    match beside.exists() {
        true => Ok(beside),
        false => bail!(
            "{} is missing, which is the full level; put it there, or build it: cargo build --manifest-path simulations/full/Cargo.toml",
            beside.display()
        ),
    }
}

/// Cargo writes beside each binary which sources it was made of.
fn is_fresh(binary: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let (Some(built), Ok(sources)) = (modified(binary), std::fs::read_to_string(binary.with_extension("d"))) else {
        return false;
    };
    sources_of(&sources).all(|source| modified(Path::new(&source)).is_some_and(|at: SystemTime| at <= built))
}

/// The right side of `binary: source source …`, where a space in a name is written `\ `.
fn sources_of(dep_info: &str) -> impl Iterator<Item = String> {
    let right = dep_info.split_once(": ").map_or("", |(_, right)| right).trim();
    let marked = right.replace("\\ ", "\0");
    marked
        .split(' ')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('\0', " "))
        .collect::<Vec<_>>()
        .into_iter()
}

fn build(manifest: &Path, packages: &[&str], directory: &Path) -> Result<()> {
    let names = packages.join(" and ");
    let mut command = cargo("build", manifest, directory)?;
    for package in packages {
        command.args(["--package", package]);
    }
    let status = command.stdin(Stdio::null()).status();
    if !status.with_context(|| format!("cargo is needed to build {names}"))?.success() {
        bail!("cargo could not build {names}");
    }
    Ok(())
}

/// Cargo, for the workspace or package of this manifest, with the profile and the target folder of the binaries in `directory`:
/// what is built there already is used.
pub fn cargo(subcommand: &str, manifest: &Path, directory: &Path) -> Result<Command> {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let target = directory.parent().context("an executable outside a target directory")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).arg("--manifest-path").arg(manifest);
    command.args(["--profile", profile, "--target-dir"]).arg(target);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_with_spaces_stay_whole() {
        let sources: Vec<_> = sources_of("/t/bin: /a/one.rs /b\\ c/two.rs\n").collect();
        assert_eq!(sources, ["/a/one.rs", "/b c/two.rs"]);
    }

    #[test]
    fn a_binary_older_than_a_source_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        let (binary, source) = (directory.path().join("bin"), directory.path().join("a.rs"));
        std::fs::write(&source, "").unwrap();
        assert!(!is_fresh(&binary), "what is missing is not fresh");
        std::fs::write(&binary, "").unwrap();
        std::fs::write(directory.path().join("bin.d"), format!("{}: {}\n", binary.display(), source.display()))
            .unwrap();
        assert!(is_fresh(&binary));
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        std::fs::File::options().write(true).open(&source).unwrap().set_modified(later).unwrap();
        assert!(!is_fresh(&binary));
    }
}
