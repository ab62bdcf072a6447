//! Errors of the tests' environment, as opposed to the tested software.

use std::io;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of a step: the attempt, its object, and the outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the API server.
    #[error("cannot {attempt}: {source}")]
    Api {
        /// Purpose of the request.
        attempt: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// A program that was run.
    #[error("`{command}` failed ({status}):\n{output}")]
    Program {
        /// Its command line.
        command: String,
        /// Exit status.
        status: String,
        /// Output.
        output: String,
    },
    /// A file, a socket or a program that cannot be started.
    #[error("cannot {attempt}: {source}")]
    Io {
        /// Attempted operation, with its object.
        attempt: String,
        /// The system's error.
        source: io::Error,
    },
    /// A condition that did not come.
    #[error("{what} did not happen within {seconds} s; last seen: {last}")]
    TimedOut {
        /// Awaited condition.
        what: String,
        /// For how long.
        seconds: u64,
        /// The state that was seen last.
        last: String,
    },
    /// Anything that is not as it has to be.
    #[error("{0}")]
    Unexpected(String),
}

impl Error {
    /// For `map_err` on a request to the API server.
    pub fn api(attempt: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::Api { attempt, source: Box::new(source) }
    }

    /// For `map_err` on a file or program.
    pub fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::Io { attempt, source }
    }
}
