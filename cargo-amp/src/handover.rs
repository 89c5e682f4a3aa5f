//! The last step: cargo, or the amp binary that cargo has built, takes this process over.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::cargo;
use crate::cli::Device;
use crate::error::Error;
use crate::libtorch::Libtorch;
use crate::project::Package;

/// Runs the tests of `package`, or of the whole workspace, through to the last binary.
pub(crate) fn test(
    libtorch: &Libtorch,
    package: Option<&Package>,
    python: Option<&Path>,
    device: Option<Device>,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    let mut command = cargo::command();
    command.arg("test");
    match package {
        Some(package) => command.args(["--package", &package.name]),
        None => command.arg("--workspace"),
    };
    // Cargo names at the end which binaries failed.
    command.arg("--no-fail-fast");
    libtorch.apply_to_tests(&mut command);
    command.envs(python.map(|folder| ("AMP_TEST_PYTHON", folder)));
    if let Some(device) = device {
        command.env("AMP_DEVICE", device.name());
        if device == Device::Cuda {
            // One at a time: a CUDA device's memory statistics are the process's.
            command.env("RUST_TEST_THREADS", "1");
        }
    }
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    replace_process(command)
}

/// Builds the amp binary of `package` and becomes it.
pub(crate) fn amp(
    libtorch: &Libtorch,
    package: &Package,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    // The dev profile is the tests' profile too, so the C++ bindings are compiled once for both;
    // what measures is built for speed.
    let measures = arguments.first().is_some_and(|command| command == "bench");
    let binary = match build(libtorch, package, measures)? {
        ControlFlow::Continue(binary) => binary,
        ControlFlow::Break(code) => return Ok(code),
    };
    let mut command = Command::new(binary);
    command.args(arguments);
    libtorch.apply(&mut command);
    replace_process(command)
}

/// Builds the amp binary of `package`, in the release profile where `release` says so, and returns
/// its path, or the exit code of a cargo that failed.
pub(crate) fn build(
    libtorch: &Libtorch,
    package: &Package,
    release: bool,
) -> Result<ControlFlow<ExitCode, PathBuf>, Error> {
    let mut command = cargo::command();
    command.args(["build", "--package", &package.name, "--bin", "amp"]);
    command.args(release.then_some("--release"));
    libtorch.apply(&mut command);
    let executables = match cargo::build(command)? {
        ControlFlow::Continue(executables) => executables,
        ControlFlow::Break(code) => return Ok(ControlFlow::Break(code)),
    };
    let binary = executables.into_iter().find(|found| found.kind == "bin" && found.target == "amp");
    binary.map(|found| ControlFlow::Continue(found.path)).ok_or_else(|| {
        Error::new("cargo built amp but did not say where: check `cargo build --bin amp`")
    })
}

/// Gives this process to `command`, so that signals and the exit code are its own.
#[cfg(unix)]
fn replace_process(mut command: Command) -> Result<ExitCode, Error> {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    Err(could_not_start(&command, &error))
}

/// Where no process can be replaced, waits for `command` and passes its exit code on.
#[cfg(not(unix))]
fn replace_process(mut command: Command) -> Result<ExitCode, Error> {
    let status = command.status().map_err(|e| could_not_start(&command, &e))?;
    Ok(cargo::exit_code(status))
}

fn could_not_start(command: &Command, error: &std::io::Error) -> Error {
    Error::new(format!("{} could not be started: {error}", command.get_program().display()))
}
