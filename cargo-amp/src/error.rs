//! The error type of `cargo amp`.

use std::fmt;

/// An error of `cargo amp` itself: one line with the cause and the remedy.
///
/// `cargo amp` starts other programs: a build, a test, the amp binary. If one of them fails, it
/// prints its own error, and `cargo amp` exits with its exit code.
#[derive(Debug)]
pub(crate) struct Error(String);

impl Error {
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Error(line.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
