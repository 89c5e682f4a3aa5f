//! The last step of a command: replaces this process by cargo, or by the `amp` binary that cargo
//! has built.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;

use crate::cargo;
use crate::cli::Device;
use crate::error::Error;
use crate::libtorch::Libtorch;
use crate::project::{Package, Project};
use crate::{test_build, test_parts};

/// The environment variable that sets the number of threads that libtorch uses for each operation,
/// unless the program sets another number.
const THREADS: &str = "OMP_NUM_THREADS";

/// The environment variable that sets how many times a thread of libgomp, before it sleeps, checks
/// whether the other threads of an operation have finished.
const SPIN: &str = "GOMP_SPINCOUNT";

/// Makes threads that wait for other threads of an operation sleep early, if other processes use
/// the cores too. By default, waiting threads spin for milliseconds, which makes training of a
/// small model ten times as slow on shared cores. Does nothing if the user has chosen how threads
/// wait.
fn wait_asleep(command: &mut Command) {
    let chosen = [SPIN, "OMP_WAIT_POLICY"].iter().any(|name| env::var_os(name).is_some());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if !chosen && are_shared(cores, &load) {
        command.env(SPIN, "1000");
    }
}

/// Returns whether other processes use at least half of the cores. `load` is the content of
/// `/proc/loadavg`, for example `0.20 0.18 0.12 3/80 11206`. The 3 before the slash is the number
/// of running threads, including this one.
fn are_shared(cores: usize, load: &str) -> bool {
    let running = load.split_whitespace().nth(3).and_then(|tasks| tasks.split_once('/'));
    let running = running.and_then(|(running, _)| running.parse::<usize>().ok()).unwrap_or(1);
    2 * running.saturating_sub(1) >= cores
}

/// How the tests run.
pub(crate) struct TestOptions {
    /// The folder with the Python packages of the tests.
    pub(crate) python: Option<PathBuf>,
    pub(crate) device: Option<Device>,
    /// The arguments for the test binaries.
    pub(crate) arguments: Vec<OsString>,
}

/// Runs all tests of `package`, or of the whole workspace. If a test binary fails, still runs the
/// others.
pub(crate) fn test(
    libtorch: &Libtorch,
    project: &Project,
    package: Option<&Package>,
    options: &TestOptions,
) -> Result<ExitCode, Error> {
    let packages = package.map_or(project.packages(), std::slice::from_ref);
    let parts = test_parts::parts(packages);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if parts.len() < 2 || cores < 2 || options.device == Some(Device::Cuda) {
        return replace_process(test_command(libtorch, package, &[], options));
    }
    // Builds all tests first. Otherwise the two cargo processes that later run the tests, each a
    // part of them, would build one after the other, because each waits for the other's lock on the
    // build folder.
    if let ControlFlow::Break(code) = cargo::build(test_build::command(libtorch, package))? {
        return Ok(code);
    }
    test_parts::run(&parts, |part| test_command(libtorch, package, &part.options, options))
}

/// Creates the command that runs some of the tests. `selection` contains the options of `cargo test`
/// that select these tests.
fn test_command(
    libtorch: &Libtorch,
    package: Option<&Package>,
    selection: &[String],
    options: &TestOptions,
) -> Command {
    let mut command = cargo::test(package.map(|package| package.name.as_str()));
    // Runs all test binaries even if one fails. Cargo then lists the failed binaries at the end.
    command.arg("--no-fail-fast").args(selection);
    libtorch.apply_to_run(&mut command);
    command.envs(options.python.as_ref().map(|folder| ("AMP_TEST_PYTHON", folder)));
    if let Some(device) = options.device {
        command.env("AMP_DEVICE", device.name());
    }
    if options.device == Some(Device::Cuda) {
        // Tests run one at a time, because tests that measure CUDA memory measure that of the whole
        // process.
        command.env("RUST_TEST_THREADS", "1");
    } else if env::var_os(THREADS).is_none() {
        // The test processes already use all cores, so each operation gets a single thread. With
        // several threads, the threads of an operation would wait for each other in a busy loop. On
        // cores that other processes use too, a small model would take up to thirty times the CPU
        // time.
        command.env(THREADS, "1");
    }
    if !options.arguments.is_empty() {
        command.arg("--").args(&options.arguments);
    }
    command
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
    if !measures {
        wait_asleep(&mut command);
    }
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
        Error::new("cargo built amp but did not say where: see what `cargo build --bin amp` prints")
    })
}

/// Replaces this process by `command` (exec), so that signals reach `command` and its exit code is
/// that of `cargo amp`.
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

#[cfg(test)]
mod tests {
    use super::are_shared;

    #[test]
    fn cores_are_shared_if_others_use_half_of_them() {
        assert!(!are_shared(2, "0.20 0.18 0.12 1/80 11206"));
        assert!(are_shared(2, "9.20 0.18 0.12 2/80 11206"));
        assert!(!are_shared(8, "0.20 0.18 0.12 4/80 11206"));
        assert!(are_shared(8, "0.20 0.18 0.12 5/80 11206"));
        assert!(!are_shared(2, ""));
    }
}
