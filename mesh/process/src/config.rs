//! The configuration file: TOML into a type of the caller's, in which every key is known.
//!
//! The type derives `Deserialize` with `#[serde(deny_unknown_fields)]` on every struct of it; a key that it does not know is
//! then an error which names the file, the line, the key, and the known key that it was probably meant to be.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::exit::Failure;

/// A configuration file over this many bytes is not one: somebody gave the wrong path.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a configuration file cannot be used. All of these are for the operator to put right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Far longer than any configuration.
    #[error("{} is longer than {FILE_BYTES_MAX} bytes: that is no configuration file", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// A key that means nothing: a slip of the pen, or another version's.
    #[error("{}:{line}: unknown key `{key}`{}", path.display(), did_you_mean(nearest))]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// The key that is not known.
        key: String,
        /// The known key that looks most like it, if one does.
        nearest: Option<String>,
        /// All keys that may stand there.
        known: Vec<String>,
    },
    /// Not TOML, or a value that its key does not take.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// Character in the line, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let failure = Self::usage(error.to_string()).means("nothing was started");
        match &error {
            ConfigError::Read { .. } => {
                failure.advice("check the path given to --config, and that this user may read the file")
            }
            ConfigError::TooLong { .. } => failure.advice("check the path given to --config"),
            ConfigError::UnknownKey { known, .. } if known.is_empty() => failure.advice("remove the key"),
            ConfigError::UnknownKey { known, .. } => {
                failure.advice(format!("correct or remove the key; known here: {}", known.join(", ")))
            }
            ConfigError::Invalid { .. } => failure.advice("correct that line"),
        }
    }
}

/// Loads the file at `path`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = |error| ConfigError::Read { path: path.to_owned(), error };
    // The size is looked at first: `--config /dev/zero` should not eat the machine.
    let metadata = std::fs::metadata(path).map_err(read)?;
    if !metadata.is_file() && !metadata.is_dir() || metadata.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    parse(&std::fs::read_to_string(path).map_err(read)?, path)
}

/// Loads the file if there is one to load, else the type's default.
pub fn load_or_default<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    path.map_or_else(|| Ok(T::default()), load)
}

/// Parses `text`; `path` is for the errors.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        let path = path.to_owned();
        match unknown_key(error.message()) {
            Some((key, known)) => {
                let nearest = nearest(&key, known.iter().map(String::as_str)).map(str::to_owned);
                ConfigError::UnknownKey { path, line, key, nearest, known }
            }
            None => ConfigError::Invalid { path, line, column, message: error.message().to_owned() },
        }
    })
}

/// The name among `known` that `given` was probably meant to be; none when nothing is near.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One likes a common beginning, the other forgives two letters in the wrong order: either will do.
    const SIMILAR_BEGINNING: f64 = 0.7;
    const FEW_SLIPS: f64 = 0.6;
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&given, name), strsim::normalized_damerau_levenshtein(&given, name), name))
        .filter(|(beginning, slips, _)| *beginning >= SIMILAR_BEGINNING || *slips >= FEW_SLIPS)
        .max_by(|a, b| (a.0 + a.1).total_cmp(&(b.0 + b.1)))
        .map(|(_, _, name)| name)
}

/// serde tells of an unknown field in words only: "unknown field `x`, expected one of `a`, `b`". A test holds it to that.
fn unknown_key(message: &str) -> Option<(String, Vec<String>)> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2).map(str::to_owned);
    Some((names.next()?, names.collect()))
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct File {
        listen: Option<String>,
        tunnel_listen: Option<String>,
        limits: Limits,
        service: Vec<Service>,
    }
    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct Limits {
        body_bytes_max: u64,
    }
    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Service {
        name: String,
    }

    fn error(text: &str) -> String {
        parse::<File>(text, Path::new("node.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        assert_eq!(
            error("listen = 'x'\n# a comment\ntunel-listen = 'y'\n"),
            "node.toml:3: unknown key `tunel-listen`; did you mean `tunnel-listen`?"
        );
        assert_eq!(
            error("\n[limits]\nbody_bytes_max = 1"),
            "node.toml:3: unknown key `body_bytes_max`; did you mean `body-bytes-max`?"
        );
        assert_eq!(error("[[service]]\nnam = 'x'"), "node.toml:2: unknown key `nam`; did you mean `name`?");
        assert_eq!(error("[limmits]"), "node.toml:1: unknown key `limmits`; did you mean `limits`?");
        assert_eq!(nearest("ulr", ["name", "url", "capacity"]), Some("url"));
        assert_eq!(error("zzz = 1"), "node.toml:1: unknown key `zzz`");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        assert!(
            error("listen = 5").starts_with("node.toml:1:10: invalid type: integer `5`"),
            "{}",
            error("listen = 5")
        );
        assert!(error("listen = \n").starts_with("node.toml:1:"), "{}", error("listen = \n"));
        assert!(error("[[service]]\n").contains("missing field `name`"));
    }

    #[test]
    fn a_file_that_cannot_be_read_says_which() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.toml");
        let error = load::<File>(&missing).unwrap_err();
        assert!(error.to_string().contains("missing.toml"));
        assert!(matches!(load::<File>(directory.path()), Err(ConfigError::Read { .. })));
        assert!(matches!(load::<File>(Path::new("/dev/zero")), Err(ConfigError::TooLong { .. })));
    }

    #[test]
    fn no_file_is_the_default_and_a_file_is_read() {
        assert_eq!(load_or_default::<File>(None).unwrap(), File::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "listen = 'here'").unwrap();
        assert_eq!(load::<File>(file.path()).unwrap().listen.as_deref(), Some("here"));
    }
}
