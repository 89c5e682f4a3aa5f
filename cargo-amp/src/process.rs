//! Runs Python in sight of the user.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Runs `command` in sight of the user and returns its exit status and what it wrote to stderr.
///
/// Both streams go to stderr, because stdout belongs to the program that is handed over to. Its
/// stdout, with the progress bars, goes there directly, so that pip still sees a terminal.
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

/// The last line of `text` that is not empty: where Python and pip name the cause.
pub(crate) fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message")
}

/// Whether a program that wrote `errors` found no room on the disk.
pub(crate) fn disk_is_full(errors: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|mark| errors.contains(mark))
}
