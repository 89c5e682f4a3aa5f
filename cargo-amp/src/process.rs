//! Runs a command such as Python, and shows its output.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Runs `command` and shows its output. Returns its exit status and what it wrote to stderr.
///
/// Everything that the command prints goes to this process's stderr. Only the program that `cargo
/// amp` starts later, for example the amp binary, writes to stdout. The command writes its own
/// stdout directly to that stderr, so that pip detects a terminal and shows progress bars.
pub(crate) fn show(command: &mut Command) -> io::Result<(ExitStatus, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .stderr(Stdio::piped())
        .spawn()?;
    let mut errors = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = BufReader::new(stderr);
        let mut seen = 0;
        while stderr.read_until(b'\n', &mut errors)? > 0 {
            io::stderr().write_all(&errors[seen..])?;
            seen = errors.len();
        }
    }
    Ok((child.wait()?, String::from_utf8_lossy(&errors).into_owned()))
}

/// Returns the last line of `text` that is not empty. Python and pip print the cause there.
pub(crate) fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message")
}

/// Returns whether the messages in `errors` report a full disk.
pub(crate) fn disk_is_full(errors: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|mark| errors.contains(mark))
}
