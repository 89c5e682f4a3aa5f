//! A small project in a temporary folder, and the cargo-amp binary run in it, apart from everything
//! else on the machine: no network, no real Python, only the variables set here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The stand-ins for python3, cargo, strip and df. They are files of the repository, not written by the
/// tests: a script that a test has just written can still be held open by a process that another
/// test is starting, and then cannot be run.
pub(crate) fn fakes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake")
}

/// A temporary project: the crate `mine` with a binary `amp`. It is removed when dropped.
pub(crate) struct Checkout(PathBuf);

impl Checkout {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("cargo-amp-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).expect("writable");
        // Resolved, to be compared with what cargo-amp prints.
        let checkout = Checkout(root.canonicalize().expect("just made"));
        checkout.write(".cargo/config.toml", "");
        checkout.write(
            "Cargo.toml",
            "[package]\nname = \"mine\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n",
        );
        checkout.write("src/bin/amp.rs", "fn main() {}\n");
        checkout
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    pub(crate) fn write(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("writable");
        fs::write(path, text).expect("writable");
    }

    /// A folder that looks like an unpacked libtorch archive.
    pub(crate) fn write_archive(&self, folder: &str, version: &str) -> PathBuf {
        self.write(&format!("{folder}/lib/libtorch.so"), "library");
        self.write(&format!("{folder}/include/torch.h"), "header");
        self.write(&format!("{folder}/build-version"), version);
        self.path(folder)
    }

    /// cargo-amp with `arguments` in the root, in a clean environment with the fakes first on PATH.
    pub(crate) fn cargo_amp(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cargo-amp"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", fakes().display()))
            .env("CARGO", fakes().join("cargo"))
            .env("REAL_CARGO", env!("CARGO"))
            // As `.cargo/config.toml` sets it.
            .env("LIBTORCH", self.path(".libtorch/torch"))
            .env("FAKE_LOG", self.path("pip.log"))
            .stdin(Stdio::null());
        command
    }

    /// How often pip was run.
    pub(crate) fn pip_runs(&self) -> usize {
        fs::read_to_string(self.path("pip.log")).map_or(0, |log| log.lines().count())
    }

    /// Whether `.libtorch` is whole and nothing unfinished lies beside it.
    pub(crate) fn is_provisioned(&self) -> bool {
        self.path(".libtorch/torch/lib/libtorch.so").is_file()
            && self.path(".libtorch/amp-stamp").is_file()
            && !self.path(".libtorch.partial").exists()
    }

    /// Whether there is no libtorch at all, not even a part.
    pub(crate) fn is_bare(&self) -> bool {
        !self.path(".libtorch").exists() && !self.path(".libtorch.partial").exists()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        // A folder that stays behind lies under target and is no reason to fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `command` to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    command.output().expect("cargo-amp runs")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts that cargo-amp refused with exit code 2 and one last line that holds all of `parts`.
#[track_caller]
pub(crate) fn assert_refused(output: &Output, parts: &[&str]) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one error line: {stderr}");
    assert_eq!(stderr.lines().last(), Some(lines[0]), "the error comes last: {stderr}");
    for part in parts {
        assert!(lines[0].contains(part), "`{part}` is missing: {}", lines[0]);
    }
}

#[track_caller]
pub(crate) fn assert_succeeded(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}
