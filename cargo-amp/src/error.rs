//! The one kind of failure that `cargo amp` reports itself.

use std::fmt;

/// Why `cargo amp` stopped before it handed over: one line that names the cause and the fix.
///
/// What fails after the handover (a build, a test, the amp binary) has already been reported by
/// the program that failed, and keeps that program's exit code.
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
