//! A small project in a temporary folder. The cargo-amp binary runs in this project. It uses no
//! network, scripts replace pip and cargo, its cache is inside the project, and it gets only the
//! environment variables that are set in this file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Returns the folder with the scripts that replace python3, cargo, strip and df. The scripts are
/// committed files and not written by the tests: Linux does not run a script that is still open for
/// writing in another process, such as one that another test has started.
pub(crate) fn fakes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake")
}

/// A temporary project that consists of the crate `mine` with a binary `amp`. Dropping this value
/// removes the project.
pub(crate) struct Checkout(PathBuf);

impl Checkout {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("cargo-amp-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).expect("writable");
        // Symbolic links in the path are resolved, because tests compare the path with cargo-amp's
        // output.
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

    /// Creates a folder that looks like an unpacked libtorch archive.
    pub(crate) fn write_archive(&self, folder: &str, version: &str) -> PathBuf {
        self.write(&format!("{folder}/lib/libtorch.so"), "library");
        self.write(&format!("{folder}/include/torch.h"), "header");
        self.write(&format!("{folder}/build-version"), version);
        self.path(folder)
    }

    /// Creates the command that runs cargo-amp with `arguments` in the project's root. Its
    /// environment has only the variables set below, and the scripts that replace programs come
    /// first on PATH.
    pub(crate) fn cargo_amp(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cargo-amp"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", fakes().display()))
            .env("CARGO", fakes().join("cargo"))
            .env("REAL_CARGO", env!("CARGO"))
            // `.cargo/config.toml` sets LIBTORCH to the same value.
            .env("LIBTORCH", self.path(".libtorch/torch"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            // Simulates a machine without an NVIDIA driver.
            .env("CUDA_VISIBLE_DEVICES", "-1")
            .env("FAKE_LOG", self.path("pip.log"))
            .env("REAL_PYTHON", real_python())
            .stdin(Stdio::null());
        command
    }

    /// Creates the command that runs cargo-amp with `arguments` as on a machine with an NVIDIA
    /// driver.
    pub(crate) fn cargo_amp_with_driver(&self, arguments: &[&str]) -> Command {
        self.write("driver/libcuda.so.1", "");
        let mut command = self.cargo_amp(arguments);
        command.env_remove("CUDA_VISIBLE_DEVICES").env("LD_LIBRARY_PATH", self.path("driver"));
        command
    }

    /// Returns the folder of the user's libtorch.
    pub(crate) fn home(&self) -> PathBuf {
        self.path("cache/cargo-amp/libtorch-2.11.0")
    }

    /// Returns the folder for a download of libtorch that is not complete.
    pub(crate) fn partial(&self) -> PathBuf {
        self.path("cache/cargo-amp/libtorch-2.11.0.partial")
    }

    /// Returns the requirements that were passed to pip, one line for each run.
    pub(crate) fn pip_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("pip.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Returns how many times pip was run: once for each downloaded wheel.
    pub(crate) fn pip_runs(&self) -> usize {
        self.pip_log().len()
    }

    /// Returns whether the libtorch in the user's cache is complete, no partial file exists, and
    /// `.libtorch` is a link to that libtorch.
    pub(crate) fn is_provisioned(&self) -> bool {
        self.home().join("torch/lib/libtorch.so").is_file()
            && self.home().join("amp-manifest").is_file()
            && !self.partial().exists()
            && fs::read_link(self.path(".libtorch")).is_ok_and(|target| target == self.home())
    }

    /// Returns whether there is no libtorch, no partial download and no link.
    pub(crate) fn is_bare(&self) -> bool {
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        !is_there(&self.home()) && !is_there(&self.partial()) && !is_there(&self.path(".libtorch"))
    }

    /// Returns the files of the user's libtorch, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.home()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let relative = path.strip_prefix(self.home()).expect("is in it");
                    found.push(relative.display().to_string());
                }
            }
        }
        found.sort();
        found
    }
}

/// The number of wheels that are fetched for a libtorch for CPUs.
pub(crate) const CPU_WHEELS: usize = 3;
/// The number of wheels that are fetched for a libtorch with CUDA.
pub(crate) const CUDA_WHEELS: usize = 16;

/// Returns the path of the real Python. The replacement for python3 calls it to unpack wheels.
fn real_python() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let asked = ["-c", "import sys; print(sys.executable)"];
        let output = Command::new("python3").args(asked).output().expect("python3 is on PATH");
        String::from_utf8(output.stdout).expect("a path").trim().to_owned()
    })
}

impl Drop for Checkout {
    fn drop(&mut self) {
        // If the folder cannot be removed, it stays in `target`, but the test does not fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `command` and waits until it ends.
pub(crate) fn output(command: &mut Command) -> Output {
    command.output().expect("cargo-amp runs")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts that cargo-amp failed with exit code 2 and that the last line contains all of `parts`.
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

/// A process that is killed at the end of the test, also if the test fails.
pub(crate) struct Started(pub(crate) std::process::Child);

impl Drop for Started {
    fn drop(&mut self) {
        // `kill` fails if the process has already ended. This error is ignored.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "timeout while waiting until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
