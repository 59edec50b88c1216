//! What goes wrong with a call of the contract: for each case a status, a code for programs, and words for people.

use std::time::Duration;

/// Why a call is not answered as asked. The caller turns it into `application/problem+json`: [`ContractError::status`],
/// [`ContractError::code`], [`ContractError::title`], and what it displays as the detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// Client: the path is known, the method is not one of its own.
    #[error("{method} means nothing here; use {allow}")]
    MethodNotAllowed {
        /// What was tried, cut to a few characters.
        method: String,
        /// What there is, for `Allow`.
        allow: &'static str,
    },
    /// Client: a name in the path is none.
    #[error("the path names no {what}: {why}")]
    Path {
        /// What should stand there.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Client: the body is over the limit.
    #[error("the body is longer than the limit of {max_bytes} bytes; nothing was registered or changed")]
    TooLarge {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// Client: the body is no JSON object.
    #[error("the body must be a JSON object: {0}")]
    NotAnObject(String),
    /// Client: something that must be there is not.
    #[error("the body lacks {field:?}, without which it means nothing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// Client: something is there that cannot be.
    #[error("{field:?} {why}")]
    Field {
        /// The field, with its place in a list.
        field: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Client: the id is that of a node which speaks for itself.
    #[error(
        "{worker_id} is the id of a node with a key of its own, which speaks for itself: nobody registers or unregisters \
         in its name; choose another worker_id"
    )]
    NativeNode {
        /// The id.
        worker_id: String,
    },
    /// Nobody in the federation knows the worker.
    #[error(
        "no coordinator knows the worker {worker_id:?}: it never registered, unregistered, or was silent for too long; \
         register it again"
    )]
    UnknownWorker {
        /// The id.
        worker_id: String,
    },
    /// Federation: nobody offers what was asked for.
    #[error("no healthy worker offers the service {service:?} now")]
    NobodyOffers {
        /// The service.
        service: String,
    },
    /// Federation: this coordinator speaks for as many agents as it may.
    #[error(
        "this coordinator speaks for {max} workers already, the limit (guests_per_sponsor_max); another may have room: \
         try again"
    )]
    Full {
        /// The limit.
        max: usize,
    },
    /// Federation: nobody is there who could admit a worker.
    #[error("no coordinator is there to register with; none came within {waited:?}")]
    NoCoordinator {
        /// How long was waited.
        waited: Duration,
    },
}

impl ContractError {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Path { .. } | Self::NotAnObject(_) => 400,
            Self::UnknownWorker { .. } => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::NativeNode { .. } => 409,
            Self::TooLarge { .. } => 413,
            Self::Missing { .. } | Self::Field { .. } => 422,
            Self::NobodyOffers { .. } | Self::Full { .. } | Self::NoCoordinator { .. } => 503,
        }
    }

    /// The name of the case, for programs. It stays the same.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MethodNotAllowed { .. } => "method",
            Self::Path { .. } => "bad-path",
            Self::TooLarge { .. } => "body-too-large",
            Self::NotAnObject(_) => "not-an-object",
            Self::Missing { .. } => "missing-field",
            Self::Field { .. } => "bad-field",
            Self::NativeNode { .. } => "native-node",
            Self::UnknownWorker { .. } => "unknown-worker",
            Self::NobodyOffers { .. } => "no-worker",
            Self::Full { .. } => "coordinator-full",
            Self::NoCoordinator { .. } => "no-coordinator",
        }
    }

    /// The name of the case, for people: the same for each code.
    pub fn title(&self) -> &'static str {
        match self {
            Self::MethodNotAllowed { .. } => "Method not allowed",
            Self::Path { .. } => "Bad path",
            Self::TooLarge { .. } => "Body too large",
            Self::NotAnObject(_) => "Not a JSON object",
            Self::Missing { .. } => "A field is missing",
            Self::Field { .. } => "A field cannot be used",
            Self::NativeNode { .. } => "A node of that id speaks for itself",
            Self::UnknownWorker { .. } => "Unknown worker",
            Self::NobodyOffers { .. } => "Nobody offers the service",
            Self::Full { .. } => "The coordinator is full",
            Self::NoCoordinator { .. } => "No coordinator",
        }
    }

    /// When it may be worth trying again, for `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            // As for a request to a service that nobody offers.
            Self::NobodyOffers { .. } | Self::NoCoordinator { .. } => Some(Duration::from_secs(5)),
            // Room comes when an agent goes: not in a moment.
            Self::Full { .. } => Some(Duration::from_secs(30)),
            _ => None,
        }
    }

    /// The methods that there are, for `Allow`.
    pub fn allow(&self) -> Option<&'static str> {
        match self {
            Self::MethodNotAllowed { allow, .. } => Some(allow),
            _ => None,
        }
    }

    pub(crate) fn field(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Field { field: field.into(), why: why.into() }
    }
}

/// A text as a person may see it in an error: the beginning of it, on one line.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    let mut shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_code_of_its_own_and_only_503_says_when_to_try_again() {
        let (id, service) = (|| "w".to_owned(), || "llm".to_owned());
        let all = [
            ContractError::MethodNotAllowed { method: "PUT".into(), allow: "GET" },
            ContractError::Path { what: "service", why: "it is empty".into() },
            ContractError::TooLarge { max_bytes: 1 },
            ContractError::NotAnObject("a list".into()),
            ContractError::Missing { field: "worker_id" },
            ContractError::field("services[3]", "is a number"),
            ContractError::NativeNode { worker_id: id() },
            ContractError::UnknownWorker { worker_id: id() },
            ContractError::NobodyOffers { service: service() },
            ContractError::Full { max: 1 },
            ContractError::NoCoordinator { waited: Duration::from_secs(8) },
        ];
        let mut codes: Vec<_> = all.iter().map(ContractError::code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all.len());
        for error in &all {
            assert_eq!(error.retry_after().is_some(), error.status() == 503, "{error}");
            assert_eq!(error.allow().is_some(), error.status() == 405, "{error}");
        }
    }

    #[test]
    fn what_a_client_sent_is_shown_in_short_and_without_control_characters() {
        assert_eq!(excerpt("a\nb"), "a\\nb");
        assert_eq!(excerpt(&"x".repeat(1000)).chars().count(), 41);
    }
}
