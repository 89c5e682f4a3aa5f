//! Builds the tests. The build may run while pip fetches the Python packages that the tests need.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::cargo;
use crate::error::Error;
use crate::libtorch::Libtorch;
use crate::project::Package;

/// Creates the command that builds all test binaries of `package`, or of the whole workspace.
pub(crate) fn command(libtorch: &Libtorch, package: Option<&Package>) -> Command {
    let mut command = cargo::test(package.map(|package| package.name.as_str()));
    command.arg("--no-run");
    // Sets the environment variables with which the tests run. With other values, cargo would build
    // the tests again before it runs them.
    libtorch.apply_to_run(&mut command);
    command
}

/// A running cargo that builds tests. Dropping this value ends cargo.
pub(crate) struct TestBuild(Child);

impl TestBuild {
    /// Starts building all test binaries of `package`, or of the whole workspace, while pip waits
    /// for the network and the disk. Cargo prints only warnings and errors, because pip shows its
    /// progress on the same terminal.
    pub(crate) fn start(libtorch: &Libtorch, package: Option<&Package>) -> Result<Self, Error> {
        note!("building the tests while pip fetches Python packages");
        let mut command = command(libtorch, package);
        command.arg("--quiet").stdin(Stdio::null()).stdout(Stdio::from(io::stderr()));
        command.spawn().map(Self).map_err(|error| cargo::could_not_start(&error))
    }

    /// Waits until cargo has ended.
    pub(crate) fn wait(mut self) -> Result<ExitStatus, Error> {
        self.0.wait().map_err(|error| cargo::could_not_start(&error))
    }
}

impl Drop for TestBuild {
    fn drop(&mut self) {
        // These calls may fail because cargo has already ended, so errors are ignored.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
