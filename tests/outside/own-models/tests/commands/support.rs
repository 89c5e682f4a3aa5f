//! Runs the project's binary as `cargo amp` does.

use std::process::{Command, Output};

/// The exit code of a command, and what it wrote to standard output and standard error.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().expect("the binary runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    /// Asserts that the command succeeded. Returns its standard output.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Asserts that the command failed with exit code 2 and a single error line. Returns this line.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.code, Some(2), "{}{}", self.out, self.err);
        assert_eq!(self.out, "", "standard output is empty");
        let mut lines = self.err.lines();
        let line = lines.next().expect("a line on standard error").to_owned();
        assert_eq!(lines.next(), None, "more than one line: {}", self.err);
        line
    }
}
