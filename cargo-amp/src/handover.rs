//! The last step of a command: replaces this process by cargo, or by the `amp` binary that cargo
//! has built.

use std::env;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::cargo;
use crate::cli::Device;
use crate::error::Error;
use crate::libtorch::Libtorch;
use crate::project::Package;

/// The variable with the number of threads that libtorch uses for each operation, unless the
/// program sets another number.
const THREADS: &str = "OMP_NUM_THREADS";

/// Runs all test binaries of `package`, or of the whole workspace. If one of the binaries fails,
/// still runs the others.
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
    // With this option, cargo runs all test binaries even if one fails, and lists the failed
    // binaries at the end.
    command.arg("--no-fail-fast");
    libtorch.apply_to_run(&mut command);
    command.envs(python.map(|folder| ("AMP_TEST_PYTHON", folder)));
    if let Some(device) = device {
        command.env("AMP_DEVICE", device.name());
    }
    if device == Some(Device::Cuda) {
        // Tests run one at a time, because the memory of a CUDA device is counted for the whole
        // process.
        command.env("RUST_TEST_THREADS", "1");
    } else if env::var_os(THREADS).is_none() {
        // The test processes already use all cores, so each operation gets a single thread. Threads
        // of one operation wait for each other in a busy loop. If other processes use the cores at
        // the same time, a small model then takes up to thirty times the CPU time.
        command.env(THREADS, "1");
    }
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    replace_process(command)
}

/// Builds the amp binary of `package`. If the build succeeds, replaces this process with the
/// binary.
pub(crate) fn amp(
    libtorch: &Libtorch,
    package: &Package,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    // The tests are built with the dev profile. The amp binary uses the dev profile too, so that
    // the C++ bindings are compiled only once. Only `bench`, which measures time, uses the release
    // profile.
    let measures = arguments.first().is_some_and(|command| command == "bench");
    let binary = match build(libtorch, package, measures)? {
        ControlFlow::Continue(binary) => binary,
        ControlFlow::Break(code) => return Ok(code),
    };
    let mut command = Command::new(binary);
    command.args(arguments);
    libtorch.apply_to_run(&mut command);
    replace_process(command)
}

/// Builds the amp binary of `package`, with the release profile if `release` is true. Returns the
/// binary's path, or the exit code of cargo if the build failed.
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

/// Replaces this process by `command`, which then receives signals and sets the exit code.
#[cfg(unix)]
fn replace_process(mut command: Command) -> Result<ExitCode, Error> {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    Err(could_not_start(&command, &error))
}

/// Waits for `command` and returns its exit code. Used on systems where a process cannot replace
/// itself with another program.
#[cfg(not(unix))]
fn replace_process(mut command: Command) -> Result<ExitCode, Error> {
    let status = command.status().map_err(|e| could_not_start(&command, &e))?;
    Ok(cargo::exit_code(status))
}

fn could_not_start(command: &Command, error: &std::io::Error) -> Error {
    Error::new(format!("{} could not be started: {error}", command.get_program().display()))
}
