//! Runs pip, shows its output, and explains a failure in one line.

use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::error::Error;
use crate::process::{disk_is_full, last_line, show};

/// A Python program that prints the version of Python, and whether pip is installed.
const PROBE: &str = "\
import importlib.util, sys
print('%d.%d' % sys.version_info[:2])
print(importlib.util.find_spec('pip') is not None)
";

/// The parts of this module's messages that depend on what is downloaded.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// The short name of what is downloaded, for example `libtorch`.
    pub(crate) name: &'static str,
    /// The package and its version, for example `torch 2.11.0`.
    pub(crate) package: &'static str,
    /// What the user can do if the download fails. The text ends an error message and begins with
    /// `or`.
    pub(crate) otherwise: &'static str,
}

/// The command of a `python3` that has pip.
pub(crate) struct Pip {
    wanted: Wanted,
    python_version: String,
}

impl Pip {
    pub(crate) fn find(wanted: Wanted) -> Result<Self, Error> {
        let Wanted { name, package, otherwise } = wanted;
        let python = format!("install Python 3.10 to 3.14 with pip, {otherwise}");
        let output = Command::new("python3").args(["-c", PROBE]).output().map_err(|e| {
            Error::new(format!("python3, which fetches {name}, cannot be run ({e}): {python}"))
        })?;
        let answer = String::from_utf8_lossy(&output.stdout);
        let mut lines = answer.lines();
        match (lines.next(), lines.next()) {
            (Some(version), _) if !has_wheels(version) => Err(Error::new(format!(
                "python3 is Python {version}, for which there is no {package}: put a \
                 Python from 3.10 to 3.14 first on PATH as python3, {otherwise}"
            ))),
            (Some(version), Some("True")) => Ok(Pip { wanted, python_version: version.to_owned() }),
            (Some(version), Some(_)) => Err(Error::new(format!(
                "python3 (Python {version}) has no pip, which fetches {name}: \
                 install it (package python3-pip, or `python3 -m ensurepip`), put a virtual \
                 environment made by `python3 -m venv` first on PATH, {otherwise}"
            ))),
            _ => Err(Error::new(format!(
                "python3, which fetches {name}, does not work ({}): {python}",
                last_line(&String::from_utf8_lossy(&output.stderr))
            ))),
        }
    }

    /// Returns the arguments of python3 that install `requirements` into `target`.
    ///
    /// With `--target`, pip also works in a Python that the distribution manages (PEP 668).
    pub(crate) fn install(target: &Path, requirements: &[String]) -> Vec<String> {
        // Accepts only packages with a wheel, so nothing is built from source, and writes no `.pyc`
        // files.
        let options = ["install", "--only-binary=:all:", "--no-compile", "--target"];
        Self::arguments(&options, target, requirements)
    }

    /// Returns the arguments of python3 that download the wheel of `requirement` into `folder`.
    pub(crate) fn download(folder: &Path, requirement: String) -> Vec<String> {
        let options = ["download", "--only-binary=:all:", "--no-deps", "--dest"];
        Self::arguments(&options, folder, &[requirement])
    }

    fn arguments(options: &[&str], folder: &Path, requirements: &[String]) -> Vec<String> {
        let mut arguments = vec!["-m".to_owned(), "pip".to_owned()];
        arguments.extend(options.iter().copied().map(String::from));
        arguments.push(folder.display().to_string());
        arguments.extend_from_slice(requirements);
        arguments
    }

    /// Runs pip with these arguments in the working directory `folder`. pip writes its temporary
    /// files to `temporary`.
    pub(crate) fn run(
        &self,
        folder: &Path,
        temporary: &Path,
        arguments: &[String],
    ) -> Result<(), Error> {
        let (status, errors) = show(
            Command::new("python3")
                .args(arguments)
                .current_dir(folder)
                // pip unpacks into a temporary folder and then moves the files to the target
                // folder. With a temporary folder on the same disk, files are moved by renaming,
                // and a small /tmp does not fill up.
                .env("TMPDIR", temporary)
                // Overrides the user's values of these two variables. pip refuses `PIP_USER`
                // together with --target, and `PIP_REQUIRE_VIRTUALENV` outside a virtual
                // environment.
                .env("PIP_USER", "0")
                .env("PIP_REQUIRE_VIRTUALENV", "0")
                // pip's cache would store a second copy of every download.
                .env("PIP_NO_CACHE_DIR", "1")
                // pip 25.1 and later resumes a broken download; older versions ignore the variable.
                .env("PIP_RESUME_RETRIES", "5")
                // Suppresses pip's warning about installing into system folders as root.
                .env("PIP_ROOT_USER_ACTION", "ignore")
                .env("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        )
        .map_err(|e| Error::new(format!("python3 -m pip could not be run: {e}")))?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::new(format!(
                "{} could not be fetched: {}",
                self.wanted.name,
                self.cause(folder, status, &errors)
            )))
        }
    }

    /// Determines the cause of pip's failure and the remedy from pip's stderr.
    fn cause(&self, folder: &Path, status: ExitStatus, errors: &str) -> String {
        let otherwise = self.wanted.otherwise;
        let says = |marks: &[&str]| marks.iter().any(|mark| errors.contains(mark));
        let no_wheel = says(&["No matching distribution found"]);
        // If pip cannot reach its index, it reports the same error as for a package without
        // versions.
        let index_answered = !errors.contains("(from versions: none)");
        if disk_is_full(errors) {
            format!("the disk is full: make room in {}, {otherwise}", folder.display())
        } else if says(NETWORK) && !(no_wheel && index_answered) {
            format!(
                "pip could not reach its package index: check the network and pip's proxy \
                 settings and run the command again, {otherwise}"
            )
        } else if no_wheel {
            format!(
                "pip's index has no wheel for this machine and Python {}: check pip's settings \
                 (`python3 -m pip config list`), {otherwise}",
                self.python_version
            )
        } else {
            format!(
                "pip failed ({status}; {}): solve the problem that pip reports above and run the \
                 command again, {otherwise}",
                last_line(errors)
            )
        }
    }
}

/// Returns whether torch 2.11.0 has wheels for this version of Python.
fn has_wheels(python: &str) -> bool {
    let minor = python.strip_prefix("3.").and_then(|minor| minor.parse().ok());
    minor.is_some_and(|minor: u32| (10..=14).contains(&minor))
}

/// Texts by which pip's messages about a failed connection are recognized.
const NETWORK: &[&str] = &[
    "Retrying (Retry",
    "Could not fetch URL",
    "ConnectionError",
    "Max retries exceeded",
    "Read timed out",
    "IncompleteRead",
    "HTTP error",
    "SSLError",
    "incomplete-download",
];
